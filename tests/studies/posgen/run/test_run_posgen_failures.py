"""PosGen trainings that fail, diverge, run out of memory or are refused: what is finished stays, the reason is said."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from posgen_requests import BOTH, Told, carry_out, tiny_request

from longeval.errors import LongEvalError
from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen import work as work_module
from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.plan import check_settings, plan_posgen
from longeval.studies.posgen.state import initial_state, to_bytes
from longeval.studies.posgen.train import train


def test_a_cell_that_failed_after_it_had_been_done_is_done_again(store, monkeypatch):
    carry_out(tiny_request(pe=("none",), seeds=1), store)

    def fail(*_, **__):
        raise RuntimeError("no luck")

    monkeypatch.setattr(train_posgen, "train", fail)
    assert carry_out(tiny_request(pe=("none",), seeds=1), store, fresh=True).failed == 1
    monkeypatch.setattr(train_posgen, "train", train)
    mended = carry_out(tiny_request(pe=("none",), seeds=1), store)
    assert (mended.computed, mended.failed) == (1, 0)


def test_out_of_memory_says_how_many_seeds_it_was(store, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("all gone")

    monkeypatch.setattr(train_posgen, "train", full)
    stacked, alone = (carry_out(tiny_request(pe=("none",), stack=stack), store).records for stack in (True, False))
    assert "2 seeds" in stacked[0].error and "--no-stack" in stacked[0].error
    assert alone[0].error == "out of memory: all gone"


def test_a_seed_that_diverges_fails_alone_and_its_weights_are_not_used_again(store, often, monkeypatch):
    def spoil_one(config, setting, data, seeds, table, **options):
        state = train(config, setting, data, seeds, table, **options)
        state.weights["embedding"][1] = math.nan
        return state

    fine, lost = (training.id for training in plan_posgen(tiny_request(pe=("none",))).trainings)
    monkeypatch.setattr(train_posgen, "train", spoil_one)
    result = carry_out(tiny_request(pe=("none",)), store)
    assert [(r.params["seed"], r.status) for r in result.records] == [(0, "ok")] * 3 + [(1, "failed")]
    assert "weights are not finite after epoch 4" in result.records[-1].error
    assert store.curves(result.records[-1].cell) is None
    assert store.has_training("weights", fine) and not store.has_training("weights", lost)
    assert not store.has_checkpoints()
    monkeypatch.setattr(train_posgen, "train", train)
    told = Told()
    again = carry_out(tiny_request(pe=("none",)), store, told)
    assert (again.failed, again.computed, again.reused) == (0, 1, 1) and told.steps() == 12


def test_a_test_loss_that_is_no_number_is_said_of_sound_weights(store, monkeypatch):
    def overflow(*arguments, **options):
        return [dataclasses.replace(one, loss_P=one.loss_P * math.inf) for one in evaluate(*arguments, **options)]

    monkeypatch.setattr(work_module, "evaluate", overflow)
    result = carry_out(tiny_request(pe=("none",), seeds=1), store)
    assert result.records[0].error == "the loss is inf at position 4 of the test"


def test_a_training_whose_loss_is_no_number_says_when(store):
    told = Told()
    result = carry_out(tiny_request(pe=("none",), regimes=BOTH, stack=False, lr=1e30), store, told)
    assert [(record.status, record.params["seed"]) for record in result.records] == [("failed", 0), ("failed", 1)] * 2
    assert "its loss is nan in epoch 1" in result.records[0].error
    assert told.steps() == 2 * 3, "there is no use in its other epochs"
    assert not list(store._fs.glob(f"{store._root}/weights/*")) and not store.has_checkpoints()


def test_a_seed_that_diverges_while_it_catches_up_leaves_the_others_alone(store, often):
    request = tiny_request(pe=("none",))
    ahead, behind = plan_posgen(request).trainings
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=9))
    broken = initial_state(plan_posgen(request).experiment.config, (behind.seed,), "cpu")
    broken.weights["embedding"][0, 0, 0] = math.inf
    store.save_training("checkpoints", behind.id, to_bytes(broken))
    result = carry_out(request, store)
    assert [(r.params["seed"], r.status) for r in result.records] == [(0, "ok")] * 3 + [(1, "failed")]
    assert "its loss is nan in epoch 1" in result.records[-1].error
    assert store.has_training("weights", ahead.id) and not store.has_training("weights", behind.id)


def test_a_folder_of_other_settings_is_refused(store):
    carry_out(tiny_request(pe=("none",), seeds=1), store)
    check_settings([tiny_request(pe=("yarn",), regimes=BOTH, seeds=5, tasks=("recursive",))], store)
    with pytest.raises(LongEvalError, match=r"\(--tied false, not true; --lr 0.001, not 0.01\)") as caught:
        check_settings([tiny_request(lr=1e-3, tied=False)], store)
    assert "--out" in caught.value.remedy and caught.value.problem.startswith(f"--out {store.path}")
    with pytest.raises(LongEvalError, match="--epochs 5, not 4"):
        check_settings([tiny_request(), tiny_request(epochs=5)], Store(str(store.path) + "-other"))
