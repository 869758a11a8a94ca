"""A whole report with tasks from a made-up run: its tables, its files, and what it says where something is missing."""

import json

import pytest
from records import (
    csv_rows,
    demo_task_cells,
    make_failed_task,
    make_nll,
    make_records,
    make_samples,
    make_task_records,
    make_task_run,
    table_under,
    without_figures,
    write_report,
)

from longeval.report.tables import build_grids
from longeval.studies.tasks.report.scores import beside
from longeval.studies.tasks.report.tables import build_task_sets

HALF = make_samples([1.0, 0.0] * 10)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder with the report of the made-up study, figures left out."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        run = make_task_run(folder / "run", demo_task_cells())
        write_report([run], out=str(folder / "demo.md"), published=True)
    return folder


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Returns a function from cells to the Markdown of their report."""
    without_figures(monkeypatch)

    def made(cells):
        run = make_task_run(tmp_path / "run", cells)
        write_report([run])
        return (tmp_path / "run" / "report.md").read_text()

    return made


def test_scores_with_errors_counts_and_reasons(report):
    text = (report / "demo.md").read_text()
    header, rows = table_under(text, "### passkey: accuracy")
    assert header == ["method", "s", "32", "64", "128"]
    assert rows[0] == ["`none`", "–", "0.80 [0.58, 0.92]", "0.90 [0.70, 0.97]", "0.00 [0.00, 0.16] †"]
    assert rows[4] == ["`pi`", "2", "–", "failed", "–"], "not asked for: after what was"
    assert rows[-1] == ["*samples*", "", "20", "20", "20"]
    assert "- failed: pi 64: out of memory \\| try less\n" in text
    _, rows = table_under(text, "### quality: accuracy")
    assert [row[0] for row in rows[-4:]] == ["*samples*", "*documents*", "*cut to fit*", "*left out*"]
    assert [row[2:] for row in rows[-2:]] == [["18", "20", "0"], ["2", "0", "0"]]
    _, rows = table_under(text, "### suite: average of accuracy")
    assert rows[0][2:] == ["skipped"] * 3
    _, rows = table_under(text, "### Further metrics")
    assert rows[0][:2] == ["topics: accuracy\\_first", "`none`"]


def test_pairs_sample_by_sample(report):
    text = (report / "demo.md").read_text()
    header, rows = table_under(text, "### Resonance against its base, sample by sample")
    assert header[-4:] == ["difference", "base only", "resonance only", "p"]
    passkey = [row for row in rows if row[0] == "passkey: accuracy"]
    assert len(passkey) == 6
    assert passkey[0][3:7] == ["32", "20", "0.80", "0.70"] and passkey[0][7].startswith("−0.10 [")
    assert passkey[0][8:] == ["3", "1", "0.62"]
    assert all(row[10] == "–" for row in rows if row[0] != "passkey: accuracy"), "documents and graded credit: no p"
    assert "passkey resonance 32, 64, 128" in text


def test_tables_for_other_programs(report):
    scores = csv_rows(report / "demo_files" / "scores.csv")
    records = {record["cell"]: record for record in json.loads((report / "demo.json").read_text())}
    assert len(scores) == 38 + 24 + 24
    first = scores[0]
    assert (first["task"], first["pe"], first["length"], first["ci_method"]) == ("passkey", "none", "32", "wilson")
    assert float(first["stderr"]) == records[first["cell"]]["params"]["stderr"]
    quality = next(line for line in scores if line["task"] == "quality")
    counts = [quality[key] for key in ("ci_unit", "ci_units", "truncated", "skipped")]
    assert counts == ["document", "9", "18", "2"]
    assert {line["kind"] for line in scores} == {"main", "average", "further"}
    pairs = csv_rows(report / "demo_files" / "score_pairs.csv")
    assert len(pairs) == 18
    assert [pairs[0][key] for key in ("base", "base_only", "resonance_only", "p_mcnemar")] == [
        "none",
        "3",
        "1",
        "0.625",
    ]
    depths = csv_rows(report / "demo_files" / "depths.csv")
    assert len(depths) == 4 * 3 * 10 and sum(int(line["n"]) for line in depths) == 4 * 3 * 20


def test_cells_whose_samples_are_missing(write):
    bare = [(make_task_records(pe, 64, "passkey", HALF), None) for pe in ("none", "resonance")]
    text = write(bare)
    assert "no comparison, samples are not stored: passkey resonance 64" in text
    _, rows = table_under(text, "### Resonance against its base, sample by sample")
    assert rows[0][4:] == ["–", "0.50", "0.50", "0.00", "–", "–", "–"]


def test_only_failed_cells_make_a_report(write):
    assert "- failed: none 64: out of memory" in write([(make_failed_task("none", 64, "passkey"), None)])


def test_perplexity_of_another_model_is_not_shown_beside():
    nll = make_nll([[2.0] * 8] * 10)
    (tasks,) = build_task_sets(make_task_records("none", 64, "passkey", HALF))
    same = {"params": {"tokenizer": "f" * 64}}
    assert beside(tasks, build_grids(make_records("none", 64, nll, **same)))
    for other in ({"model": "other"}, {"dtype": "bfloat16"}, {"params": {"weights": "0" * 64}}):
        assert not beside(tasks, build_grids(make_records("none", 64, nll, **(same | other))))
    assert not beside(tasks, build_grids(make_records("none", 128, nll, **same)))


def test_beside_only_where_factor_and_parameters_agree():
    nll = make_nll([[2.0] * 8] * 10)
    scores = [("yarn", {"factor": 2.0}), ("none", {})]
    records = [record for pe, own in scores for record in make_task_records(pe, 64, "passkey", HALF, **own)]
    grids = build_grids([*make_records("yarn", 64, nll, factor=4.0), *make_records("none", 64, nll)])
    (found,) = beside(build_task_sets(records)[0], grids)
    shown = [(r.row.pe, r.perplexity[0] is not None, r.scores[0] is not None) for r in found.rows]
    assert shown == [("yarn", False, True), ("yarn", True, False), ("none", True, True)]
