"""The files of PosGen's report: which there are, what they hold, and that they appear together or not at all."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from records import full_run, make_cell, make_curves, make_posgen_run, write_posgen_table

from longeval.errors import LongEvalError
from longeval.report import plots
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot",), pe=("none", "resonance", "yarn"), seeds=3)
OOD = {("cot", "none"): [0.60, 0.62, 0.64], ("cot", "resonance"): [0.65, 0.66, 0.70], ("cot", "yarn"): [0.9, 0.9, 0.9]}


RENDER = plots.render


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Works in a folder of its own, and leaves figures unrendered, which is slow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))


def csv_lines(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there_and_every_link_leads_to_one(monkeypatch):
    monkeypatch.setattr(plots, "render", RENDER)
    full_run("run", SPEC, OOD)
    written = write_posgen_table(["run"], out="reports/posgen.md", command="longeval posgen table run")
    slug = "trained-posgen-2x512-150-epochs-float32"
    figures = [f"{kind}-{slug}.{suffix}" for kind in ("accuracy", "loss") for suffix in ("png", "svg")]
    tables = ["means.csv", "pairs.csv", "positions.csv", "losses.csv"]
    expected = [f"reports/posgen.{suffix}" for suffix in ("md", "csv", "json", "tex")]
    assert list(written.files) == expected + [f"reports/posgen_files/{name}" for name in (*figures, *tables)]
    assert all(Path(file).stat().st_size for file in written.files)
    text = Path("reports/posgen.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3 + 2 * 2
    assert all(Path("reports", link).is_file() for link in links)
    assert Path("reports/posgen_files", figures[0]).read_bytes().startswith(b"\x89PNG")
    assert Path("reports/posgen_files", figures[1]).read_bytes().startswith(b"<?xml")
    for said in ("longeval posgen table run", "`run/spec.yaml`", "tasks: [cot]", "## Provenance"):
        assert said in text


def test_equal_cells_give_equal_bytes():
    full_run("run", SPEC, OOD)
    files = write_posgen_table(["run"], out="a.md").files
    first = {file: Path(file).read_bytes() for file in files}
    assert write_posgen_table(["run"], out="a.md").files == files
    assert {file: Path(file).read_bytes() for file in files} == first


def test_records_are_written_as_the_run_has_them():
    full_run("run", SPEC, OOD)
    write_posgen_table(["run"], out="a.md", json_path="all.json")
    records = json.loads(Path("a.json").read_text())
    assert Path("all.json").read_bytes() == Path("a.json").read_bytes()
    assert len(records) == len(csv_lines("a.csv")) == 3 * 3 * 3
    assert {record["params"]["data_seed"] for record in records} == {0, 1, 2}
    order = [(record["pe"], record["params"]["seed"]) for record in records if record["metric"] == "accuracy_ood"]
    assert order == [(pe, seed) for pe in SPEC.pe for seed in range(3)]


def test_means_as_csv_are_not_rounded():
    full_run("run", SPEC, OOD)
    write_posgen_table(["run"], out="a.md")
    means = {(line["pe"], line["metric"]): line for line in csv_lines("a_files/means.csv")}
    line = means["resonance", "accuracy_ood"]
    assert float(line["mean"]) == pytest.approx(67.0, abs=1e-9)
    assert float(line["variance"]) == pytest.approx(7.0, abs=1e-9)
    assert float(line["low"]) == pytest.approx(67 - 4.30265273 * (7 / 3) ** 0.5, abs=1e-6)
    assert (line["seeds"], line["published"], line["published_variance"]) == ("3", "75.25", "0.1")
    assert (line["regime"], line["epochs"], line["dtype"], line["task"]) == ("trained", "150", "float32", "cot")
    assert means["resonance", "accuracy_generated"]["published"] == ""
    (pair,) = csv_lines("a_files/pairs.csv")
    assert (pair["pe"], pair["base"], pair["excludes_zero"]) == ("resonance", "none", "true")
    assert float(pair["mean"]) == pytest.approx(5.0)


def test_curves_as_csv_have_every_position_and_epoch():
    full_run("run", SPEC, OOD)
    write_posgen_table(["run"], out="a.md")
    lines = [line for line in csv_lines("a_files/positions.csv") if (line["pe"], line["curve"]) == ("none", "accuracy")]
    assert [int(line["position"]) for line in lines] == list(range(4, 256))
    assert (float(lines[-1]["low"]), float(lines[-1]["mean"]), float(lines[-1]["high"])) == pytest.approx(
        (0.6, 0.62, 0.64)
    )
    losses = [
        line for line in csv_lines("a_files/losses.csv") if (line["pe"], line["curve"]) == ("none", "valid_loss_ood")
    ]
    assert [(line["epoch"], line["mean"]) for line in losses] == [("1", "2.5"), ("2", "2.0"), ("3", "1.5")]


def test_latex_has_the_means_the_published_numbers_and_the_pairs():
    full_run("run", SPEC, OOD)
    write_posgen_table(["run"], out="a.md")
    text = Path("a.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    assert r"resonance & -- & \textbf{67.00 $\pm$ 7.00}\ci{60.43}{73.57} \\" in text
    assert r"yarn & 4 & 90.00 $\pm$ 0.00\ci{90.00}{90.00} \\" in text
    assert r"resonance, published &  & 75.25 $\pm$ 0.10 \\" in text
    assert r"none & -- & +5.00\ci{2.52}{7.48} \\" in text
    assert len(set(re.findall(r"\\label\{(.+?)\}", text))) == 4
    assert "regime trained, posgen-2x512, 150 epochs, float32" in text
    assert "over 3 seeds (0--2)" in text
    assert "settings differ." in text, "three seeds are not five"
    captions = re.findall(r"\\caption\{(.*)\}$", text, flags=re.MULTILINE)
    assert len(captions) == 4 and not any(re.search(r"(?<!\\)[%_&#]", caption) for caption in captions)


def test_latex_names_means_that_lack_seeds():
    cells = [(make_cell(SPEC, "none", seed, (0.9, 0.6, 0.3)), None) for seed in range(2)]
    cells += [(make_cell(SPEC, "yarn", seed, (0.9, 0.6, 0.3)), None) for seed in range(3)]
    make_posgen_run("run", SPEC, cells)
    write_posgen_table(["run"], out="a.md")
    assert "Fewer seeds: none on cot 2." in Path("a.tex").read_text()


def test_what_an_earlier_report_left_is_removed():
    full_run("run", SPEC, OOD)
    other = SPEC.replaced(epochs=10, pe=("none",), seeds=1)
    make_posgen_run(
        "other", other, [(make_cell(other, "none", 0, (0.9, 0.6, 0.3)), make_curves(other, (0.9, 0.6, 0.3)))]
    )
    write_posgen_table(["run"], out="a.md")
    Path("a_files/mine.txt").write_text("kept")
    written = write_posgen_table(["other"], out="a.md")
    left = {str(path) for path in Path("a_files").iterdir()}
    assert left == {file for file in written.files if file.startswith("a_files/")} | {"a_files/mine.txt"}
    assert "a_files/pairs.csv" not in left


def test_several_settings_have_figures_of_their_own():
    full_run("a", SPEC, OOD)
    full_run("b", SPEC.replaced(lr=1e-3), OOD)
    written = write_posgen_table(["a", "b"], out="both.md")
    assert len(set(written.files)) == len(written.files) == 4 + 8 + 4
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
    full_run("run", SPEC, OOD)
    Path("broken/cells").mkdir(parents=True)
    Path("broken/spec.yaml").write_text("")
    Path("broken/cells/a.json").write_text("{}")
    before = sorted(map(str, Path().rglob("*")))
    with pytest.raises(LongEvalError, match=re.escape(named)):
        write_posgen_table(runs, out=out)
    assert sorted(map(str, Path().rglob("*"))) == before


def test_damaged_cells_are_left_out_counted_and_named():
    full_run("run", SPEC, OOD)
    full_run("cut", SPEC, OOD)
    whole = len(write_posgen_table(["run"], out="whole.md").records)
    first = min(Path("cut/curves").iterdir())
    first.write_text('{"positions": [1')
    written = write_posgen_table(["cut"], out="a.md")
    assert len(written.records) == whole - 3
    (note,) = (note for note in written.notes if "damaged" in note)
    assert note.startswith("1 cell is damaged and left out in cut") and first.stem in note
    assert "Not finished: 1 of" in Path("a.md").read_text()


def test_the_report_goes_into_the_run_folder_by_default():
    full_run("run", SPEC, OOD)
    assert write_posgen_table(["run"]).files[0] == os.path.join("run", "posgen.md")
