"""PosGen trainings that fail, diverge, run out of memory or are refused: what is finished stays, the reason is said."""

from __future__ import annotations

import math

import pytest
import torch
from posgen_requests import carry_out, tiny_request

from longeval import train_posgen
from longeval.errors import LongEvalError
from longeval.posgen.train import train
from longeval.run_posgen import check_settings
from longeval.store import Store

ALL = ("none", "resonance", "yarn", "resonance_yarn")
BOTH = ("trained", "swapped")


def test_a_stack_that_fails_is_recorded_and_the_others_go_on(store, monkeypatch):
    def break_yarn(config, setting, data, seeds, table, **options):
        if table.attention_factor > 1:
            raise RuntimeError("no luck")
        return train(config, setting, data, seeds, table, **options)

    monkeypatch.setattr(train_posgen, "train", break_yarn)
    result = carry_out(tiny_request(pe=("yarn", "none")), store)
    failed = [record for record in result.records if record.status == "failed"]
    assert [(r.pe, r.metric, r.value, r.error) for r in failed] == [
        ("yarn", "accuracy_ood", None, "RuntimeError: no luck")
    ] * 2
    assert result.failed == 2 and len([r for r in result.records if r.status == "ok"]) == 6
    monkeypatch.setattr(train_posgen, "train", train)
    mended = carry_out(tiny_request(pe=("yarn", "none")), store)
    assert (mended.failed, mended.computed, mended.reused) == (0, 2, 2)


def test_a_cell_that_failed_after_it_had_been_done_is_done_again(store, monkeypatch):
    carry_out(tiny_request(pe=("none",), seeds=1), store)

    def fail(*_, **__):
        raise RuntimeError("no luck")

    monkeypatch.setattr(train_posgen, "train", fail)
    assert carry_out(tiny_request(pe=("none",), seeds=1), store, fresh=True).failed == 1
    mended = carry_out(tiny_request(pe=("none",), seeds=1), store)
    assert (mended.computed, mended.failed) == (1, 0)


def test_out_of_memory_says_how_many_seeds_it_was(store, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("all gone")

    monkeypatch.setattr(train_posgen, "train", full)
    result = carry_out(tiny_request(pe=("none",)), store)
    assert result.records[0].error == "out of memory with 2 seeds at once: all gone"


def test_a_seed_that_diverges_fails_alone(store, monkeypatch):
    def spoil_one(config, setting, data, seeds, table, **options):
        state = train(config, setting, data, seeds, table, **options)
        state.weights["embedding"][1] = math.nan
        return state

    monkeypatch.setattr(train_posgen, "train", spoil_one)
    result = carry_out(tiny_request(pe=("none",)), store)
    assert [(r.params["seed"], r.status) for r in result.records] == [(0, "ok")] * 3 + [(1, "failed")]
    assert result.records[-1].error == "the loss is nan at position 4 of the test"
    assert not store.has_curves(result.records[-1].cell)


def test_a_training_whose_loss_is_no_number_says_when(store):
    result = carry_out(tiny_request(pe=("none",), seeds=1, lr=1e30), store)
    assert result.records[0].status == "failed"
    assert result.records[0].error.startswith("the training diverged: its loss is ")


def test_a_request_that_cannot_run_ends_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise LongEvalError("--device: gone", "Bring it back.")

    monkeypatch.setattr(train_posgen, "train", refuse)
    store = Store(str(tmp_path / "run"))
    with pytest.raises(LongEvalError, match="gone"):
        carry_out(tiny_request(), store)
    assert not (tmp_path / "run").exists()
    result = carry_out(tiny_request(), store, under_way=True)
    assert result.failed == 4 and result.records[0].error == "--device: gone. Bring it back."


def test_a_folder_of_other_settings_is_refused(store):
    carry_out(tiny_request(pe=("none",), seeds=1), store)
    check_settings([tiny_request(pe=("yarn",), regimes=BOTH, seeds=5, tasks=("recursive",))], store)
    with pytest.raises(
        LongEvalError, match=r"other settings \(--tied false, not true; --lr 0.001, not 0.01\)"
    ) as caught:
        check_settings([tiny_request(lr=1e-3, tied=False)], store)
    assert "--out" in caught.value.remedy and caught.value.problem.startswith(f"--out {store.path}")
    with pytest.raises(LongEvalError, match="--epochs 5, not 4"):
        check_settings([tiny_request(), tiny_request(epochs=5)], Store(str(store.path) + "-other"))
