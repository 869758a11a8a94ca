"""Training: against torch's own optimiser, resumed against never stopped, with dropout, diverged, in bfloat16."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_posgen as tiny
import torch
from tiny_posgen import distance, stored_states, trained

from longeval.studies.posgen.data import generate
from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.model import cos_sin, forward, initial_weights
from longeval.studies.posgen.state import initial_state, to_bytes
from longeval.studies.posgen.train import epoch_order


def by_torch(config, setting, data, seed):
    """One seed trained in float64 by torch's AdamW and OneCycleLR; batches, loss and mask written out here."""
    weights = initial_weights(config, seed, "cpu", torch.float64)
    for name in config.trainable:
        weights[name].requires_grad_()
    optimiser = torch.optim.AdamW([weights[name] for name in config.trainable], weight_decay=setting.weight_decay)
    sizes, length = data.setting, data.train_NT.shape[1]
    total = setting.epochs * -(-sizes.num_train // setting.batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=setting.lr, total_steps=total, pct_start=setting.warmup
    )
    table = cos_sin(tiny.table(), length)
    losses = []
    for epoch in range(setting.epochs):
        order = epoch_order(seed, epoch, sizes.num_train, setting.batch_size).flatten()[: sizes.num_train]
        epoch_losses = []
        for start in range(0, sizes.num_train, setting.batch_size):
            tokens_BT = torch.from_numpy(data.train_NT[order[start : start + setting.batch_size]])
            front_BT = torch.full((len(tokens_BT), int(config.start_token)), config.modulus)
            read_BT = torch.cat([front_BT, tokens_BT], dim=1)[:, :-1]
            rows = slice(None, read_BT.shape[1])
            logits_BTV = forward(weights, read_BT, table.cos_TF[rows], table.sin_TF[rows], config)
            predicted = logits_BTV.log_softmax(-1)[:, -(length - 4) :]
            nll_BP = -predicted.gather(-1, tokens_BT[:, 4:, None]).squeeze(-1)
            optimiser.zero_grad()
            nll_BP.mean().backward()
            optimiser.step()
            scheduler.step()
            epoch_losses += nll_BP.mean(1).tolist()
        losses.append(np.mean(epoch_losses))
    return weights, losses


@pytest.mark.parametrize("seed", [4, 0])
@pytest.mark.parametrize("choices", [{}, {"start_token": True, "tied": False}, {"frozen_mlp": True, "init": "normal"}])
def test_training_is_that_of_torchs_optimiser_and_schedule(choices, seed):
    config, setting = tiny.config(**choices), tiny.setting(weight_decay=0.3)
    state = trained(config, setting=setting, state=initial_state(config, seed, "cpu", torch.float64))
    weights, losses = by_torch(config, setting, tiny.DATA, seed)
    assert state.history.train_loss == pytest.approx(losses, rel=1e-8)
    for name, weight in weights.items():
        torch.testing.assert_close(state.weights[name], weight.detach(), rtol=1e-7, atol=1e-9)


STORED = {
    0.0: (2.265028715133667, 1.804430365562439, 1.638731598854065, 1.6046406030654907),
    0.3: (2.3265843391418457, 2.1493945121765137, 2.0658657550811768, 1.9816734790802002),
}
"""By dropout, the losses by epoch of a seed. The version that could train several seeds as one model printed them."""


@pytest.mark.parametrize("dropout", STORED)
def test_a_seed_means_the_training_that_it_always_meant(dropout):
    state = trained(tiny.config(dropout=dropout), seed=9)
    assert state.history.train_loss == pytest.approx(STORED[dropout], abs=2e-5)


def test_seeds_give_different_trainings():
    one, other = (trained(tiny.config(), seed) for seed in (4, 0))
    assert distance(one, other) > 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_training_is_the_one_that_never_stopped(dropout):
    config, tables = tiny.config(dropout=dropout), {"yarn": tiny.table("yarn")}
    whole = trained(config, valid_tables=tables)
    starts = stored_states(config, valid_tables=tables)
    assert [start.epoch for start in starts] == [1, 2, 3, 4]
    for start in starts:
        before = to_bytes(start)
        state = trained(config, state=start, valid_tables=tables)
        assert to_bytes(start) == before, "a training leaves the state that it starts from as it was"
        assert (state.epoch, state.history) == (4, whole.history)
        for part in ("weights", "first", "second"):
            assert all(torch.equal(getattr(state, part)[name], tensor) for name, tensor in getattr(whole, part).items())


