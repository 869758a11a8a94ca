"""The whole report from fabricated runs: its text, its figures, its tables for other programs, and that it is whole."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from records import csv_rows, make_nll, make_records, make_run, table_under, without_figures, write_report

from longeval.errors import LongEvalError
from longeval.report.build import MAX_DRAWN

SIZES = {"none": 2.0, "resonance": 2.0, "yarn": 1.9, "resonance_yarn": 1.8}


def toy_nll(pe, length):
    return make_nll([[SIZES[pe]] * (length - 1)] * 12)


def demo_cells():
    cells = []
    for pe in SIZES:
        for length in (32, 64):
            nll = toy_nll(pe, length)
            cells.append((make_records(pe, length, nll), nll))
    cells.append((make_records("pi", 32, status="failed", error="out of memory | try\nless", factor=2.0), None))
    cells.append((make_records("pi", 64, status="skipped", error="no document of 64 tokens", factor=2.0), None))
    collapsed = make_nll([[9.0] * 31] * 12)
    cells.append((make_records("ntk", 32, collapsed, factor=2.0), collapsed))
    return cells


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Folder with the report of the demo run, made once with its real figures."""
    folder = tmp_path_factory.mktemp("written")
    run = make_run(folder / "runs" / "demo", demo_cells())
    write_report([run], out=str(folder / "reports" / "demo.md"))
    return folder / "reports"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of one's own; figures are not rendered, which takes longest."""
    without_figures(monkeypatch)
    return make_run(tmp_path / "runs" / "demo", demo_cells())


def test_markdown_tables(reports):
    text = (reports / "demo.md").read_text()
    tables = {}
    for heading in ("## toy on texts, prefix", "### Resonance against its base", "### Bits per byte"):
        header, rows = table_under(text, heading)
        tables[heading.split()[1]] = {row[0]: row[1:] for row in rows}
        assert header[1:] == ["s", "32", "64"]
    rows = tables["toy"]
    assert list(rows) == ["`none`", "`resonance`", "`yarn`", "`resonance_yarn`", "`pi`", "`ntk`"]
    assert rows["`none`"] == ["–", "7.389 [7.389, 7.389]", "7.389 [7.389, 7.389]"]
    assert rows["`resonance_yarn`"][1] == "**6.050** [6.050, 6.050]"
    assert rows["`pi`"] == ["2", "failed", "skipped"]
    assert rows["`ntk`"] == ["2", "8103 [8103, 8103]", "–"]
    assert "- failed: pi 32: out of memory \\| try less\n" in text
    rows = tables["Resonance"]
    assert rows["`resonance` vs `none`"] == ["–", "0% [0%, 0%]", "0% [0%, 0%]"]
    assert rows["`resonance_yarn` vs `yarn`"][1] == "**−9.52%** [−9.52%, −9.52%]"
    rows = tables["Bits"]
    assert rows["`none`"][1] == f"{2 / np.log(2) / 4:.4f}" and "`pi`" not in rows
    _, rows = table_under(text, "### What was scored")
    assert rows[0] == ["32", "12", "372", "12", "1", "3", "12"]


def test_every_link_leads_to_a_file(reports):
    text = (reports / "demo.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3 + 2 * 3
    for link in links:
        assert (reports / link).is_file(), link


def test_figures_are_pictures_and_equal_data_give_equal_bytes(reports, tmp_path):
    first = {path.name: path.read_bytes() for path in (reports / "demo_files").iterdir()}
    pngs = [content for name, content in first.items() if name.endswith(".png")]
    svgs = [content for name, content in first.items() if name.endswith(".svg")]
    pdfs = [content for name, content in first.items() if name.endswith(".pdf")]
    assert len(pngs) == len(svgs) == len(pdfs) == 2
    assert all(content.startswith(b"%PDF") and b"/Type3" not in content for content in pdfs)
    assert all(content.startswith(b"\x89PNG") and len(content) > 10_000 for content in pngs)
    assert all(b"<svg" in content[:500] for content in svgs)
    write_report([str(reports.parent / "runs" / "demo")], out=str(tmp_path / "demo.md"))
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "demo_files").iterdir()}


def test_without_nlls_the_report_says_so(run, tmp_path):
    records = [make_records(pe, n, toy_nll(pe, n)) for pe in ("none", "resonance") for n in (32, 64)]
    bare = make_run(tmp_path / "bare", [(made, None) for made in records])
    written = write_report([bare])
    assert written.files[0] == os.path.join(bare, "report.md"), "the default place"
    assert len(write_report([bare]).records) == len(written.records), "a report in a run folder isn't read"
    assert "No token-level NLLs" in (tmp_path / "bare" / "report.md").read_text()
    line = csv_rows(tmp_path / "bare" / "report_files" / "pairs.csv")[0]
    assert (line["ratio"], line["ratio_low"], line["excludes_zero"]) == ("0.0", "", "")
    assert not list((tmp_path / "bare" / "report_files").glob("position*"))


