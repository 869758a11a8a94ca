"""What PosGen passes cost, against counted operations, and how seeds that are differently far come together."""

from __future__ import annotations

import pytest
import tiny_posgen as tiny
import torch
from posgen_requests import ALL, BOTH, carry_out, tiny_request
from torch.utils.flop_counter import FlopCounterMode

from longeval.run.engine import stored_cells
from longeval.run.host import Host, Silent, backend_of
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.estimate import (
    forward_flops,
    memory_bytes,
    num_parameters,
    phases,
    train_flops,
)
from longeval.studies.posgen.model import cos_sin, forward, initial_weights
from longeval.studies.posgen.plan import plan_posgen


@pytest.mark.parametrize("choices", [{}, {"layers": 3}, {"tied": False}, {"frozen_mlp": True}], ids=str)
def test_operations_are_those_that_torch_counts(choices):
    """Torch counts attention as if nothing were masked, if at all: it is taken out and put in by hand.

    The look-up of embeddings, here a product with one-hot rows, isn't counted by the estimate.
    """
    config = tiny.config(**choices)
    weights = initial_weights(config, (0,), "cpu")
    trained = [weights[name].requires_grad_() for name in config.trainable]
    tokens_SBT = torch.zeros(1, 1, 9, dtype=torch.int64)

    def counted(counter):
        return sum(flops for operator, flops in counter.get_flop_counts()["Global"].items() if "bmm" in str(operator))

    with FlopCounterMode(display=False) as forwards:
        logits = forward(weights, tokens_SBT, *cos_sin(tiny.table(), 9), config)
    with FlopCounterMode(display=False) as backwards:
        torch.autograd.grad(logits.sum(), trained)
    attention = config.layers * 2 * config.width * 9**2
    look_up = 9 * 2 * config.vocabulary * config.d_model
    assert forward_flops(config, 9) == pytest.approx(counted(forwards) + attention - look_up)
    assert train_flops(config, 9) == pytest.approx(counted(forwards) + counted(backwards) + 3 * attention - 2 * look_up)


def test_the_published_table_is_about_2e17():
    methods, tasks, seeds, epochs = 4, 3, 5, 150
    trainings = methods * tasks * seeds * epochs
    assert trainings * 10_000 * train_flops(ModelConfig(), 64) == pytest.approx(2.2e17, rel=0.03)


def test_parameters_and_memory():
    weights = initial_weights(tiny.config(), (0, 1), "cpu")
    assert 2 * num_parameters(tiny.config()) == sum(tensor.numel() for tensor in weights.values())
    one, five = (memory_bytes(ModelConfig(), seeds, 128, 64) for seeds in (1, 5))
    assert 4 * (one - memory_bytes(ModelConfig(), 0, 128, 64)) == five - one


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([0, 0, 0], [(3, 0, 10)]),
        ([4, 0, 4, 7], [(1, 0, 4), (3, 4, 7), (4, 7, 10)]),
    ],
)
def test_seeds_that_are_behind_catch_up_first(done, expected):
    assert [tuple(phase) for phase in phases(done, 10)] == expected


def test_an_estimate_counts_what_is_left(store):
    def left(plan):
        """What a dry run says of it, and the operations."""
        stored = stored_cells(plan, store)
        host, work = Host(store=store, progress=Silent(), load=backend_of(plan.request)), plan.left(stored)
        return plan.overview(host, work, stored).costs[0], sum(sum(one.costs(host)) for one in work)

    spec = tiny_request(pe=ALL, regimes=BOTH)
    plan, apart = plan_posgen(spec), plan_posgen(spec.replaced(stack=False))
    told, whole = left(plan)
    assert "16 cells to compute from 8 trainings of 4 epochs in 4 stacks; " in told
    told, alone = left(apart)
    assert "16 cells to compute from 8 trainings of 4 epochs, one after another; " in told
    assert alone == pytest.approx(whole)
    carry_out(tiny_request(pe=("none",)), store)
    told, rest = left(plan)
    assert "14 cells to compute from 6 trainings of 4 epochs in 3 stacks; " in told
    assert rest < 0.8 * whole
    carry_out(spec, store)
    assert left(plan)[1] == 0
