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

from longeval.cli.app import run_app
from longeval.report.collect import collect
from longeval.request import requests_from_yaml
from longeval.run.study import request_from_mapping
from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen.request import PosGenRequest
from longeval.studies.posgen.state import from_bytes

TINY = {
    "task": "cot",
    "pe": "none,yarn",
    "seeds": "2",
    "num-train": "40",
    "num-valid": "6",
    "num-test": "7",
    "length": "12",
    "test-length": "20",
    "modulus": "5",
    "layers": "1",
    "d-model": "12",
    "d-ff": "20",
    "heads": "2",
    "head-dim": "8",
    "theta": "100",
    "epochs": "4",
    "batch-size": "16",
    "lr": "1e-2",
    "validate-every": "2",
    "device": "cpu",
    "out": "run",
}


def arguments(**change):
    """A small request that works; `change` replaces, adds or (None) removes options."""
    options = TINY | {name.replace("_", "-"): value for name, value in change.items()}
    flags = [(f"--{name}", value) for name, value in options.items() if value is not None]
    return [
        "posgen",
        "train",
        *(part for flag, value in flags for part in ((flag,) if value is True else (flag, value))),
    ]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(folder):
    """Training id → weights."""
    return {path.stem: from_bytes(path.read_bytes()).weights for path in (folder / "weights").iterdir()}


def test_a_run_shows_a_table_and_leaves_a_repeatable_folder(capsys, tmp_path):
    assert run_app(arguments(regime="trained,swapped")) == 0
    shown = capsys.readouterr()
    assert "posgen_cot, trained" in shown.out and "posgen_cot, swapped" in shown.out and "± " in shown.out
    assert "longeval posgen table run" in shown.out and "longeval report" not in shown.out
    for seed in (0, 1):  # on a CPU one after another
        assert f"cot, trained with none · seed {seed}, epochs 1 … 4 (14 steps)" in shown.err
    assert "posgen-1x12 yarn 20 on posgen_cot (swapped, seed 1): accuracy_ood" in shown.err
    assert "8 cells computed; records in run" in shown.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "cells", "curves", "plan.json", "spec.yaml", "weights",
    ]  # fmt: skip
    assert [len(list((tmp_path / "run" / kind).iterdir())) for kind in ("cells", "curves", "weights")] == [8, 8, 4]
    assert run_app(["run", "run/spec.yaml"]) == 0
    assert "0 cells computed, 8 stored already" in capsys.readouterr().err
    assert run_app(["run", "run/spec.yaml", "--pe", "yarn", "--out", "yarn"]) == 0
    assert len(list((tmp_path / "yarn" / "cells").iterdir())) == 4


def test_json_is_all_that_stdout_gets(capsys):
    assert run_app(arguments(pe="none", json="-")) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(r["metric"], r["params"]["seed"]) for r in records] == [
        (metric, seed)
        for seed in (0, 1)
        for metric in ("accuracy_in_distribution", "accuracy_ood", "accuracy_generated")
    ]
    assert all(0 <= r["value"] <= 1 and r["backend"] == "posgen" for r in records)