def test_records_for_other_programs(reports):
    array = json.loads((reports / "demo.json").read_text())
    assert len(array) == 9 * 2 + 2
    for line, record in zip(csv_rows(reports / "demo.csv"), array, strict=True):
        assert (line["cell"], line["status"]) == (record["cell"], record["status"])
        assert line["value"] == ("" if record["value"] is None else repr(record["value"]))
        assert (line["params.native_length"], line["params.method"]) == ("64", "{}")
    pairs = csv_rows(reports / "demo_files" / "pairs.csv")
    found = {(line["base"], line["length"]): line["excludes_zero"] for line in pairs}
    assert found == {("none", "32"): "false", ("none", "64"): "false", ("yarn", "32"): "true", ("yarn", "64"): "true"}
    yarn = next(line for line in pairs if line["base"] == "yarn")
    for column in ("points", "points_low"):
        assert float(yarn[column]) == pytest.approx(np.exp(1.8) - np.exp(1.9), rel=1e-6)
    positions = [line for line in csv_rows(reports / "demo_files" / "positions.csv") if line["pe"] == "yarn"]
    assert sum(int(line["tokens"]) for line in positions) == 12 * 63
    assert {round(float(line["mean_nll"]), 5) for line in positions} == {1.9}


def test_figures_of_an_earlier_report_go_and_other_files_stay(run, tmp_path):
    folder = tmp_path / "reports" / "demo_files"
    folder.mkdir(parents=True)
    for name in ("perplexity-gone.png", "perplexity-gone.pdf", "depths.csv", "notes.txt"):
        (folder / name).write_text("old")
    write_report([run], out=str(tmp_path / "reports" / "demo.md"))
    assert not list(folder.glob("perplexity-gone.*")) and not (folder / "depths.csv").exists()
    assert (folder / "notes.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("out", "message"),
    [("there", "is a folder"), ("report.txt", r"must end in \.md or \.html"), ("file/report.md", "can't write")],
)
def test_bad_places_are_refused_and_nothing_is_left(run, tmp_path, out, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(LongEvalError, match=message):
        write_report([run], out=str(tmp_path / out))
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_page_is_written_alone(run, tmp_path):
    written = write_report([run], out=str(tmp_path / "pages" / "demo.html"), json_path=str(tmp_path / "records.json"))
    assert written.files == (str(tmp_path / "pages" / "demo.html"), str(tmp_path / "records.json"))
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["demo.html"]
    text = (tmp_path / "pages" / "demo.html").read_text()
    assert text.startswith("<!DOCTYPE html>") and "toy on texts, prefix" in text and "6.050" in text
    assert len(json.loads((tmp_path / "records.json").read_text())) == len(written.records)


def test_a_late_failure_leaves_the_earlier_report_whole(run, tmp_path):
    reports = tmp_path / "reports"
    write_report([run], out=str(reports / "demo.md"))
    (reports / "demo.md").write_text("earlier")
    (reports / "demo.tex").unlink()
    (reports / "demo.tex").mkdir()
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    with pytest.raises(LongEvalError, match=r"demo\.tex.* folder"):
        write_report([run], out=str(reports / "demo.md"))
    assert {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()} == before


def test_a_remote_run_needs_a_place(run):
    with pytest.raises(LongEvalError, match="not a local folder"):
        write_report(["memory://somewhere"])


def test_reports_know_neither_models_nor_torch(run, tmp_path):
    code = (
        "import sys\n"
        "from longeval.cli.report import study_reports\n"
        "from longeval.report.build import write_report\n"
        "studies = study_reports()\n"
        f"written = write_report([{run!r}], studies=studies, out={str(tmp_path / 'r.md')!r})\n"
        "[study.summary(written.records) for study in studies]\n"
        "heavy = ['torch', 'transformers', 'datasets', 'vllm']\n"
        "heavy += [f'longeval.{name}' for name in ('models', 'backends', 'data', 'run.engine', 'studies.ppl.plan')]\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_of_very_many_tables_the_first_ones_are_drawn(run, tmp_path):
    names = [f"d{n:02d}" for n in range(MAX_DRAWN + 2)]
    nlls = {length: toy_nll("none", length) for length in (32, 64)}
    cells = [(make_records("none", length, nll, data=name), nll) for name in names for length, nll in nlls.items()]
    files = write_report([make_run(tmp_path / "many", cells)], out=str(tmp_path / "many.md")).files
    assert sum("perplexity-" in path and path.endswith(".png") for path in files) == MAX_DRAWN
    text = (tmp_path / "many.md").read_text()
    assert text.count("![") == 2 * MAX_DRAWN and text.count("## toy on d") == MAX_DRAWN + 2
    assert f"the first {MAX_DRAWN} tables, not of the other 2" in text
