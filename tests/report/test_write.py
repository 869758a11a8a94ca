"""The whole report from fabricated runs: its text, its figures, its tables for other programs, and that it is whole."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from records import SPEC, make_nll, make_records, make_run, write_report

from longeval.errors import LongEvalError
from longeval.report import plots
from longeval.report.build import MAX_DRAWN

SIZES = {"none": 2.0, "resonance": 2.0, "yarn": 1.9, "resonance_yarn": 1.8}


def toy_nll(pe, length, jitter=0.0):
    window = np.full(length - 1, SIZES[pe]) + jitter * np.sin(np.arange(length - 1))
    return make_nll([window] * 12)


COMMAND = "longeval report runs/demo --out reports/demo.md"


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
    write_report([run], out=str(folder / "reports" / "demo.md"), json_path=str(folder / "all.json"), command=COMMAND)
    return folder / "reports"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of one's own; figures are not rendered, which takes longest."""
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))
    return make_run(tmp_path / "runs" / "demo", demo_cells())


def table_under(text, heading):
    lines = text.split(heading, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows[0], {row[0]: row[1:] for row in rows[2:]}


def test_markdown_tables(reports):
    text = (reports / "demo.md").read_text()
    header, rows = table_under(text, "## toy on texts, prefix")
    assert header == ["method", "s", "32", "64"]
    assert list(rows) == ["`none`", "`resonance`", "`yarn`", "`resonance_yarn`", "`pi`", "`ntk`"]
    assert rows["`none`"] == ["–", "7.389 [7.389, 7.389]", "7.389 [7.389, 7.389]"]
    assert rows["`resonance_yarn`"][1] == "**6.050** [6.050, 6.050]"
    assert rows["`pi`"] == ["2", "failed", "skipped"]
    assert rows["`ntk`"] == ["2", "8103 [8103, 8103]", "–"]
    assert "- failed: pi 32: out of memory \\| try less\n" in text
    assert "- skipped: pi 64: no document of 64 tokens\n" in text

    header, rows = table_under(text, "### Resonance against its base")
    assert rows["`resonance` vs `none`"] == ["–", "0% [0%, 0%]", "0% [0%, 0%]"]
    assert rows["`resonance_yarn` vs `yarn`"][1] == "**−9.52%** [−9.52%, −9.52%]"

    _, rows = table_under(text, "### Bits per byte")
    assert rows["`none`"][1] == f"{2 / np.log(2) / 4:.4f}"
    assert "`pi`" not in rows

    _, rows = table_under(text, "### What was scored")
    assert rows["32"] == ["12", "372", "12", "1", "3", "12"]


def test_markdown_says_how_to_repeat_it(reports):
    text = (reports / "demo.md").read_text()
    assert "longeval ppl --model toy --pe none,yarn --lengths 64,128\nlongeval report runs/demo --out" in text
    assert SPEC.strip() in text
    for needed in (
        "`doc0`, `doc1`",
        "native length 64 tokens",
        "0123456789ab",
        "cpu (test, 2 threads)",
        "torch 2.13.0",
    ):
        assert needed in text
    assert "200 resamples of documents, level 95%, seed 0" in text
    assert "`yarn` 2" in text


def test_every_link_leads_to_a_file(reports):
    text = (reports / "demo.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3 + 4
    for link in links:
        assert (reports / link).is_file(), link


def test_figures_are_pictures_and_equal_data_give_equal_bytes(reports, tmp_path):
    first = {path.name: path.read_bytes() for path in (reports / "demo_files").iterdir()}
    pngs = [content for name, content in first.items() if name.endswith(".png")]
    svgs = [content for name, content in first.items() if name.endswith(".svg")]
    assert len(pngs) == len(svgs) == 2
    assert all(content.startswith(b"\x89PNG") and len(content) > 10_000 for content in pngs)
    assert all(b"<svg" in content[:500] for content in svgs)
    write_report([str(reports.parent / "runs" / "demo")], out=str(tmp_path / "demo.md"))
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "demo_files").iterdir()}


def test_without_nlls_the_report_says_so(run, tmp_path):
    records = [make_records(pe, n, toy_nll(pe, n)) for pe in ("none", "resonance") for n in (32, 64)]
    bare = make_run(tmp_path / "bare", [(made, None) for made in records])
    write_report([bare])
    text = (tmp_path / "bare" / "report.md").read_text()
    assert "No token-level NLLs are stored" in text
    assert "Differences without an interval" in text
    with open(tmp_path / "bare" / "report_files" / "pairs.csv", newline="") as file:
        line = next(csv.DictReader(file))
    assert (line["ratio"], line["ratio_low"], line["excludes_zero"]) == ("0.0", "", "")
    assert not list((tmp_path / "bare" / "report_files").glob("position*"))


