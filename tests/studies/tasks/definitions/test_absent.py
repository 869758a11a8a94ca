"""Missing data of several tasks in one message, and what is kept off the terminal while tasks are built."""

import io
import logging
import sys

from longeval.errors import MissingDataError
from longeval.studies.tasks.definitions import guards, ruler
from longeval.studies.tasks.definitions.absent import causes, missing_together


def lacks(file, reason="out of reach"):
    return MissingDataError(
        f"L-Eval's {file}: no leval/{file}.jsonl in /data, and the hub: {reason}",
        f"Check the network. Or put a copy into a folder as leval/{file}.jsonl and name it.",
    )


def test_one_task_keeps_its_own_words():
    error = lacks("tpo")
    assert missing_together({"leval_toefl": error}) is error


def test_the_same_cause_is_told_once_with_all_names():
    error = missing_together({"leval_toefl": lacks("tpo"), "leval_gsm100": lacks("gsm100")})
    assert error.problem == (
        "--tasks leval_toefl, leval_gsm100: data is missing: "
        "L-Eval's tpo, gsm100: no leval/tpo.jsonl, leval/gsm100.jsonl in /data, and the hub: out of reach"
    )
    assert error.remedy == (
        "Check the network. Or put a copy into a folder as leval/tpo.jsonl, leval/gsm100.jsonl and name it."
    )


def test_different_causes_are_all_told_and_one_remedy_is_whole():
    command = "load_dataset('a', 'x')"
    other = MissingDataError("--tasks arc: hub data set ai2/arc: is gated", f"Run {command} there.")
    third = MissingDataError("--tasks boolq: hub data set ai2/arc: is gated", f"Run {command.replace('x', 'y')} there.")
    error = missing_together({"arc": other, "leval_toefl": lacks("tpo"), "boolq": third})
    assert error.problem.endswith(
        "data is missing: hub data set ai2/arc: is gated; L-Eval's tpo: no leval/tpo.jsonl in /data, and the hub: "
        "out of reach"
    )
    assert error.remedy == f"Run {command} there. The others alike."
    assert causes({"arc": other, "boolq": third}) == "hub data set ai2/arc: is gated"


def test_lm_evals_hint_at_its_own_flag_is_left_out_even_when_verbose():
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    ours, theirs = logging.getLogger("longeval"), logging.getLogger("lm_eval.api.task")
    before = ours.level
    theirs.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    try:
        with guards.quiet():
            theirs.warning("Custom kwargs can be passed to `--metadata` in console")
            theirs.warning("another thing")
        theirs.warning("`--metadata` again, outside")
    finally:
        ours.setLevel(before)
        theirs.removeHandler(handler)
    assert shown.getvalue() == "another thing\n`--metadata` again, outside\n"


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
    ruler._fetch_punkt_tab.cache_clear()
    for _ in range(3):
        ruler._fetch_punkt_tab()
    ruler._fetch_punkt_tab.cache_clear()
    assert asked == ["punkt_tab"]
    assert capsys.readouterr() == ("", "")