def test_dropout_differs_by_seed_and_step_and_keeps_the_mean(monkeypatch):
    dropped: list[torch.Tensor] = []

    def recording(*arguments, drop, **keywords):
        dropped.append(drop(torch.ones(10_000)))
        return forward(*arguments, drop=drop, **keywords)

    monkeypatch.setattr("longeval.studies.posgen.train.forward", recording)
    for seed in (4, 0, 9):
        trained(tiny.config(dropout=0.2), seed, setting=tiny.setting(epochs=2))
    rows = torch.stack(dropped)
    assert len(rows) == len({tuple(row.tolist()) for row in rows}) == 18
    assert set(rows.unique().tolist()) == {0.0, 1.25}
    assert rows.mean(1).tolist() == pytest.approx([1.0] * 18, abs=0.03)


def test_epochs_go_through_every_sequence_in_an_order_of_their_own():
    orders = {(seed, epoch): epoch_order(seed, epoch, 40, 16) for seed in (0, 1) for epoch in (0, 1)}
    for order_KB in orders.values():
        assert order_KB.shape == (3, 16)
        assert sorted(order_KB.flatten()[:40]) == list(range(40))
    assert len({order_KB.tobytes() for order_KB in orders.values()}) == 4


def test_it_learns():
    """Sums of the last two modulo 5: chance is 0.2."""
    sizes = {"num_train": 16, "num_valid": 4, "num_test": 5, "length": 16}
    data = generate(dataclasses.replace(tiny.SIZES, task="recursive", j=1, k=1, **sizes))
    config = tiny.config(d_model=32, d_ff=64)
    state = trained(config, seed=0, setting=tiny.setting(epochs=60), data=data)
    losses = state.history.train_loss
    assert losses[0] > 1.4 > 0.1 > losses[-1]
    found = evaluate(config, state.weights, data.test_NT, tiny.table(), first=2, device="cpu")
    assert found.in_distribution(found.accuracy_P, 16) > 0.6


def test_validation_losses_are_those_of_an_evaluation():
    config, tables = tiny.config(dropout=0.1), {"none": tiny.table(), "yarn": tiny.table("yarn")}
    state = trained(config, setting=tiny.setting(epochs=5), valid_tables=tables)
    ends = set()
    for name, table in tables.items():
        found = evaluate(config, state.weights, tiny.DATA.valid_NT, table, first=4, device="cpu", generate=False)
        curve = state.history.curve(name)
        assert [loss.epoch for loss in curve] == [2, 4, 5]
        assert curve[-1].in_distribution == pytest.approx(found.in_distribution(found.loss_P, 12))
        assert curve[-1].ood == pytest.approx(found.ood(found.loss_P, 12))
        ends |= {round(curve[-1].in_distribution, 6), round(curve[-1].ood, 6)}
    assert len(ends) > 2


def test_steps_and_epochs_are_told():
    heard = []
    trained(
        tiny.config(),
        on_step=lambda: heard.append("step"),
        on_epoch=lambda state: heard.append((state.epoch, len(state.history.train_loss))),
    )
    assert heard == [told for epoch in (1, 2, 3, 4) for told in (*["step"] * 3, (epoch, epoch))]


def test_a_training_that_diverged_ends_early():
    start = initial_state(tiny.config(), 4, "cpu")
    start.weights["embedding"][0, 0] = float("inf")
    state = trained(tiny.config(), state=start)
    assert (state.epoch, state.diverged) == (1, True)
    assert trained(tiny.config(), state=state).epoch == 1


def test_bfloat16_trains_about_as_float32():
    exact, near = (trained(tiny.config(), setting=tiny.setting(precision=name)) for name in ("float32", "bf16"))
    assert near.weights["embedding"].dtype == torch.float32
    assert distance(exact, near) > 1e-4
    assert exact.history.train_loss == pytest.approx(near.history.train_loss, abs=0.02)


def test_the_processs_own_matmul_precision_comes_back():
    torch.set_float32_matmul_precision("high")
    try:
        trained(tiny.config())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
