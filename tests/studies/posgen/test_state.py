"""Checkpoints: everything comes back, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tiny_posgen as tiny
import torch
from posgen_requests import about, rewritten, with_seed_axis
from tiny_posgen import trained

from longeval.studies.posgen.state import History, ValidLoss, from_bytes, initial_state, to_bytes


@pytest.fixture(scope="module")
def state():
    return trained(
        tiny.config(tied=False, start_token=True),
        seed=8,
        setting=tiny.setting(epochs=2),
        valid_tables={"none": tiny.table(), "yarn": tiny.table("yarn")},
    )


def test_all_of_a_state_comes_back(state):
    same_state(from_bytes(to_bytes(state)), state)
    assert (state.seed, state.epoch, len(state.history.valid)) == (8, 2, 2)


def same_state(back, state):
    assert (back.config, back.seed, back.epoch, back.history) == (state.config, state.seed, state.epoch, state.history)
    for part in ("weights", "first", "second"):
        one, other = getattr(state, part), getattr(back, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].abs().sum() > 0 for name in one)


def test_without_moments_it_is_a_third_and_can_only_be_evaluated(state):
    content = to_bytes(state, moments=False)
    back = from_bytes(content)
    assert back.first == back.second == {}
    assert torch.equal(back.weights["1.mlp.in"], state.weights["1.mlp.in"])
    assert len(content) < 0.5 * len(to_bytes(state))


def test_a_state_says_why_its_weights_are_of_no_use():
    loss = ValidLoss(epoch=2, table="x", in_distribution=math.inf, ood=0.1)
    fine = dataclasses.replace(
        initial_state(tiny.config(), 1, "cpu"), epoch=2, history=History(train_loss=(2.0, 1.0), valid=(loss,))
    )
    wrong = dataclasses.replace(fine, history=History(train_loss=(2.0, math.inf, 1.0), valid=(loss,)))
    assert (fine.failure(), fine.diverged) == (None, False)
    assert (wrong.failure(), wrong.diverged) == ("the training diverged: its loss is inf in epoch 2", True)
    assert from_bytes(to_bytes(wrong)).history == wrong.history, "also losses that are no numbers come back"
    fine.weights["1.mlp.in"][3, 2] = math.nan
    assert fine.failure() == "the training diverged: its weights are not finite after epoch 2"


def test_damaged_files_are_value_errors(state):
    content = to_bytes(state)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    for broken in (b"", b"PK", content[: len(content) // 2], content[:-30], bytes(flipped), b"\x93NUMPY" + content):
        with pytest.raises(ValueError, match="not a PosGen checkpoint"):
            from_bytes(broken)


def test_files_that_do_not_fit_are_value_errors(state):
    content = to_bytes(state)
    norm = "weights/norm"
    for broken, message in (
        (about(content, format=1), "format 1"),
        (about(content, config={"modulus": 5, "colour": 1}), "colour"),
        (about(content, config={"modulus": 1}), "weights/embedding"),
        (rewritten(content, **{norm: None}), norm),
        (rewritten(content, **{norm: np.ones(3, np.float32)}), norm),
        (rewritten(content, **{norm: np.ones(12, np.int64)}), norm),
        (rewritten(content, **{norm: np.ones((1, 12), np.float32)}), norm),
        (rewritten(content, **{"second/norm": None}), "second/norm"),
        (rewritten(content, about=None), "about"),
    ):
        with pytest.raises(ValueError, match=message):
            from_bytes(broken)


def test_nothing_is_unpickled(state):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a checkpoint was unpickled",))

    with pytest.raises(ValueError, match="pickle"):
        from_bytes(rewritten(to_bytes(state), **{"weights/norm": np.array([Trap()], dtype=object)}))


@pytest.mark.parametrize("moments", [True, False])
def test_files_of_the_version_with_an_axis_of_seeds_are_read(state, moments):
    content = to_bytes(state, moments=moments)
    back = from_bytes(with_seed_axis(content))
    same_state(back, state if moments else dataclasses.replace(state, first={}, second={}))
    assert to_bytes(back, moments=moments) == content
    with pytest.raises(ValueError, match="weights/embedding"):
        from_bytes(about(content, format=2))
