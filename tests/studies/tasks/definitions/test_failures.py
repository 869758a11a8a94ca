"""Missing data of several tasks in one message, and what is kept off the terminal while tasks are built."""

import sys

from longeval.errors import MissingDataError
from longeval.studies.tasks.definitions import load
from longeval.studies.tasks.definitions.checks import causes, missing_together


def lacks(data, reason="out of reach", remedy="Check the network."):
    return MissingDataError(f"--tasks x: hub data set {data}: {reason}", remedy, data=data, reason=reason)


def test_each_reason_is_told_once_with_all_data():
    errors = {"one": lacks("who/a"), "two": lacks("who/b"), "three": lacks("who/c", "gated"), "four": lacks("who/a")}
    assert causes(errors) == "who/a, who/b: out of reach; who/c: gated"
    error = missing_together(errors)
    assert error.problem == f"--tasks one, two, three, four: data is missing: {causes(errors)}"
    assert error.remedy == "Check the network."
    alone = lacks("who/a")
    assert missing_together({"one": alone}) is alone
    assert causes({f"t{n}": MissingDataError(f"no file {n}", f"Get {n}.") for n in range(5)}).endswith("; and 2 more")


def test_nltk_keeps_its_reasons_to_itself_and_is_asked_once(monkeypatch, capsys):
    import nltk

    asked = []

    def find(name):
        raise LookupError(name)

    def download(name, *, quiet, print_error_to=None, **rest):
        asked.append(name)
        print("[nltk_data] Error loading", name, file=print_error_to or sys.stderr)
        return False

    monkeypatch.setattr(nltk.data, "find", find)
    monkeypatch.setattr(nltk, "download", download)
    load._fetch_punkt_tab.cache_clear()
    for _ in range(3):
        load._fetch_punkt_tab()
    load._fetch_punkt_tab.cache_clear()
    assert asked == ["punkt_tab"]
    assert capsys.readouterr() == ("", "")