def test_records_for_other_programs(reports):
    array = json.loads((reports / "demo.json").read_text())
    assert (reports.parent / "all.json").read_text() == (reports / "demo.json").read_text()
    assert len(array) == 9 * 2 + 2
    with open(reports / "demo.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["cell"] for line in lines] == [record["cell"] for record in array]
    for line, record in zip(lines, array, strict=True):
        assert line["status"] == record["status"]
        assert line["value"] == ("" if record["value"] is None else repr(record["value"]))
        assert line["params.native_length"] == "64"
        assert json.loads(line["params.method"]) == {}
    with open(reports / "demo_files" / "pairs.csv", newline="") as file:
        pairs = list(csv.DictReader(file))
    assert {(line["base"], line["length"], line["excludes_zero"]) for line in pairs} == {
        ("none", "32", "false"),
        ("none", "64", "false"),
        ("yarn", "32", "true"),
        ("yarn", "64", "true"),
    }
    yarn = next(line for line in pairs if line["base"] == "yarn")
    assert float(yarn["points"]) == pytest.approx(np.exp(1.8) - np.exp(1.9), rel=1e-6)
    assert float(yarn["points_low"]) == pytest.approx(np.exp(1.8) - np.exp(1.9), rel=1e-6)
    with open(reports / "demo_files" / "positions.csv", newline="") as file:
        positions = list(csv.DictReader(file))
    assert sum(int(line["tokens"]) for line in positions if line["pe"] == "yarn") == 12 * 63
    assert {round(float(line["mean_nll"]), 5) for line in positions if line["pe"] == "yarn"} == {1.9}


def test_latex(reports):
    text = (reports / "demo.tex").read_text()
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\end{tabular}") == 2
    assert r"resonance\_yarn & 2 & \textbf{6.050}\ci{6.050}{6.050} & \textbf{6.050}\ci{6.050}{6.050} \\" in text
    assert r"ntk & 2 & 8103\ci{8103}{8103} & -- \\" in text
    assert r"resonance\_yarn vs yarn & 2 & \textbf{$-$9.52\%}\ci{$-$9.52\%}{$-$9.52\%}" in text
    body = re.sub(r"(?m)^(%|\\providecommand).*$", "", text)
    assert not re.search(r"(?<!\\)[%#~–−∞]", body)
    assert body.count("{") == body.count("}")


def test_default_place_is_the_first_run(run):
    written = write_report([run])
    assert written.files[0] == os.path.join(run, "report.md")
    assert all(os.path.isfile(path) for path in written.files)
    # A report inside a run folder doesn't disturb reading it again.
    assert len(write_report([run]).records) == len(written.records)


def test_figures_of_an_earlier_report_go_and_other_files_stay(run, tmp_path):
    folder = tmp_path / "reports" / "demo_files"
    folder.mkdir(parents=True)
    (folder / "perplexity-gone.png").write_text("old")
    (folder / "notes.txt").write_text("mine")
    write_report([run], out=str(tmp_path / "reports" / "demo.md"))
    assert not (folder / "perplexity-gone.png").exists()
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "message"),
    [("there", "is a folder"), ("report.html", "must end in .md"), ("file/report.md", "can't write")],
)
def test_bad_places_are_refused_and_nothing_is_left(run, tmp_path, out, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(LongEvalError, match=message):
        write_report([run], out=str(tmp_path / out))
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_late_failure_leaves_the_earlier_report_whole(run, tmp_path):
    reports = tmp_path / "reports"
    write_report([run], out=str(reports / "demo.md"))
    (reports / "demo.tex").unlink()
    (reports / "demo.tex").mkdir()
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    (reports / "demo.md").write_text("earlier")
    with pytest.raises(LongEvalError, match=r"demo\.tex.*it is a folder"):
        write_report([run], out=str(reports / "demo.md"))
    assert (reports / "demo.md").read_text() == "earlier"
    assert {path for path in reports.rglob("*") if path.is_file()} == set(before)


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
    nlls = {length: toy_nll("none", length) for length in (32, 64)}
    cells = [
        (make_records("none", length, nlls[length], data=f"d{n:02d}"), nlls[length])
        for n in range(MAX_DRAWN + 2)
        for length in nlls
    ]
    many = make_run(tmp_path / "many", cells)
    files = write_report([many], out=str(tmp_path / "many.md")).files
    assert sum("perplexity-" in path and path.endswith(".png") for path in files) == MAX_DRAWN
    text = (tmp_path / "many.md").read_text()
    assert text.count("![") == 2 * MAX_DRAWN and text.count("## toy on d") == MAX_DRAWN + 2
    assert f"Figures are drawn of the first {MAX_DRAWN} tables, not of the other 2" in text