def test_quiet_says_nothing(capsys, tmp_path):
    assert run_app([*arguments(pe="none", seeds="1"), "-q", "--json", "records.json"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(json.loads((tmp_path / "records.json").read_text())) == 3


def test_verbose_has_a_line_an_epoch(capsys):
    assert run_app([*arguments(pe="none"), "-v", "--stack"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines if "epoch" in line and "loss" in line] == [
        f"epoch {epoch} of 4" for epoch in (1, 2, 3, 4)
    ]
    assert not any("step of" in line for line in lines)


def test_a_dry_run_computes_and_writes_nothing(capsys, tmp_path):
    assert run_app(arguments(regime="trained,swapped", dry_run=True)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "nothing is computed" in shown and "GFLOP/s" in shown and "GiB" in shown
    assert "8 cells to compute from 4 trainings of 4 epochs, one after another; " in shown
    assert "│ cot │ swapped │ yarn │ none │ 1.66667 │ 2 │ 0 of 2 │" in shown
    assert list(tmp_path.iterdir()) == []
    assert run_app(arguments(regime="trained,swapped", dry_run=True, stack=True)) == 0
    assert "from 4 trainings of 4 epochs in 2 stacks; " in " ".join(capsys.readouterr().out.split())
    assert run_app(arguments(pe="none", stack=True)) == 0
    capsys.readouterr()
    assert run_app(arguments(regime="trained,swapped", dry_run=True, no_stack=True)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 cells to compute from 2 trainings of 4 epochs, one after another;" in shown
    assert "│ cot │ trained │ none │ none │ – │ 2 │ 2 of 2 │" in shown


def test_flags_override_the_preset_and_the_folder_says_all(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("longeval.cli.run.carry_out", lambda specs, **options: seen.extend(specs) or 0)
    assert run_app(["posgen", "train", "--preset", "smoke"]) == 0
    flags = "--task recursive --epochs 3 --untied --attention-scale --start-token --frozen-mlp --bf16 --init normal"
    flags += " --no-stack --pe yarn --pe-arg yarn.beta_fast=2 --regime swapped --native 257 --factor 3.95 --data-seed 4"
    assert run_app(["posgen", "train", "--preset", "smoke", *flags.split()]) == 0
    smoke, changed = seen
    assert smoke == PosGenRequest.read({"preset": "smoke"})
    given = {
        "tasks": ("recursive",), "epochs": 3, "tied": False, "attention_scale": True, "start_token": True,
        "frozen_mlp": True, "precision": "bf16", "init": "normal", "pe": ("yarn",), "regimes": ("swapped",),
        "pe_args": {"yarn": {"beta_fast": 2.0}}, "native": 257, "factor": 3.95, "data_seed": 4, "stack": False,
    }  # fmt: skip
    assert changed == PosGenRequest.read({"preset": "smoke"} | given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"j": "0"}, "--j 0"),
        ({"k": "0"}, "--k 0"),
        ({"modulus": "1"}, "--modulus 1"),
        ({"test_length": "11"}, "--test-length 11"),
        ({"length": "4"}, "--length 4"),
        ({"num_train": "1000"}, "625"),
        ({"task": "cott"}, "Did you mean cot"),
        ({"pe": "yarm"}, "--pe yarm"),
        ({"regime": "on"}, "--regime on"),
        ({"preset": "tiny"}, "--preset tiny"),
        ({"seeds": "0"}, "--seeds 0"),
        ({"seeds": "two"}, "--seeds 'two'"),
        ({"lr": "fast"}, "--lr 'fast'"),
        ({"factor": "each"}, "--factor each"),
        ({"pe_arg": "pi.x=1"}, "--pe-arg pi.x"),
        ({"tf32": True}, "--tf32"),
        ({"stack": True, "seeds": "1"}, "--stack: would be ignored"),
        ({"epochs": "1", "batch_size": "40"}, "that is one step"),
        ({"pe": "none,resonance", "native": "16"}, "--native 16: would be ignored"),
        ({"tf32": True, "bf16": True}, "--tf32 and --bf16"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"quiet": True, "verbose": True}, "-q and -v"),
        ({"json": "r.json", "dry_run": True}, "--json r.json"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_and_nothing_written(change, message, capsys, tmp_path):
    assert run_app(arguments(**change)) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == ""
    assert shown.err.strip().count("\n") == 0 and "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_settings_is_refused_and_left_alone(capsys, tmp_path):
    assert run_app(arguments(pe="none", seeds="1")) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    for extra in ((), ("--dry-run",), ("--fresh",)):
        assert run_app([*arguments(lr="1e-3"), *extra]) == 2
        assert "--out run: is a run folder of other settings (--lr 0.001, not 0.01)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_report_names_the_command_that_shows_posgen(capsys, tmp_path):
    assert run_app(arguments(pe="none", seeds="1")) == 0
    capsys.readouterr()
    assert run_app(["report", "run"]) == 2
    message = capsys.readouterr().err
    assert message == "longeval: run: holds PosGen cells alone. Use longeval posgen table run.\n"
    assert not list((tmp_path / "run").glob("report*"))


def test_failed_cells_are_status_3(capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no luck")

    monkeypatch.setattr(train_posgen, "train", fail)
    assert run_app(arguments(pe="none")) == 3
    shown = capsys.readouterr()
    assert "2 cells failed" in shown.err and "RuntimeError: no luck" in shown.err and "0, 2 failed" in shown.out


def test_ctrl_c_says_that_checkpoints_are_there(capsys, monkeypatch):
    def interrupt(config, setting, data, seeds, table, *, watch, state, **options):
        watch.checkpoint(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_posgen, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(train_posgen, "train", interrupt)
    assert run_app(arguments()) == 130
    assert "0 cells stored in run; the same command goes on from there" in capsys.readouterr().err


EAGER = "import longeval.studies.posgen.work as t; t.CHECKPOINT_EVERY_S = 0.0\n"
MAIN = EAGER + "import sys; from longeval.cli.app import run_app; sys.exit(run_app(sys.argv[1:]))"


def test_a_killed_training_resumes_to_the_weights_of_an_unkilled_one(tmp_path):
    # Enough epochs for the kill to fall between a checkpoint and the end.
    command = arguments(pe="yarn", epochs="60")
    process = subprocess.Popen([sys.executable, "-c", MAIN, *command, "-q"])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/*.npz")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "over before it could be killed"
    assert list((tmp_path / "run").glob("checkpoints/*.npz")) and not (tmp_path / "run" / "cells").exists()
    assert run_app([*command, "-q"]) == 0
    assert run_app([*arguments(pe="yarn", epochs="60", out="unkilled"), "-q"]) == 0
    resumed, unkilled = weights(tmp_path / "run"), weights(tmp_path / "unkilled")
    assert resumed.keys() == unkilled.keys() and len(resumed) == 2
    for training, tensors in resumed.items():
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, unkilled[training][name], rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not [name for _, _, names in os.walk(tmp_path / "run") for name in names if name.startswith(".")]


def test_a_folder_whose_first_training_is_under_way_can_be_repeated_from_its_spec(tmp_path, capsys):
    assert run_app(arguments(pe="none", seeds="1")) == 0
    for path in (tmp_path / "run" / "cells").iterdir():
        path.unlink()
    (tmp_path / "run" / "cells").rmdir()
    capsys.readouterr()
    assert run_app(["run", "run/spec.yaml"]) == 0
    assert "records in run\n" in capsys.readouterr().err
    (plain,) = requests_from_yaml((tmp_path / "run" / "spec.yaml").read_text(), origin="f")
    assert request_from_mapping(plain, origin="f").epochs == 4


def test_a_report_on_a_folder_with_more_than_posgen_leaves_posgen_out(tmp_path):
    assert run_app(arguments(pe="none", seeds="1")) == 0
    store = Store("run")
    (posgen,) = store.cells()
    record = dataclasses.replace(
        posgen.records[0], cell="abc", backend="fake", metric="perplexity", value=2.0, protocol="prefix", params={}
    )
    store.save([record])
    collection = collect(["run"])
    assert [cell.cell for cell in collection.cells] == ["abc"]
    assert "1 PosGen cell is left out here: longeval posgen table run shows them." in collection.notes
