"""Training: against torch's own optimiser, stacked against alone, resumed against never stopped."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_posgen as tiny
import torch
from tiny_posgen import SEEDS, distance, trained

from longeval.studies.posgen.data import generate
from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.model import cos_sin, forward, initial_weights
from longeval.studies.posgen.state import from_bytes, initial_state, stack, to_bytes
from longeval.studies.posgen.train import Watch, epoch_order, train


def by_torch(config, setting, data, seed):
    """One seed trained in float64 by torch's AdamW and OneCycleLR; batches, loss and mask written out here."""
    weights = initial_weights(config, (seed,), "cpu", torch.float64)
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
            logits_BTV = forward(weights, read_BT[None], table.cos_TF[rows], table.sin_TF[rows], config)[0]
            predicted = logits_BTV.log_softmax(-1)[:, -(length - 4) :]
            nll_BP = -predicted.gather(-1, tokens_BT[:, 4:, None]).squeeze(-1)
            optimiser.zero_grad()
            nll_BP.mean().backward()
            optimiser.step()
            scheduler.step()
            epoch_losses += nll_BP.mean(1).tolist()
        losses.append(np.mean(epoch_losses))
    return weights, losses


@pytest.mark.parametrize("choices", [{}, {"start_token": True, "tied": False}, {"frozen_mlp": True, "init": "normal"}])
def test_training_is_that_of_torchs_optimiser_and_schedule(choices):
    config, setting = tiny.config(**choices), tiny.setting(weight_decay=0.3)
    state = trained(config, setting=setting, state=initial_state(config, SEEDS, "cpu", torch.float64))
    for index, seed in enumerate(SEEDS):
        weights, losses = by_torch(config, setting, tiny.DATA, seed)
        assert state.history[index].train_loss == pytest.approx(losses, rel=1e-8)
        for name, weight in weights.items():
            torch.testing.assert_close(state.weights[name][index], weight[0].detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-11)])
def test_stacked_seeds_are_those_trained_alone(dtype, tolerance):
    config = tiny.config()
    data = [generate(dataclasses.replace(tiny.SIZES, seed=seed)) for seed in SEEDS]
    stacked = trained(config, data=data, state=initial_state(config, SEEDS, "cpu", dtype))
    for index, seed in enumerate(SEEDS):
        alone = trained(
            config, (seed,), data=data[index : index + 1], state=initial_state(config, (seed,), "cpu", dtype)
        )
        assert distance(stacked.alone(index), alone) < tolerance
        assert stacked.history[index].train_loss == pytest.approx(alone.history[0].train_loss, abs=tolerance)
    assert distance(stacked.alone(0), stacked.alone(1)) > 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_training_is_the_one_that_never_stopped(dropout):
    config = tiny.config(dropout=dropout)
    whole = trained(config, valid_tables={"yarn": tiny.table("yarn")})
    state = None
    for until in (1, 3, 4):
        state = trained(config, state=state, until=until, valid_tables={"yarn": tiny.table("yarn")})
        assert state.epoch == until
        state = stack([from_bytes(to_bytes(state, index)) for index in range(len(SEEDS))])
    assert state.history == whole.history
    for part in ("weights", "first", "second"):
        assert all(torch.equal(getattr(state, part)[name], tensor) for name, tensor in getattr(whole, part).items())


def test_where_it_goes_on_from_is_left_as_it_was():
    start = trained(tiny.config(), until=1)
    before = to_bytes(start)
    trained(tiny.config(), state=start)
    assert {name: tensor.tolist() for name, tensor in from_bytes(before).weights.items()} == {
        name: tensor.tolist() for name, tensor in start.alone(0).weights.items()
    }
    assert not any(tensor.requires_grad for tensor in trained(tiny.config(), until=1).weights.values())


def test_a_finished_training_is_only_handed_back():
    done = trained(tiny.config())
    again = trained(tiny.config(), state=done)
    assert (again.epoch, again.history, distance(done, again)) == (4, done.history, 0)


