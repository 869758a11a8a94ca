"""From `--data` to a source: names, aliases, local copies, paths, and the ways out when there is none."""

import json
import os

import pytest

from longeval.data import sources
from longeval.data.documents import Text
from longeval.data.hub import HubUnavailableError, PinnedDataset
from longeval.data.sources import list_modules, local_sources, open_source, read_stdlib
from longeval.errors import LongEvalError


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def unreachable(hub):
        raise HubUnavailableError("the hub can't be reached", "Check the network.")

    monkeypatch.setattr(sources, "pin", unreachable)


@pytest.fixture
def data(monkeypatch, tmp_path):
    """LONGEVAL_DATA, with two L-Eval files in it."""
    root = tmp_path / "data"
    (root / "leval").mkdir(parents=True)
    lines = [json.dumps({"input": f"report {n}", "instructions": ["?"]}) for n in range(3)]
    for name in ("gov_report_summ", "tpo"):
        (root / "leval" / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("LONGEVAL_DATA", str(root))
    return root


def texts(source):
    return [document.text for document in source.documents()]


def test_a_corpus_is_read_from_its_local_copy_and_rather_from_a_full_one(data):
    source = open_source("gov_report")
    assert (source.name, source.origin, source.default_docs) == ("gov_report", "local leval/gov_report_summ.jsonl", 50)
    assert texts(source) == texts(source) == ["report 0", "report 1", "report 2"]
    (data / "gov_report.jsonl").write_text('{"report": "full", "text": "no"}')
    source = open_source("gov_report")
    assert source.origin == "local gov_report.jsonl"
    assert texts(source) == ["full"]


def test_a_folder_of_books(data):
    (data / "pg19").mkdir()
    (data / "pg19" / "b.txt").write_text("second")
    (data / "pg19" / "a.txt").write_text("first")
    assert texts(open_source("pg19")) == ["first", "second"]


def test_an_alias_is_the_same_source(data):
    assert open_source("leval:toefl").name == "leval:tpo"
    assert open_source("leval:toefl").origin == open_source("leval:tpo").origin == "local leval/tpo.jsonl"
    assert open_source("leval:tpo").default_docs is None


def test_without_copy_and_hub_every_way_is_named(data, monkeypatch):
    with pytest.raises(LongEvalError) as caught:
        open_source("leval:codeU")
    for part in (f"LONGEVAL_DATA={data}", "leval/codeU.jsonl", "--data PATH", "--data stdlib"):
        assert part in str(caught.value)
    monkeypatch.delenv("LONGEVAL_DATA")
    with pytest.raises(LongEvalError, match="LONGEVAL_DATA is not set"):
        open_source("leval:codeU")
    monkeypatch.setenv("LONGEVAL_DATA", str(data / "missing"))
    with pytest.raises(LongEvalError, match="not a folder"):
        open_source("gov_report")


def test_the_hub_is_next_and_its_commit_is_in_the_origin(data, monkeypatch):
    monkeypatch.setattr(sources, "pin", lambda hub: PinnedDataset(commit="c0ffee"))
    monkeypatch.setattr(sources, "read_hub_documents", lambda hub, at: iter([Text(name=hub.id, text=at.commit)]))
    source = open_source("pg19")
    assert source.origin == "hub emozilla/pg19-test@c0ffee"
    assert list(source.documents()) == [Text(name="emozilla/pg19-test", text="c0ffee")]
    (data / "pg19.jsonl").write_text("")  # an error, and no reason to ask the hub
    with pytest.raises(LongEvalError, match=r"pg19\.jsonl: empty"):
        open_source("pg19")


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "x.jsonl").write_text('{"body": "b"}')
    monkeypatch.chdir(tmp_path)
    source = open_source("x.jsonl", text_field="body")
    assert (source.name, source.origin, source.default_docs) == ("x.jsonl", "path x.jsonl", None)
    assert texts(source) == ["b"]
    with pytest.raises(LongEvalError, match=r"line 1: no field 'text'"):
        open_source("x.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/x.jsonl", text_field="body").name == "~/x.jsonl"


def test_a_name_wins_over_a_file_and_a_dot_slash_means_the_file(tmp_path, monkeypatch):
    (tmp_path / "stdlib").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert open_source("stdlib").origin.endswith("standard library")
    assert texts(open_source("./stdlib")) == ["mine"]


def test_a_text_field_that_would_be_ignored_is_refused(data, tmp_path):
    (tmp_path / "x.txt").write_text("text")
    for name in ("stdlib", "gov_report", str(tmp_path / "x.txt")):
        with pytest.raises(LongEvalError, match="--text-field body"):
            open_source(name, text_field="body")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("govreport", "Did you mean gov_report "),
        ("leval:sfictoin", "Did you mean leval:sfiction"),
        ("gov_report.txt", "no such file or folder"),
    ],
)
def test_unknown_names_get_suggestions(data, name, said):
    with pytest.raises(LongEvalError, match=said):
        open_source(name)


def test_copies_on_this_machine_are_listed(data):
    assert local_sources() == ["stdlib", "gov_report", "leval:tpo", "leval:gov_report_summ"]


REAL_DOCUMENTS = {
    "leval:coursera": 15,
    "leval:gsm100": 100,
    "leval:quality": 15,
    "leval:sci_fi": 7,
    "leval:topic_retrieval": 50,
    "leval:toefl": 15,
    "gov_report": 14,
}


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LONGEVAL_DATA"), reason="LONGEVAL_DATA is not set: no real documents here")
@pytest.mark.parametrize("name", REAL_DOCUMENTS)
def test_real_documents(name):
    found = texts(open_source(name))
    assert len(found) == REAL_DOCUMENTS[name]
    assert min(map(len, found)) > 8_000


def test_the_longest_modules_first_ties_by_name_and_only_written_ones(tmp_path, monkeypatch):
    with pytest.raises(LongEvalError, match=str(tmp_path)):
        list_modules(str(tmp_path))
    sizes = {"long.py": 90, "b.py": 40, "a/c.py": 40, "a/short.py": 5}
    left_out = ("test/t.py", "lib/tests/t.py", "site-packages/x.py", "encodings/e.py", "pydoc_data/topics.py")
    left_out += ("_sysconfigdata_linux.py", "idlelib/i.py", "config-3.11-x86/c.py", "html/entities.py", "notes.txt")
    for name, size in (sizes | dict.fromkeys(left_out, 1000)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * size)
    assert list_modules(str(tmp_path)) == ["long.py", "a/c.py", "b.py", "a/short.py"]
    assert [(d.name, len(d.text)) for d in read_stdlib(str(tmp_path))][:2] == [("long.py", 90), ("a/c.py", 40)]
    monkeypatch.setattr(sources, "NUM_MODULES", 2)
    assert list_modules(str(tmp_path)) == ["long.py", "a/c.py"]


def test_this_python_has_long_modules():
    documents = list(read_stdlib())
    assert 10 <= len(documents) <= sources.NUM_MODULES
    assert len(documents[0].text) > 100_000
    assert not any("test" in document.name.split("/") for document in documents)
