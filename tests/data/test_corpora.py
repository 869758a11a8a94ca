"""The YAML files of the corpora: those that ship, and what a broken one is answered with."""

import os

import pytest

from longeval.data import corpora
from longeval.data.corpora import load_catalogue
from longeval.errors import LongEvalError

GOOD = """\
description: d
source: s
license: l
docs: 3
local:
  - {path: mine.jsonl, field: body}
hub:
  id: a/b
  split: test
  field: body
"""


def test_shipped_corpora():
    catalogue = load_catalogue()
    assert {"gov_report", "pg19", "proof_pile", "leval:sci_fi", "leval:codeU"} <= set(catalogue.corpora)
    assert catalogue.aliases == {
        "leval:toefl": "leval:tpo",
        "leval:sfiction": "leval:sci_fi",
        "leval:topic_retrieval": "leval:topic_retrieval_longchat",
    }
    gov_report = catalogue.corpora["gov_report"]
    assert (gov_report.local[-1].path, gov_report.local[-1].field) == ("leval/gov_report_summ.jsonl", "input")
    assert gov_report.hub.id == "ccdv/govreport-summarization"
    assert catalogue.corpora["leval:codeU"].hub.file == "LEval/Exam/codeU.jsonl"
    assert catalogue.corpora["leval:codeU"].local[0].path == "leval/codeU.jsonl"
    assert catalogue.corpora["leval:gov_report_summ"].hub.file == "LEval/Generation/gov_report_summ.jsonl"


def test_a_corpus_is_one_yaml_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("not a corpus")
    found = load_catalogue(str(tmp_path)).corpora
    assert list(found) == ["mine"]
    assert (found["mine"].docs, found["mine"].local[0].path, found["mine"].hub.field) == (3, "mine.jsonl", "body")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("docs: 3", "docs: [3", "line 5: "),
        ("docs: 3", "docs: 0", "docs 0: "),
        ("docs: 3", "dosc: 3", "dosc 3: "),
        ("source: s\n", "", "source: "),
        ("field: body}", "column: body}", "local.0.column 'body': "),
        ("  - {path: mine.jsonl, field: body}", "  path: mine.jsonl", "local: "),
        ("  split: test\n", "", "hub: "),
        ("  split: test", "  split: test\n  file: x", "hub: "),
        ("  split: test\n  field: body\n", "  split: test\n", "hub: "),
        ("license: l", "license: !!python/object/apply:os.getcwd []", "line 3: "),
        (GOOD, "- a list", "must be a mapping"),
        (GOOD, "", "must be a mapping"),
        ("hub:", "members: {x: {}}\naliases: {y: z}\nhub:", "aliases.y "),
    ],
)
def test_a_broken_file_is_named_with_its_key(tmp_path, old, new, expected):
    assert old in GOOD
    (tmp_path / "mine.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(LongEvalError) as caught:
        load_catalogue(str(tmp_path))
    assert f"mine.yaml: {expected}" in caught.value.problem


def test_the_installed_folder_wins_over_the_checkout(monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "longeval"
    monkeypatch.setattr(corpora, "__file__", str(package / "data" / "corpora.py"))
    assert corpora.corpora_dir() == str(tmp_path / "site-packages" / "tasks" / "perplexity")
    with pytest.raises(LongEvalError, match="folder of the corpora is missing"):
        load_catalogue()
    os.makedirs(package / "_tasks" / "perplexity")
    assert corpora.corpora_dir() == str(package / "_tasks" / "perplexity")