def test_frozen_layers_stay_and_others_do_not():
    config = tiny.config(frozen_mlp=True)
    start, end = initial_state(config, SEEDS, "cpu"), trained(config)
    for name, weight in end.weights.items():
        assert torch.equal(weight, start.weights[name]) == (".mlp." in name), name


def test_dropout_is_each_seeds_own_and_off_outside_training():
    config = tiny.config(dropout=0.3)
    stacked, alone = trained(config), trained(config, SEEDS[1:2])
    assert distance(stacked.alone(1), alone) < 2e-4
    assert distance(stacked, trained(tiny.config())) > 1e-2
    first, second = (losses(config, stacked, tiny.table()) for _ in range(2))
    assert first == second


def test_dropout_differs_by_seed_and_step_and_keeps_the_mean(monkeypatch):
    dropped: list[torch.Tensor] = []

    def recording(*arguments, drop, **keywords):
        dropped.append(drop(torch.ones(3, 10_000)))
        return forward(*arguments, drop=drop, **keywords)

    monkeypatch.setattr("longeval.studies.posgen.train.forward", recording)
    trained(tiny.config(dropout=0.2), until=1)
    rows = torch.cat(dropped)
    assert len(rows) == len({tuple(row.tolist()) for row in rows}) == 9
    assert set(rows.unique().tolist()) == {0.0, 1.25}
    assert rows.mean(1).tolist() == pytest.approx([1.0] * 9, abs=0.03)


def test_epochs_go_through_every_sequence_in_an_order_of_their_own():
    orders = {(seed, epoch): epoch_order(seed, epoch, 40, 16) for seed in (0, 1) for epoch in (0, 1)}
    for order_KB in orders.values():
        assert order_KB.shape == (3, 16)
        assert sorted(order_KB.flatten()[:40]) == list(range(40))
    assert len({order_KB.tobytes() for order_KB in orders.values()}) == 4


def test_what_fills_the_last_batch_does_not_count(monkeypatch):
    plain = trained(tiny.config())

    def other_filling(seed, epoch, num_train, batch_size):
        order_KB = epoch_order(seed, epoch, num_train, batch_size)
        order_KB[-1, num_train % batch_size :] = 7
        return order_KB

    monkeypatch.setattr("longeval.studies.posgen.train.epoch_order", other_filling)
    assert distance(plain, trained(tiny.config())) < 1e-6


def test_it_learns():
    """Sums of the last two modulo 5: chance is 0.2."""
    data = generate(
        dataclasses.replace(tiny.SIZES, task="recursive", j=1, k=1, num_train=16, num_valid=4, num_test=5, length=16)
    )
    config = tiny.config(d_model=32, d_ff=64, heads=2, head_dim=16)
    from longeval.rope.base import Geometry
    from longeval.rope.build import build_table

    table = build_table("none", Geometry(head_dim=16, theta=100.0, native_length=16))
    state = train(config, tiny.setting(epochs=60, batch_size=16), [data], (0,), table, device="cpu")
    losses = state.history[0].train_loss
    assert losses[0] > 1.4 > 0.1 > losses[-1]
    (found,) = evaluate(config, state.weights, data.test_NT[None], table, first=2, device="cpu")
    assert found.in_distribution(found.accuracy_P, 16) > 0.6


def losses(config, state, table):
    """Mean validation losses of every seed by `evaluate`: (in distribution, OOD)."""
    valid_SNT = np.stack([tiny.DATA.valid_NT] * len(state.seeds))
    found = evaluate(config, state.weights, valid_SNT, table, first=4, device="cpu", generate=False)
    return [(one.in_distribution(one.loss_P, 12), one.ood(one.loss_P, 12)) for one in found]


