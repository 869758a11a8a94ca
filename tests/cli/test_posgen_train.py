"""`longeval posgen train` as a user meets it: real files, exit statuses, messages, kills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_lines import command_line
from posgen_requests import TINY

from longeval.cli.app import run_app
from longeval.report.collect import collect
from longeval.request import requests_from_yaml
from longeval.run.study import request_from_mapping
from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen.request import PosGenRequest
from longeval.studies.posgen.state import History, from_bytes

NUMBERS = {name: str(value) for name, value in TINY.items() if name not in ("tasks", "pe")}
SMALL = {"task": "cot", "pe": "none,yarn", "out": "run"} | NUMBERS

pytestmark = pytest.mark.usefixtures("here")


def arguments(**change):
    """A small request that works; `change` replaces, adds or (None) removes options."""
    return command_line("posgen", "train", **SMALL | change)


def weights(folder):
    """Training id → weights."""
    return {path.stem: from_bytes(path.read_bytes()).weights for path in (folder / "weights").iterdir()}


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_quiet_says_nothing(capsys, here):
    assert run_app([*arguments(pe="none", seeds="1", json="records.json"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(json.loads((here / "records.json").read_text())) == 3


def test_verbose_has_a_line_an_epoch(capsys):
    assert run_app(arguments(pe="none", verbose=True, seeds="1")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines if "epoch" in line and "loss" in line] == [
        f"epoch {epoch} of 4" for epoch in (1, 2, 3, 4)
    ]
    assert not any("step of" in line for line in lines)


def test_a_dry_run_counts_and_writes_nothing(capsys, here):
    def shown(**change):
        assert run_app(arguments(regime="trained,swapped", dry_run=True, **change)) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "from 4 trainings of 4 epochs, one after another; " in shown()
    assert list(here.iterdir()) == []
    assert run_app(arguments(pe="none")) == 0
    capsys.readouterr()
    after = shown()
    assert "6 cells to compute from 2 trainings of 4 epochs, one after another;" in after
    assert "│ cot │ trained │ none │ none │ – │ 2 │ 2 of 2 │" in after


def test_flags_override_the_preset(monkeypatch):
    seen = []
    monkeypatch.setattr("longeval.cli.run.carry_out", lambda specs, **options: seen.extend(specs) or 0)
    assert run_app(["posgen", "train", "--preset", "smoke-test"]) == 0
    flags = "--task recursive --epochs 3 --untied --attention-scale --start-token --frozen-mlp --bf16 --init normal"
    flags += " --pe yarn --pe-arg yarn.beta_fast=2 --regime swapped --native 257 --factor 3.95 --data-seed 4"
    assert run_app(["posgen", "train", "--preset", "smoke-test", *flags.split()]) == 0
    smoke, changed = seen
    assert smoke == PosGenRequest.read({"preset": "smoke-test"})
    given = {
        "tasks": ("recursive",), "epochs": 3, "tied": False, "attention_scale": True, "start_token": True,
        "frozen_mlp": True, "precision": "bf16", "init": "normal", "pe": ("yarn",), "regimes": ("swapped",),
        "pe_args": {"yarn": {"beta_fast": 2.0}}, "native": 257, "factor": 3.95, "data_seed": 4,
    }  # fmt: skip
    assert changed == PosGenRequest.read({"preset": "smoke-test"} | given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"j": "0"}, "--j 0"),
        ({"test_length": "11"}, "--test-length 11"),
        ({"num_train": "1000"}, "625"),
        ({"task": "cott"}, "Did you mean cot"),
        ({"pe": "yarm"}, "--pe yarm"),
        ({"regime": "on"}, "--regime on"),
        ({"preset": "tiny"}, "--preset tiny"),
        ({"seeds": "two"}, "--seeds 'two'"),
        ({"lr": "fast"}, "--lr 'fast'"),
        ({"factor": "each"}, "--factor each"),
        ({"pe_arg": "pi.x=1"}, "--pe-arg pi.x"),
        ({"tf32": True}, "--tf32"),
        ({"tf32": True, "bf16": True}, "--tf32 and --bf16"),
        ({"epochs": "1", "batch_size": "40"}, "--epochs 1"),
        ({"pe": "none,resonance", "native": "16"}, "--native 16: would be ignored"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"quiet": True, "verbose": True}, "-q and -v"),
        ({"json": "r.json", "dry_run": True}, "--json r.json"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_and_nothing_written(change, said, refused):
    assert said in refused(arguments(**change))


def test_a_folder_of_other_settings_is_refused_and_left_alone(refused, here):
    assert run_app([*arguments(pe="none", seeds="1"), "-q"]) == 0
    before = written(here / "run")
    for extra in ({}, {"dry_run": True}, {"fresh": True}):
        assert "(--lr 0.001, not 0.01)" in refused(arguments(lr="1e-3", **extra))
    assert written(here / "run") == before


def test_a_report_names_the_command_that_shows_posgen(refused):
    assert run_app([*arguments(pe="none", seeds="1"), "-q"]) == 0
    assert "longeval posgen table run" in refused(["report", "run"])


def test_a_report_on_a_folder_with_more_than_posgen_leaves_posgen_out():
    assert run_app(arguments(pe="none", seeds="1")) == 0
    store = Store("run")
    (posgen,) = store.cells()
    others = {"backend": "fake", "metric": "perplexity", "value": 2.0, "protocol": "prefix", "params": {}}
    store.save([dataclasses.replace(posgen.records[0], cell="abc", **others)])
    collection = collect(["run"])
    assert [cell.cell for cell in collection.cells] == ["abc"]
    assert any("1 cell is left out" in note and "longeval posgen table run" in note for note in collection.notes)


def test_ctrl_c_says_that_checkpoints_are_there(capsys, monkeypatch):
    def interrupt(state, request, data, table, *, on_epoch, **options):
        on_epoch(dataclasses.replace(state, epoch=1, history=History(train_loss=(1.5,))))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_posgen, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(train_posgen, "train", interrupt)
    assert run_app(arguments()) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


EAGER = "import longeval.studies.posgen.work as t; t.CHECKPOINT_EVERY_S = 0.0\n"
MAIN = EAGER + "import sys; from longeval.cli.app import run_app; sys.exit(run_app(sys.argv[1:]))"


def test_a_killed_training_resumes_to_the_weights_of_an_unkilled_one(here):
    # Enough epochs for the kill to fall between a checkpoint and the end.
    command = arguments(pe="yarn", epochs="60", quiet=True)
    process = subprocess.Popen([sys.executable, "-c", MAIN, *command])
    deadline = time.monotonic() + 120
    while not list((here / "run").glob("checkpoints/*.npz")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "over before it could be killed"
    assert list((here / "run").glob("checkpoints/*.npz")) and not (here / "run" / "cells").exists()
    assert run_app(command) == 0
    assert run_app(arguments(pe="yarn", epochs="60", quiet=True, out="unkilled")) == 0
    resumed, unkilled = weights(here / "run"), weights(here / "unkilled")
    assert resumed.keys() == unkilled.keys() and len(resumed) == 2
    for training, tensors in resumed.items():
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, unkilled[training][name], rtol=1e-4, atol=1e-5)
    assert not (here / "run" / "checkpoints").exists()
    assert not [name for _, _, names in os.walk(here / "run") for name in names if name.startswith(".")]


def test_a_folder_whose_spec_says_that_seeds_are_stacked_can_be_repeated(here):
    assert run_app(arguments(pe="none")) == 0
    spec, (lost, kept) = here / "run" / "spec.yaml", sorted((here / "run" / "cells").iterdir())
    spec.write_text(spec.read_text() + "stack: true\n")
    before = json.loads(lost.read_text())
    lost.unlink()
    unchanged = kept.stat().st_mtime_ns
    assert run_app(["run", "run"]) == 0
    after = json.loads(lost.read_text())
    values = [[(one["cell"], one["metric"], one["value"]) for one in found["records"]] for found in (before, after)]
    assert values[0] == values[1] and kept.stat().st_mtime_ns == unchanged
    assert "stack" not in spec.read_text()


def test_a_folder_whose_first_training_is_under_way_can_be_repeated_from_its_spec(here):
    assert run_app(arguments(pe="none", seeds="1")) == 0
    cells = here / "run" / "cells"
    for path in cells.iterdir():
        path.unlink()
    cells.rmdir()
    assert run_app(["run", "run/spec.yaml"]) == 0
    assert len(list(cells.iterdir())) == 1
    (plain,) = requests_from_yaml((here / "run" / "spec.yaml").read_text(), origin="f")
    assert request_from_mapping(plain, origin="f").epochs == 4
