"""`longeval report` and `longeval posgen table`, which differ in what they read and how their files are called."""

import json
from pathlib import Path

import pytest
from records import full_run, make_nll, make_records, make_run

from longeval.cli.app import run_app
from longeval.studies.posgen.request import PosGenRequest

NLL = make_nll([[2.0] * 31] * 12)
RUN = "runs/demo"


def ppl_run():
    make_run(RUN, [(make_records("none", 32, NLL), NLL), (make_records("yarn", 32, NLL), NLL)])
    Path(RUN, "spec.yaml").write_text("model: toy\npe: [none, yarn]\nlengths: [32]\ndata: texts\nfactor: 2\n")


def posgen_run():
    spec = PosGenRequest(tasks=("cot",), pe=("none", "resonance"), seeds=2)
    full_run(RUN, spec, {("cot", "none"): [0.60, 0.62], ("cot", "resonance"): [0.65, 0.66]})


KINDS = {
    "report": (["report"], ppl_run, "report.md", 2 * 2),
    "posgen": (["posgen", "table"], posgen_run, "posgen.md", 2 * 2 * 3),
}


@pytest.fixture(params=KINDS)
def kind(request, here, quick_pictures):
    """A command, the name of its report and the number of its records; its run is there."""
    command, make, name, num_records = KINDS[request.param]
    make()
    return command, name, num_records


def test_it_writes_and_names_its_files(kind, capsys):
    command, *_ = kind
    assert run_app([*command, RUN, "--out", "reports/demo.md"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    files = out.split()
    assert files[:4] == [f"reports/demo.{suffix}" for suffix in ("md", "csv", "json", "tex")]
    assert all(Path(file).is_file() for file in files)
    assert f"longeval {' '.join(command)} {RUN} --out reports/demo.md" in Path(files[0]).read_text()


def test_json_dash_leaves_only_json_on_stdout(kind, capsys):
    command, name, num_records = kind
    assert run_app([*command, RUN, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == num_records
    assert f"{RUN}/{name}" in err


def test_an_unfinished_run_is_told_also_when_quiet(kind, capsys):
    command, *_ = kind
    next(Path(RUN, "cells").iterdir()).unlink()
    assert run_app([*command, RUN, "-q"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "Not finished: 1 of " in err


def test_an_authors_title_and_text_stand_in_front(kind, capsys, refused):
    command, *_ = kind
    Path("notes.md").write_text("What this shows, and *what not*.\n")
    assert run_app([*command, RUN, "--out", "r.md", "--title", "A 10% test", "--preface", "notes.md"]) == 0
    lines = Path("r.md").read_text().splitlines()
    assert lines[:3] == ["# A 10% test", "", "What this shows, and *what not*."]
    assert any("--title 'A 10% test' --preface notes.md" in line for line in lines)
    assert "--preface missing.md" in refused([*command, RUN, "--out", "s.md", "--preface", "missing.md"])


def test_of_a_cell_in_two_runs_it_is_said_which_is_shown(here, quick_pictures, capsys):
    ppl_run()
    other = make_nll([[3.0] * 31] * 12)
    late = {"date": "2026-01-01T00:00:00+00:00"}
    make_run("runs/other", [(make_records("none", 32, other, provenance=late), other)])
    assert run_app(["report", RUN, "runs/other", "-q"]) == 0
    assert "the one of runs/other is shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["."], "."),
        ([RUN, "--out", "runs"], "--out runs"),
        ([RUN, "--out", "report.txt"], "--out report.txt"),
        ([RUN, "--json", "runs"], "--json runs"),
        ([RUN, "--json", f"{RUN}/spec.yaml/x.json"], "--json"),
        (["runs/empty"], "runs/empty"),
        (["runs/broken"], "broken"),
        ([], "RUN"),
    ],
)
def test_bad_requests_are_one_message_and_nothing_is_written(kind, refused, arguments, named):
    command, *_ = kind
    for name in ("empty", "broken"):
        Path("runs", name, "cells").mkdir(parents=True)
        Path("runs", name, "spec.yaml").write_text("model: toy\n")
    Path("runs/broken/cells/a.json").write_text("{}")
    assert named in refused([*command, *arguments])
