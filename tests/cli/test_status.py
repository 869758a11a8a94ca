"""`longeval status`: what it says of a folder in which cells are done, run, failed, are skipped or left."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from records import make_group, make_nll, make_records, make_samples, make_task_records, planned, remember_plan

from longeval.cli import status
from longeval.cli.app import run_app
from longeval.run import leases
from longeval.run.leases import Lease, Leases
from longeval.store.folder import Store
from longeval.store.plan import PlannedRequest

TASK_SAMPLES = make_samples([1.0, 0.0])
OK = {pe: make_records(pe, 64, make_nll([[2.0] * 63] * 3)) for pe in ("none", "yarn")}
NO_ROOM = [make_records(pe, 128, status="failed", error="out of memory: 20 GiB") for pe in ("none", "yarn")]
OTHER = make_records("pi", 128, status="failed", error="\x1b[31mZeroDivisionError")
SKIPPED = make_records("pi", 64, status="skipped", error="too short")
LEFT = make_records("ntk", 64, status="failed")
RUNS = make_records("ntk", 128, status="failed")
TASK = make_task_records("none", 64, "passkey", TASK_SAMPLES)
GROUP = make_group("none", 64, "suite", ["passkey"], 0.5)
PPL = [*OK.values(), *NO_ROOM, OTHER, SKIPPED, LEFT, RUNS]
COUNTS = {"done": 3, "running": 1, "failed": 3, "skipped": 1, "left": 1}
"""Of all cells in the folder below."""


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    """The address of a run folder that doesn't exist yet."""
    if request.param == "local":
        return str(tmp_path / "run")
    if request.param == "memory":
        return f"memory://run-{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3_bucket')}/run"


def write_folder(place):
    """A run folder of two requests that share a cell; nothing runs in it."""
    store = Store(place)
    store.write_text("spec.yaml", "model: toy\n")
    remember_plan(store, [record for records in PPL for record in records])
    tasks = (*planned(TASK), *planned(GROUP), *planned(OK["none"]))
    store.remember_plan(PlannedRequest(command="tasks", digest="1" * 16, cells=tasks))
    for records in OK.values():
        store.save(records, make_nll([[2.0] * 63] * 3))
    store.save(TASK, TASK_SAMPLES)
    for records in (*NO_ROOM, OTHER, SKIPPED, GROUP):
        store.save(records)
    return store


def runner_file(store, **changes):
    """Writes what a process says of itself: this one, unless changes say otherwise."""
    made = dataclasses.replace(Leases(store, print)._me, **{"beat": time.time()} | changes)
    store.write_text(f"runners/{made.id}.json", json.dumps(dataclasses.asdict(made)))
    return made


def lease_file(store, records, runner, since="2026-01-02T03:04:05+00:00"):
    (cell,) = planned(records)
    text = json.dumps(dataclasses.asdict(Lease(runner=runner, since=since, cell=cell)))
    store.write_text(f"leases/{cell.cell}", text)


def write_running(store):
    """One cell runs, and a process of another machine has died under another one."""
    alive = runner_file(store, workers=4, seconds_left=125.0, finished=7)
    lease_file(store, RUNS, alive.id)
    dead = runner_file(store, id="dead", machine="another", host="node-b", pid=77, beat=time.time() - 180)
    lease_file(store, LEFT, dead.id)
    return alive, dead


