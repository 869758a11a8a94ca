"""The training loop against torch's own, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from studies.finetune.tiny_training import batches, furthest, plain_loop, request, run, tiny

from longeval.studies.finetune.checkpoint import Checkpoints
from longeval.studies.finetune.train import Diverged, learning_rate


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("clip", [0.0, 0.5, 1e3])
def test_steps_in_float64_are_those_of_a_plain_loop(tmp_path, steps, clip):
    ours, plain = tiny(torch.float64), tiny(torch.float64)
    asked = request(steps=steps, clip=clip, weight_decay=0.1)
    log = run(ours, asked, tmp_path)
    losses = plain_loop(plain, asked)
    assert log.loss == pytest.approx(losses, rel=1e-12)
    assert furthest(ours, plain) < 1e-10
    assert furthest(ours, tiny(torch.float64)) > 1e-3


def test_borders_of_documents_leave_labels_out(tmp_path):
    ours, plain = tiny(torch.float64), tiny(torch.float64)
    asked, given = request(), batches(documents=True)
    log = run(ours, asked, tmp_path, given)
    assert log.loss == pytest.approx(plain_loop(plain, asked, given), rel=1e-12)
    assert furthest(ours, plain) < 1e-10


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_passes_of_any_size_give_the_same_weights(tmp_path, micro_batch):
    given = batches(documents=True)  # so that sequences count differently many tokens
    one, other = tiny(torch.float64), tiny(torch.float64)
    run(one, request(), tmp_path / "a", given, micro_batch=4)
    run(other, request(), tmp_path / "b", given, micro_batch=micro_batch)
    assert furthest(one, other) < 1e-12


def test_gradient_checkpointing_changes_nothing(tmp_path):
    one, other = tiny(torch.float64), tiny(torch.float64)
    run(one, request(), tmp_path / "a")
    run(other, request(), tmp_path / "b", gradient_checkpointing=True)
    assert furthest(one, other) < 1e-12
    assert not other.is_gradient_checkpointing


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.3, 4])
def test_learning_rates_are_those_of_transformers_one_step_on(schedule, warmup):
    from transformers import get_scheduler

    asked = request(steps=10, schedule=schedule, warmup=warmup, lr=0.5)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=asked.warmup_steps + 1, num_training_steps=asked.steps + 1)
    for step in range(asked.steps):
        optimizer.step()
        theirs.step()
        assert learning_rate(step, asked) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        assert learning_rate(step, asked) > 0


def test_serve_comes_before_the_step_and_the_log_tells_all(tmp_path):
    order, told = [], []
    log = run(
        tiny(),
        request(warmup=0, schedule="constant", weight_decay=0.0),
        tmp_path,
        serve=lambda batch: order.append(batch.tokens_BT[0, 0]),
        told=lambda step: (told.append(step), order.append(step.step)),
    )
    first = [batches()(step).tokens_BT[0, 0] for step in range(3)]
    assert order == [first[0], 1, first[1], 2, first[2], 3]
    assert log.steps == (1, 2, 3)
    assert log.tokens == (96,) * 3
    assert log.lr == (1e-2,) * 3
    assert log.plain_loss is None
    assert [step.gradient_norm for step in told] == list(log.gradient_norm)
    assert set(dataclasses.asdict(log)) == {
        *("steps", "loss", "plain_loss", "lr", "gradient_norm", "seconds", "tokens")
    }


def test_the_gradient_norm_is_that_before_clipping(tmp_path):
    asked = [request(steps=1, clip=clip) for clip in (0.0, 0.01)]
    norms = [run(tiny(torch.float64), one, tmp_path / f"{one.clip}").gradient_norm[0] for one in asked]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    model = tiny(torch.float64).requires_grad_(True)
    tokens_BT = torch.from_numpy(batches()(0).tokens_BT)
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    assert norms[0] == pytest.approx(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)), rel=1e-6)


def test_bfloat16_keeps_small_steps_in_float32_weights(tmp_path):
    model = tiny()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    asked = request(lr=1e-6, steps=1, warmup=0, weight_decay=0.0)
    run(model, asked, tmp_path, precision="bfloat16")
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        moved = (weight - before[name]).abs()
        # The first step of AdamW moves each weight with a gradient by the learning rate.
        assert moved.max() == pytest.approx(1e-6, rel=0.1), name
        assert (moved > 0).float().mean() > 0.5 or "embed" in name


def test_bfloat16_computes_in_bfloat16_and_is_near_float32(tmp_path):
    one = run(tiny(), request(steps=1), tmp_path / "a").loss[0]
    other = run(tiny(), request(steps=1), tmp_path / "b", precision="bfloat16").loss[0]
    assert other != one
    assert other == pytest.approx(one, rel=2e-2)


def test_a_tiny_model_learns(tmp_path):
    log = run(tiny(), request(steps=60, lr=5e-3), tmp_path, lambda step: batches()(0))
    assert log.loss[-1] < 0.1 * log.loss[0]


def test_dropout_depends_on_seed_and_step_only(tmp_path):
    def losses(folder, seed):
        return run(
            tiny(attention_dropout=0.5), request(lr=1e-9), tmp_path / folder, lambda _: batches()(0), seed=seed
        ).loss

    state = torch.get_rng_state()
    one = losses("a", 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert losses("b", 0) == one
    assert losses("c", 1) != one
    assert len(set(one)) == 3


def test_the_model_is_as_before_afterwards(tmp_path):
    model = tiny()
    run(model, request(steps=1), tmp_path)
    assert not model.training
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_is_never_saved(tmp_path, bad):
    model = tiny()

    def serve(batch):
        if np.array_equal(batch.tokens_BT, batches()(2).tokens_BT):
            model.lm_head.weight.data[3] = bad

    with pytest.raises(Diverged) as stopped:
        run(model, request(steps=5, checkpoint_every=1), tmp_path, serve=serve)
    assert stopped.value.step == 3
    state = Checkpoints(str(tmp_path), every=1).newest()
    assert state.step == 2
    assert all(bool(weight.isfinite().all()) for weight in state.weights.values())


def test_weights_that_are_not_finite_after_a_step_are_never_saved(tmp_path):
    with pytest.raises(Diverged):
        run(tiny(), request(steps=5, checkpoint_every=1, lr=1e39, warmup=0), tmp_path)
    assert Checkpoints(str(tmp_path), every=1).newest() is None
