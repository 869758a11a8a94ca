"""Checkpoints: everything comes back, and nothing else is taken for one."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import tiny_posgen as tiny
import torch

from longeval.studies.posgen.state import History, ValidLoss, from_bytes, initial_state, stack, to_bytes
from longeval.studies.posgen.train import train


@pytest.fixture(scope="module")
def state():
    return train(
        tiny.config(tied=False, start_token=True),
        tiny.setting(),
        [tiny.DATA] * 2,
        (3, 8),
        tiny.table(),
        device="cpu",
        valid_tables={"none": tiny.table(), "yarn": tiny.table("yarn")},
        until=2,
    )


def rewritten(content, **changes):
    """The file with some arrays changed (None: left out)."""
    with np.load(io.BytesIO(content)) as arrays:
        held = {name: arrays[name] for name in arrays.files} | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in held.items() if array is not None})
    return buffer.getvalue()


def about(content, **changes):
    with np.load(io.BytesIO(content)) as arrays:
        plain = json.loads(arrays["about"].tobytes()) | changes
    return rewritten(content, about=np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8))


def test_all_of_a_state_comes_back(state):
    back = stack([from_bytes(to_bytes(state, index)) for index in (0, 1)])
    assert (back.config, back.seeds, back.epoch, back.history) == (state.config, (3, 8), 2, state.history)
    assert back.history[0].valid and back.history[0] != back.history[1]
    for part in ("weights", "first", "second"):
        one, other = getattr(state, part), getattr(back, part)
        assert one.keys() == other.keys() == state.config.shapes.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].abs().sum() > 0 for name in one)


def test_without_moments_it_is_a_third_and_can_only_be_evaluated(state):
    content = to_bytes(state, moments=False)
    back = from_bytes(content)
    assert back.first == back.second == {}
    assert torch.equal(back.weights["1.mlp.in"][0], state.weights["1.mlp.in"][0])
    assert len(content) < 0.5 * len(to_bytes(state))


def test_a_state_says_why_its_weights_are_of_no_use():
    state = initial_state(tiny.config(), (0, 1), "cpu")
    loss = ValidLoss(epoch=2, table="x", in_distribution=math.inf, ood=0.1)
    fine, wrong = History(train_loss=(2.0, 1.0)), History(train_loss=(2.0, math.inf, 1.0), valid=(loss,), stacked=3)
    object.__setattr__(state, "history", (fine, wrong))
    assert (state.failure(0), state.failure(1)) == (None, "the training diverged: its loss is inf in epoch 2")
    assert state.diverged == (1,)
    assert from_bytes(to_bytes(state, 1)).history == (wrong,), "also losses that are no numbers come back"
    state.weights["1.mlp.in"][0, 3, 2] = math.nan
    object.__setattr__(state, "epoch", 2)
    assert state.failure(0) == "the training diverged: its weights are not finite after epoch 2"


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
        (about(content, format=1), "format is 1"),
        (about(content, config={"modulus": 5, "colour": 1}), "colour"),
        (about(content, config={"modulus": 1}), "weights/embedding"),
        (rewritten(content, **{norm: None}), norm),
        (rewritten(content, **{norm: np.ones((1, 3), np.float32)}), norm),
        (rewritten(content, **{norm: np.ones((1, 12), np.int64)}), norm),
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


def test_only_states_of_one_epoch_and_model_are_stacked(state):
    first, second = state.alone(0), state.alone(1)
    object.__setattr__(second, "epoch", 3)
    with pytest.raises(AssertionError):
        stack([first, second])
    with pytest.raises(AssertionError):
        stack([initial_state(tiny.config(), (0,), "cpu"), initial_state(tiny.config(tied=False), (1,), "cpu")])
