import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))


from records import make_nll, make_records, make_run

from longeval.cli.app import run_app
from longeval.report import plots

NLL = make_nll([[2.0] * 31] * 12)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))
    made = make_run("runs/demo", [(make_records("none", 32, NLL), NLL), (make_records("yarn", 32, NLL), NLL)])
    Path(made, "spec.yaml").write_text("model: toy\npe: [none, yarn]\nlengths: [32]\ndata: texts\nfactor: 2\n")
    return made


def test_an_unfinished_run_is_told(run, capsys):
    for path in list(Path(run, "cells").iterdir())[:1]:
        path.unlink()
    assert run_app(["report", run]) == 0
    assert "Not finished: 1 of " in capsys.readouterr().err


def test_report_writes_and_names_its_files(run, capsys):
    assert run_app(["report", run, "--out", "reports/demo.md"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    files = out.split()
    assert files[:4] == ["reports/demo.md", "reports/demo.csv", "reports/demo.json", "reports/demo.tex"]
    assert all(Path(file).is_file() for file in files)
    assert "longeval report runs/demo --out reports/demo.md" in Path("reports/demo.md").read_text()


def test_json_dash_leaves_only_json_on_stdout(run, capsys):
    assert run_app(["report", run, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    records = json.loads(out)
    assert sorted((r["pe"], r["metric"]) for r in records) == [
        ("none", "bits_per_byte"),
        ("none", "perplexity"),
        ("yarn", "bits_per_byte"),
        ("yarn", "perplexity"),
    ]
    assert "runs/demo/report.md" in err


def test_json_file(run, capsys):
    assert run_app(["report", run, "--json", "all.json", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert len(json.loads(Path("all.json").read_text())) == 4


def test_notes_go_to_stderr(run, capsys):
    other = make_nll([[3.0] * 31] * 12)
    late = {"date": "2026-01-01T00:00:00+00:00"}
    make_run("runs/other", [(make_records("none", 32, other, provenance=late), other)])
    assert run_app(["report", run, "runs/other", "-q"]) == 0
    assert "the one of runs/other is shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["runs"], "runs"),
        (["runs/demo", "--out", "runs"], "--out runs"),
        (["runs/demo", "--out", "report.txt"], "--out report.txt"),
        (["runs/demo", "--json", "runs"], "--json runs"),
        (["runs/demo", "--json", "runs/demo/spec.yaml/x.json"], "--json"),
        (["runs/empty"], "runs/empty"),
        (["runs/broken"], "broken"),
        ([], "RUN"),
    ],
)
def test_bad_requests_end_with_2_one_message_and_nothing_written(run, capsys, arguments, named):
    for name in ("empty", "broken"):
        Path("runs", name, "cells").mkdir(parents=True)
        Path("runs", name, "spec.yaml").write_text("model: toy\n")
    Path("runs/broken/cells/a.json").write_text("{}")
    before = sorted(map(str, Path().rglob("*")))
    assert run_app(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named in err
    assert sorted(map(str, Path().rglob("*"))) == before


def test_an_authors_title_and_text_stand_in_front(run, capsys):
    Path("notes.md").write_text("What this shows, and *what not*.\n")
    assert run_app(["report", run, "--out", "r.md", "--title", "YaRN on toys", "--preface", "notes.md"]) == 0
    lines = Path("r.md").read_text().splitlines()
    assert lines[:3] == ["# YaRN on toys", "", "What this shows, and *what not*."]
    assert any("--title 'YaRN on toys' --preface notes.md" in line for line in lines)
    assert run_app(["report", run, "--out", "s.md", "--preface", "missing.md"]) == 2
    assert "--preface missing.md: can't be read" in capsys.readouterr().err
    assert not Path("s.md").exists()