def test_validation_losses_are_those_of_an_evaluation():
    tables = {"none": tiny.table(), "yarn": tiny.table("yarn")}
    state = trained(tiny.config(), setting=tiny.setting(epochs=5), valid_tables=tables)
    for name, table in tables.items():
        expected = losses(tiny.config(), state, table)
        for history, pair in zip(state.history, expected, strict=True):
            curve = history.curve(name)
            assert [loss.epoch for loss in curve] == [2, 4, 5]
            assert (curve[-1].in_distribution, curve[-1].ood) == pytest.approx(pair)
            assert curve[-1].in_distribution != pytest.approx(curve[-1].ood)
    assert state.history[0].curve("none")[-1].ood != pytest.approx(state.history[0].curve("yarn")[-1].ood)


def test_watching():
    class Listening(Watch):
        def __init__(self):
            self.heard = []

        def step(self):
            self.heard.append("step")

        def epoch(self, state):
            self.heard.append((state.epoch, len(state.history[0].train_loss)))

        def checkpoint(self, state):
            self.heard.append(from_bytes(to_bytes(state)))

    watch = Listening()
    trained(tiny.config(), setting=tiny.setting(checkpoint_every=2), watch=watch)
    steps = ["step"] * 3
    saved = watch.heard.pop(8)
    assert watch.heard == [*steps, (1, 1), *steps, (2, 2), *steps, (3, 3), *steps, (4, 4)]
    halfway = trained(tiny.config(), until=2)
    assert saved.epoch == 2 and distance(saved, halfway.alone(0)) == 0


def test_a_seed_that_diverges_leaves_the_others_alone():
    config = tiny.config()
    start = initial_state(config, SEEDS, "cpu")
    start.weights["embedding"][1, 0, 0] = float("inf")
    state = trained(config, state=start)
    assert state.diverged == (SEEDS[1],)
    assert distance(state.alone(2), trained(config).alone(2)) < 1e-6
    assert state.epoch == 4 and [history.stacked for history in state.history] == [3, 3, 3]


def test_a_training_all_of_whose_seeds_diverged_ends_early():
    start = initial_state(tiny.config(), SEEDS, "cpu")
    start.weights["embedding"][:, 0, 0] = float("inf")
    state = trained(tiny.config(), state=start)
    assert (state.epoch, state.diverged) == (1, SEEDS)
    assert trained(tiny.config(), state=state).epoch == 1


def test_bfloat16_trains_about_as_float32():
    exact, near = (trained(tiny.config(), setting=tiny.setting(precision=name)) for name in ("float32", "bf16"))
    assert near.weights["embedding"].dtype == torch.float32
    assert distance(exact, near) > 1e-4
    for one, other in zip(exact.history, near.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=0.02)


def test_the_processs_own_matmul_precision_comes_back():
    torch.set_float32_matmul_precision("high")
    try:
        trained(tiny.config(), until=1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_training_needs_nothing_but_torch_numpy_and_longeval():
    """A process in which no other package can be imported, but those that torch and numpy bring in themselves."""
    code = """
import sys
import numpy, torch
allowed = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names) | {"longeval", "tiny_posgen"}

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"{name} is not to be imported")

assert not allowed & {"transformers", "datasets", "yaml", "rich", "fsspec", "typer"}
sys.meta_path.insert(0, Wall())
import tiny_posgen as tiny
from tiny_posgen import SEEDS, distance, trained
from longeval.studies.posgen import state as files
from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.train import train
tables = {"resonance_yarn": tiny.table("resonance_yarn")}
state = train(tiny.config(), tiny.setting(), [tiny.DATA], (0,), tiny.table(), device="cpu", valid_tables=tables)
files.from_bytes(files.to_bytes(state))
evaluate(tiny.config(), state.weights, tiny.DATA.test_NT[None], tiny.table(), first=4, device="cpu")
print(state.epoch)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert (answer.returncode, answer.stdout) == (0, "4\n"), answer.stderr
