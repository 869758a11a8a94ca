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


def test_out_of_memory_fails_the_cells_with_its_reason(store, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("all gone")

    monkeypatch.setattr(train_posgen, "train", full)
    records = carry_out(tiny_request(pe=("none",)), store).records
    assert [record.error for record in records] == ["out of memory: all gone"] * 2


def test_a_seed_that_diverges_fails_alone_and_its_weights_are_not_used_again(store, often, monkeypatch):
    def spoil_one(*arguments, **options):
        state = train(*arguments, **options)
        if state.seed == 1:
            state.weights["embedding"][0] = math.nan
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
        found = evaluate(*arguments, **options)
        return dataclasses.replace(found, loss_P=found.loss_P * math.inf)

    monkeypatch.setattr(work_module, "evaluate", overflow)
    result = carry_out(tiny_request(pe=("none",), seeds=1), store)
    assert result.records[0].error == "the loss is inf at position 4 of the test"


def test_a_training_whose_loss_is_no_number_says_when(store):
    told = Told()
    result = carry_out(tiny_request(pe=("none",), regimes=BOTH, lr=1e30), store, told)
    assert [(record.status, record.params["seed"]) for record in result.records] == [("failed", 0), ("failed", 1)] * 2
    assert "its loss is nan in epoch 1" in result.records[0].error
    assert told.steps() == 2 * 3, "there is no use in its other epochs"
    assert not list(store._fs.glob(f"{store._root}/weights/*")) and not store.has_checkpoints()


def test_a_folder_of_other_settings_is_refused(store):
    carry_out(tiny_request(pe=("none",), seeds=1), store)
    check_settings([tiny_request(pe=("yarn",), regimes=BOTH, seeds=5, tasks=("recursive",))], store)
    with pytest.raises(LongEvalError, match=r"\(--tied false, not true; --lr 0.001, not 0.01\)") as caught:
        check_settings([tiny_request(lr=1e-3, tied=False)], store)
    assert "--out" in caught.value.remedy and caught.value.problem.startswith(f"--out {store.path}")
    with pytest.raises(LongEvalError, match="--epochs 5, not 4"):
        check_settings([tiny_request(), tiny_request(epochs=5)], Store(str(store.path) + "-other"))
