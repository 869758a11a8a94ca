"""Checkpoints: a training that was killed ends with the same weights, and damaged ones are not used."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from studies.finetune.tiny_training import furthest, program, request, run, tiny

from longeval.errors import LongEvalError
from longeval.studies.finetune.checkpoint import Checkpoints, StepLog, TrainingState


def state(step: int) -> TrainingState:
    known = {"loss": 0.5, "plain_loss": None, "lr": 1e-3, "gradient_norm": 1.0, "seconds": 1.0, "tokens": 8}
    log = tuple(StepLog(step=number, **known) for number in range(1, step + 1))
    return TrainingState(log=log, weights={"a": torch.full((3,), float(step))}, moments={})


def steps_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "a.safetensors", "b", "b.safetensors")]
    killed = program(*paths[:2], "5")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps_in(tmp_path / "a") == ["step-000002", "step-000004"]
    went_on = program(*paths[:2], "0")
    assert went_on.returncode == 0, went_on.stderr
    whole = program(*paths[2:], "0")
    assert whole.returncode == 0, whole.stderr
    assert went_on.stdout == whole.stdout  # all losses, to the last digit
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_moments_and_the_log_are_restored(tmp_path):
    asked = request(steps=4, checkpoint_every=2)
    whole = tiny()
    log = run(whole, asked, tmp_path)
    for weight in (other := tiny()).parameters():
        weight.data.zero_()  # all must come from the checkpoint
    told = []
    resumed = run(other, asked, tmp_path, told=lambda step: told.append(step.step))
    assert told == [3, 4]
    assert (resumed.loss, resumed.lr, resumed.gradient_norm) == (log.loss, log.lr, log.gradient_norm)
    assert resumed.seconds[:2] == log.seconds[:2]
    assert furthest(whole, other) == 0


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step in (9, 10, 1_000_000):
        checkpoints.save(state(step))
    assert steps_in(tmp_path) == ["step-000010", "step-1000000"]
    assert checkpoints.newest().step == 1_000_000
    checkpoints.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "no json", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, damage):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    weights = tmp_path / "step-000002" / "weights.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-2])
    elif damage == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no json":
        (tmp_path / "step-000002" / "about.json").write_text("{")
    else:
        weights.unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest()
    assert found.step == 1
    assert torch.equal(found.weights["a"], torch.ones(3))
    assert "step-000002" in caplog.text
    checkpoints.save(state(2))  # made again, in the place of the damaged one
    assert checkpoints.newest().step == 2
    assert steps_in(tmp_path) == ["step-000001", "step-000002"]


def test_without_a_whole_checkpoint_training_starts_anew(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "none"))
    assert checkpoints.newest() is None
    (tmp_path / "none" / "step-000003").mkdir(parents=True)
    (tmp_path / "none" / "other").mkdir()
    assert checkpoints.newest() is None


def test_checkpoints_of_another_training_are_refused(tmp_path):
    Checkpoints(str(tmp_path), training="one").save(state(1))
    assert Checkpoints(str(tmp_path), training="one").newest().step == 1
    with pytest.raises(LongEvalError):
        Checkpoints(str(tmp_path), training="other").newest()
    with pytest.raises(LongEvalError):
        run(tiny(), request(), tmp_path, checkpoints=Checkpoints(str(tmp_path), training="one"))


def test_what_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(state(1))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError):
        checkpoints.save(state(2))
    assert steps_in(tmp_path) == ["step-000001"]


def test_a_checkpoint_is_due_by_steps_or_by_time(tmp_path, monkeypatch):
    by_steps = Checkpoints(str(tmp_path), every=3)
    assert [step for step in range(1, 8) if by_steps.due(step)] == [3, 6]
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    by_time = Checkpoints(str(tmp_path))
    now[0] = 599
    assert not by_time.due(1)
    now[0] = 601
    assert by_time.due(2)
    by_time.save(state(2))
    assert not by_time.due(3)
