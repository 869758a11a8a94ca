import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))


from records import full_run

from longeval.cli.app import run_app
from longeval.report import plots
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot",), pe=("none", "resonance"), seeds=2)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))
    return full_run("runs/posgen", SPEC, {("cot", "none"): [0.60, 0.62], ("cot", "resonance"): [0.65, 0.66]})


def test_it_writes_and_names_its_files(run, capsys):
    assert run_app(["posgen", "table", run, "--out", "reports/posgen.md", "--title", "A 10% test"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    files = out.split()
    assert files[:4] == [f"reports/posgen.{suffix}" for suffix in ("md", "csv", "json", "tex")]
    assert all(Path(file).is_file() for file in files)
    text = Path(files[0]).read_text()
    assert text.startswith("# A 10% test\n")
    assert "longeval posgen table runs/posgen --out reports/posgen.md --title 'A 10% test'" in text


def test_an_authors_text_stands_in_front(run, capsys):
    Path("notes.md").write_text("What this shows, and *what not*.\n")
    assert run_app(["posgen", "table", run, "--out", "r.md", "--preface", "notes.md", "-q"]) == 0
    lines = Path("r.md").read_text().splitlines()
    assert lines[2] == "What this shows, and *what not*."
    assert "longeval posgen table runs/posgen --out r.md --preface notes.md" in lines
    assert run_app(["posgen", "table", run, "--out", "s.md", "--preface", "missing.md"]) == 2
    assert "--preface missing.md: can't be read" in capsys.readouterr().err
    assert not Path("s.md").exists()


def test_json_dash_leaves_only_json_on_stdout(run, capsys):
    assert run_app(["posgen", "table", run, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 2 * 2 * 3
    assert "runs/posgen/posgen.md" in err


def test_notes_go_to_stderr_also_when_quiet(run, capsys):
    next(Path(run, "cells").iterdir()).unlink()
    assert run_app(["posgen", "table", run, "-q"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "longeval: Not finished: 1 of 4 cells has no record yet" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["runs/posgen", "--out", "runs"], "--out runs"),
        (["runs/posgen", "--out", "a.txt"], "--out a.txt"),
        (["runs/posgen", "--json", "runs"], "--json runs"),
        (["runs/empty"], "runs/empty"),
        ([], "RUN"),
    ],
)
def test_bad_requests_end_with_2_one_message_and_nothing_written(run, capsys, arguments, named):
    Path("runs/empty/cells").mkdir(parents=True)
    Path("runs/empty/spec.yaml").write_text("")
    before = sorted(map(str, Path().rglob("*")))
    assert run_app(["posgen", "table", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert named in err
    assert sorted(map(str, Path().rglob("*"))) == before