def json_of(capsys, place):
    capsys.readouterr()
    assert run_app(["status", place, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def shown(capsys, *arguments):
    capsys.readouterr()
    assert run_app(["status", *arguments]) == 0
    return capsys.readouterr().out


def test_what_is_said_of_a_folder_in_which_a_command_works(place, capsys):
    store = write_folder(place)
    alive, dead = write_running(store)
    found = json_of(capsys, place)
    assert list(found) == [
        *("folder", "date", "has_plan", "cells", "requests", "running", "failed", "damaged", "processes")
    ]
    assert found["folder"] == place and found["has_plan"] is True and found["cells"] == COUNTS
    ppl, tasks = found["requests"]
    assert ppl == {
        "command": "ppl",
        "models": ["toy"],
        "methods": ["none", "yarn", "pi", "ntk"],
        "lengths": [64, 128],
        "data": [OK["none"][0].data],
        "tasks": [],
        "cells": {"done": 2, "running": 1, "failed": 3, "skipped": 1, "left": 1},
    }
    assert (tasks["command"], tasks["tasks"], tasks["cells"]["done"]) == ("tasks", ["passkey"], 2)
    (running,) = found["running"]
    assert (running["pe"], running["length"], running["process"]) == ("ntk", 128, alive.id)
    assert running["since"] == "2026-01-02T03:04:05+00:00"
    assert [(one["error"], [cell["pe"] for cell in one["cells"]]) for one in found["failed"]] == [
        ("out of memory: 20 GiB", ["none", "yarn"]),
        ("\x1b[31mZeroDivisionError", ["pi"]),
    ]
    assert [(one["id"], one["alive"], one["workers"], one["seconds_left"]) for one in found["processes"]] == [
        (alive.id, True, 4, 125.0),
        (dead.id, False, 1, None),
    ]
    said = datetime.datetime.fromisoformat(found["processes"][1]["last_sign"]).timestamp()
    assert abs(said - dead.beat) <= 1.0


def test_the_tables_name_the_same(tmp_path, capsys):
    store = write_folder(str(tmp_path / "run"))
    write_running(store)
    out = shown(capsys, str(tmp_path / "run"))
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"{tmp_path}/run: 3 of 9 cells done, 1 running, 3 failed, 1 skipped, 1 left" in lines
    assert any(line.startswith("ppl toy · none, yarn, pi, ntk · 64, 128") and "2 1 3 1 1" in line for line in lines)
    (running,) = (line for line in lines if line.startswith("toy ntk"))
    assert f"128 {os.uname().nodename}, {os.getpid()}" in running and running.endswith("days")
    (dead,) = (line for line in lines if line.startswith("node-b, 77"))
    assert "dead" in dead and "no sign of life for 3 min" in dead
    assert any("4 workers, 7 cells finished, 2 min 05 s left (said 0 s ago)" in line for line in lines)
    (failed,) = (line for line in lines if line.startswith("2 out of memory"))
    assert "toy none 128" in failed and "toy yarn 128" in failed
    assert "\x1b" not in out and "\\x1b[31mZeroDivisionError" in out


def test_it_only_reads(tmp_path, capsys):
    store = write_folder(str(tmp_path / "run"))
    write_running(store)

    def all_files():
        return {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    before = all_files()
    json_of(capsys, store.path)
    shown(capsys, store.path)
    assert all_files() == before


def test_a_run_whose_first_cell_is_under_way(place, capsys):
    store = Store(place)
    alive = runner_file(store)
    lease_file(store, RUNS, alive.id)
    found = json_of(capsys, place)
    assert found["has_plan"] is False and found["cells"] == {**dict.fromkeys(COUNTS, 0), "running": 1}
    assert [(cell["pe"], cell["length"]) for cell in found["running"]] == [("ntk", 128)]
    assert found["requests"][0]["command"] is None


def test_a_folder_without_a_plan_says_what_is_stored(tmp_path, capsys):
    store = write_folder(str(tmp_path / "run"))
    store.remove("plan.json")
    found = json_of(capsys, store.path)
    assert found["cells"] == {**COUNTS, "running": 0, "left": 0}
    (request,) = found["requests"]
    assert request["command"] is None and request["tasks"] == ["passkey"]
    assert {*request["methods"]} == {"none", "yarn", "pi"}


def test_cells_beside_the_plan_those_without_artefact_and_damaged_ones(tmp_path, capsys):
    store = write_folder(str(tmp_path / "run"))
    beside = make_records("abf", 64, status="failed", error="why")
    store.save(beside)
    store.remove(f"nll/{OK['none'][0].cell}.npz")
    damaged = NO_ROOM[0][0].cell
    store.write_text(f"cells/{damaged}.json", "{}")
    found = json_of(capsys, store.path)
    assert found["damaged"] == [damaged]
    assert found["cells"] == {"done": 2, "running": 0, "failed": 3, "skipped": 1, "left": 4}
    assert [request["command"] for request in found["requests"]] == ["ppl", "tasks", None]
    assert found["requests"][2]["methods"] == ["abf"] and found["requests"][2]["cells"]["failed"] == 1


def test_what_is_computed_again_runs_although_it_is_stored(tmp_path, capsys):
    store = write_folder(str(tmp_path / "run"))
    lease_file(store, OK["yarn"], runner_file(store).id)
    lease_file(store, TASK, "gone")
    assert json_of(capsys, store.path)["cells"] == {"done": 2, "running": 1, "failed": 3, "skipped": 1, "left": 2}


def test_watching_ends_when_nothing_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(status, "REFRESH_S", 0.05)
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    store = write_folder(str(tmp_path / "run"))
    alive = runner_file(store)
    ending = threading.Timer(0.5, store.remove, (f"runners/{alive.id}.json",))
    ending.start()
    began = time.monotonic()
    out = shown(capsys, store.path, "--watch")
    assert time.monotonic() - began > 0.4
    assert "3 of 9 cells done" in out and str(os.getpid()) not in out


def test_watching_waits_for_a_folder(tmp_path, capsys):
    path = str(tmp_path / "run")
    beginning = threading.Timer(0.5, write_folder, (path,))
    beginning.start()
    out = shown(capsys, path, "--watch")
    beginning.join()
    assert "cells done" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["nowhere"], "nowhere"), (["."], "run folder"), (["run", "--watch", "--json", "-"], "--watch")],
)
def test_refusals(refused, arguments, named):
    assert named in refused(["status", *arguments])


def test_it_imports_no_engine(tmp_path):
    store = write_folder(str(tmp_path / "run"))
    write_running(store)
    code = "import sys; from longeval.cli.app import run_app; run_app(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "status", store.path]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    loaded = {*answer.stdout.splitlines()[-1].split()}
    assert "longeval.run.status" in loaded
    assert loaded & {"torch", "transformers", "scipy", "pandas", "matplotlib", "datasets", "pyarrow", "ray"} == set()
