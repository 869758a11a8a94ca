"""The files of PosGen's report: which there are, what they hold, and that they appear together or not at all."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from records import full_run, make_cell, make_posgen_run, write_posgen_table

from longeval.errors import LongEvalError
from longeval.report import plots
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot",), pe=("none", "resonance", "yarn"), seeds=3)
OOD = {("cot", "none"): [0.60, 0.62, 0.64], ("cot", "resonance"): [0.65, 0.66, 0.70], ("cot", "yarn"): [0.9, 0.9, 0.9]}
DRAW = plots.draw


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """A run in a folder of the test's own, and figures left undrawn, which is slow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "draw", lambda chart: plots.Picture(png=b"png", svg=b"svg", pdf=b"pdf"))
    full_run("run", SPEC, OOD)


def csv_lines(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there_and_every_link_leads_to_one(monkeypatch):
    monkeypatch.setattr(plots, "draw", DRAW)
    written = write_posgen_table(["run"], out="reports/posgen.md", command="longeval posgen table run")
    slug = "trained-posgen-2x512-150-epochs-float32"
    figures = [f"{kind}-{slug}.{suffix}" for kind in ("accuracy", "loss") for suffix in ("png", "svg", "pdf")]
    tables = ["means.csv", "pairs.csv", "positions.csv", "losses.csv"]
    expected = [f"reports/posgen.{suffix}" for suffix in ("md", "csv", "json", "tex")]
    assert list(written.files) == expected + [f"reports/posgen_files/{name}" for name in (*figures, *tables)]
    assert all(Path(file).stat().st_size for file in written.files)
    links = re.findall(r"\]\(([^)]+)\)", Path("reports/posgen.md").read_text())
    assert len(links) == 3 + 2 * 3
    assert all(Path("reports", link).is_file() for link in links)
    assert Path("reports/posgen_files", figures[0]).read_bytes().startswith(b"\x89PNG")
    assert Path("reports/posgen_files", figures[1]).read_bytes().startswith(b"<?xml")


def test_records_are_written_as_the_run_has_them_and_the_same_each_time():
    files = write_posgen_table(["run"], out="a.md").files
    first = {file: Path(file).read_bytes() for file in files}
    assert write_posgen_table(["run"], out="a.md", json_path="all.json").files[: len(files)] == files
    assert {file: Path(file).read_bytes() for file in files} == first
    records = json.loads(first["a.json"])
    assert Path("all.json").read_bytes() == first["a.json"]
    assert len(records) == len(csv_lines("a.csv")) == 3 * 3 * 3
    order = [(record["pe"], record["params"]["seed"]) for record in records if record["metric"] == "accuracy_ood"]
    assert order == [(pe, seed) for pe in SPEC.pe for seed in range(3)]


def test_csv_files_hold_unrounded_means_and_every_position_and_epoch():
    write_posgen_table(["run"], out="a.md")
    means = {(line["pe"], line["metric"]): line for line in csv_lines("a_files/means.csv")}
    line = means["resonance", "accuracy_ood"]
    assert float(line["mean"]) == pytest.approx(67.0, abs=1e-9)
    assert float(line["variance"]) == pytest.approx(7.0, abs=1e-9)
    assert float(line["low"]) == pytest.approx(67 - 4.30265273 * (7 / 3) ** 0.5, abs=1e-6)
    assert (line["seeds"], line["published"], line["published_variance"]) == ("3", "75.25", "0.1")
    assert means["resonance", "accuracy_generated"]["published"] == ""
    (pair,) = csv_lines("a_files/pairs.csv")
    assert (pair["pe"], pair["base"], pair["excludes_zero"]) == ("resonance", "none", "true")
    assert float(pair["mean"]) == pytest.approx(5.0)

    def curve(file, name):
        return [line for line in csv_lines(f"a_files/{file}.csv") if (line["pe"], line["curve"]) == ("none", name)]

    lines = curve("positions", "accuracy")
    assert [int(line["position"]) for line in lines] == list(range(4, 256))
    assert [float(lines[-1][name]) for name in ("low", "mean", "high")] == pytest.approx([0.6, 0.62, 0.64])
    losses = [(line["epoch"], line["mean"]) for line in curve("losses", "valid_loss_ood")]
    assert losses == [("1", "2.5"), ("2", "2.0"), ("3", "1.5")]


def test_latex_has_the_means_the_published_numbers_and_the_pairs():
    write_posgen_table(["run"], out="a.md")
    text = Path("a.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    assert r"resonance & -- & \textbf{67.00 $\pm$ 7.00}\ci{60.43}{73.57} \\" in text
    assert r"yarn & 4 & 90.00 $\pm$ 0.00\ci{90.00}{90.00} \\" in text
    assert r"resonance, published &  & 75.25 $\pm$ 0.10 \\" in text
    assert r"none & -- & +5.00\ci{2.52}{7.48} \\" in text
    assert len(set(re.findall(r"\\label\{tab:(.+?)\}", text))) == 4
    captions = re.findall(r"\\caption\{(.*)\}$", text, flags=re.MULTILINE)
    assert len(captions) == 4 + 2 and not any(re.search(r"(?<!\\)[%_&#]", caption) for caption in captions)


def test_latex_names_means_that_lack_seeds():
    cells = [(make_cell(SPEC, "none", seed, (0.9, 0.6, 0.3)), None) for seed in range(2)]
    cells += [(make_cell(SPEC, "yarn", seed, (0.9, 0.6, 0.3)), None) for seed in range(3)]
    make_posgen_run("partial", SPEC, cells)
    write_posgen_table(["partial"], out="a.md")
    assert "Fewer seeds: none on cot 2." in Path("a.tex").read_text()


def test_what_an_earlier_report_left_is_removed():
    full_run("other", SPEC.replaced(epochs=10, pe=("none",), seeds=1), {("cot", "none"): [0.6]})
    write_posgen_table(["run"], out="a.md")
    Path("a_files/mine.txt").write_text("kept")
    written = write_posgen_table(["other"], out="a.md")
    left = {str(path) for path in Path("a_files").iterdir()}
    assert left == {file for file in written.files if file.startswith("a_files/")} | {"a_files/mine.txt"}
    assert "a_files/pairs.csv" not in left


def test_several_settings_have_figures_of_their_own():
    full_run("b", SPEC.replaced(lr=1e-3), OOD)
    written = write_posgen_table(["run", "b"], out="both.md")
    assert len(set(written.files)) == len(written.files) == 4 + 12 + 4
    assert any("lr-0-001" in file for file in written.files) and any("lr-0-0002" in file for file in written.files)


@pytest.mark.parametrize(
    ("runs", "out", "named"),
    [
        (["run"], "run", "--out run"),
        (["run"], "a.txt", "--out a.txt"),
        (["nowhere"], "a.md", "nowhere"),
        (["broken"], "a.md", "broken"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(runs, out, named):
    Path("broken/cells").mkdir(parents=True)
    Path("broken/spec.yaml").write_text("")
    Path("broken/cells/a.json").write_text("{}")
    before = sorted(map(str, Path().rglob("*")))
    with pytest.raises(LongEvalError, match=re.escape(named)):
        write_posgen_table(runs, out=out)
    assert sorted(map(str, Path().rglob("*"))) == before


def test_damaged_cells_are_left_out_counted_and_named():
    first = min(Path("run/curves").iterdir())
    first.write_text('{"positions": [1')
    written = write_posgen_table(["run"], out="a.md")
    assert len(written.records) == (9 - 1) * 3
    (note,) = (note for note in written.notes if "damaged" in note)
    assert note.startswith("1 cell ") and first.stem in note
    assert "Not finished: 1 of" in Path("a.md").read_text()


def test_the_report_goes_into_the_run_folder_by_default():
    assert write_posgen_table(["run"]).files[0] == os.path.join("run", "posgen.md")
