"""A whole report with tasks from a made-up run: its text, its files, and what it says where something is missing."""

import csv
import json
import re

import pytest
from records import (
    demo_task_cells,
    make_failed_task,
    make_nll,
    make_records,
    make_samples,
    make_task_records,
    make_task_run,
    write_report,
)

from longeval.report import plots
from longeval.report.tables import build_grids
from longeval.studies.tasks.report.scores import beside
from longeval.studies.tasks.report.tables import build_task_sets

HALF = make_samples([1.0, 0.0] * 10)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder with the report of the made-up study, figures left out."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))
        run = make_task_run(folder / "run", demo_task_cells())
        write_report([run], out=str(folder / "demo.md"), published=True)
    return folder


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Returns a function from cells to the Markdown of their report."""
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))

    def made(cells):
        run = make_task_run(tmp_path / "run", cells)
        write_report([run])
        return (tmp_path / "run" / "report.md").read_text()

    return made


def table_under(text, heading):
    lines = text.split(f"{heading}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows[0], rows[2:]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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
    assert "- skipped in every cell: no average: books is missing (no data)\n" in text
    _, rows = table_under(text, "### pair: average of accuracy")
    assert re.fullmatch(r"0\.\d\d", rows[0][2])
    _, rows = table_under(text, "### Further metrics")
    assert rows[0][:2] == ["topics: accuracy\\_first", "`none`"]
    assert "By kind: 8 of perplexity, 38 of tasks, 24 averages of groups." in text
    assert text.startswith("# Perplexity and tasks by context length\n")


def test_pairs_sample_by_sample(report):
    text = (report / "demo.md").read_text()
    header, rows = table_under(text, "### Resonance against its base, sample by sample")
    assert header[-4:] == ["difference", "base only", "resonance only", "p"]
    passkey = [row for row in rows if row[0] == "passkey: accuracy"]
    assert len(passkey) == 6
    assert passkey[0][3:7] == ["32", "20", "0.80", "0.70"]
    assert passkey[0][7].startswith("−0.10 [")
    assert passkey[0][8:10] == ["3", "1"]
    assert passkey[0][10] == "0.62"
    assert all(row[10] == "–" for row in rows if row[0] != "passkey: accuracy"), "documents and graded credit: no p"
    assert "- bold: " in text
    assert "says nothing for or against: passkey resonance 32, 64, 128" in text


def test_what_was_scored_is_said(report):
    text = (report / "demo.md").read_text().split("### How the tasks were scored")[1]
    for needed in (
        "own words, not those of the published benchmark: `passkey`, `quality`, `topics`",
        "Chat template: on",
        "generated greedily",
        "`--overlong middle`): its document lost its middle",
        "152 samples were cut and 8 left out",
        "`accuracy`: mean credit of a sample",
        "`accuracy_first`: as the task defines it",
        "Needles are hidden in: noise (`passkey`)",
        "Wilson's for right-or-wrong samples",
        "Bonett and Price",
    ):
        assert needed in text, needed


def test_perplexity_and_scores_beside_each_other(report):
    text = (report / "demo.md").read_text()
    header, rows = table_under(text, "### Perplexity and tasks beside each other")
    assert header == ["at 32", "s", "perplexity, texts, prefix", "passkey", "quality", "topics", "pair"]
    assert rows[0] == ["`none`", "–", "7.389", "0.80", "0.44 †", "0.72", "0.58"]
    assert "| at 64 " in text
    assert "| at 128 " not in text, "no perplexity there"


def test_every_link_leads_to_a_file(report):
    links = re.findall(r"\]\(([^)]+)\)", (report / "demo.md").read_text())
    assert len(links) == 3 + 4 + 4
    for link in links:
        assert (report / link).is_file(), link


def test_tables_for_other_programs(report):
    scores = rows_of(report / "demo_files" / "scores.csv")
    records = {record["cell"]: record for record in json.loads((report / "demo.json").read_text())}
    assert len(scores) == 38 + 24 + 24
    first = scores[0]
    assert (first["task"], first["pe"], first["length"], first["ci_method"]) == ("passkey", "none", "32", "wilson")
    assert float(first["stderr"]) == records[first["cell"]]["params"]["stderr"]
    quality = next(line for line in scores if line["task"] == "quality")
    assert (quality["ci_unit"], quality["ci_units"], quality["truncated"], quality["skipped"]) == (
        "document",
        "9",
        "18",
        "2",
    )
    assert {line["kind"] for line in scores} == {"main", "average", "further"}
    pairs = rows_of(report / "demo_files" / "score_pairs.csv")
    assert len(pairs) == 18
    assert (pairs[0]["base"], pairs[0]["base_only"], pairs[0]["resonance_only"]) == ("none", "3", "1")
    assert float(pairs[0]["p_mcnemar"]) == 0.625
    depths = rows_of(report / "demo_files" / "depths.csv")
    assert len(depths) == 4 * 3 * 10
    assert sum(int(line["n"]) for line in depths) == 4 * 3 * 20
    assert {line["depth"] for line in depths[:10]} == {str(round(k / 9, 2)) for k in range(10)}


def test_latex(report):
    text = (report / "demo.tex").read_text()
    assert r"\multicolumn{5}{l}{\textit{passkey: accuracy}} \\" in text
    assert r"\quad none & -- & 0.80\ci{0.58}{0.92} & 0.90\ci{0.70}{0.97} & 0.00\ci{0.00}{0.16}$^\dagger$ \\" in text
    assert (
        r"passkey: accuracy & resonance vs none & -- & 32 & 20 & $-$0.10\ci{$-$0.31}{+0.12} & 3 & 1 & 0.62 \\" in text
    )
    body = re.sub(r"(?m)^(%|\\providecommand).*$", "", text)
    assert not re.search(r"(?<!\\)[%#~–−∞±†]", body)
    assert body.count("{") == body.count("}")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4


def test_cells_whose_samples_are_missing(write):
    bare = [(make_task_records(pe, 64, "passkey", HALF), None) for pe in ("none", "resonance")]
    text = write(bare)
    assert "Samples of `passkey` are not stored in full" in text
    assert "no comparison, samples are not stored: passkey resonance 64" in text
    _, rows = table_under(text, "### Resonance against its base, sample by sample")
    assert rows[0][4:] == ["–", "0.50", "0.50", "0.00", "–", "–", "–"]


def test_only_failed_cells_make_a_report(write):
    text = write([(make_failed_task("none", 64, "passkey"), None)])
    assert "# Tasks by context length" in text
    assert "- failed: none 64: out of memory" in text
    assert "Intervals: none" in text


def test_figures_of_an_earlier_report_go(report, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))
    run = make_task_run(tmp_path / "run", [(make_task_records("none", 64, "topics", HALF), HALF)])
    folder = tmp_path / "run" / "report_files"
    folder.mkdir()
    (folder / "depth-gone.svg").write_text("old")
    (folder / "depths.csv").write_text("old")
    write_report([run])
    assert sorted(path.name for path in folder.iterdir()) == ["scores.csv"]


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
    records = [
        *make_task_records("yarn", 64, "passkey", HALF, factor=2.0),
        *make_task_records("none", 64, "passkey", HALF),
    ]
    (tasks,) = build_task_sets(records)
    grids = build_grids([*make_records("yarn", 64, nll, factor=4.0), *make_records("none", 64, nll)])
    (found,) = beside(tasks, grids)
    shown = [(r.row.pe, r.perplexity[0] is not None, r.scores[0] is not None) for r in found.rows]
    assert shown == [("yarn", False, True), ("yarn", True, False), ("none", True, True)]
