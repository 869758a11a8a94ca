"""The cost of PosGen's passes, against counted operations."""

from __future__ import annotations

import pytest
import tiny_posgen as tiny
import torch
from posgen_requests import ALL, BOTH, carry_out, tiny_request
from torch.utils.flop_counter import FlopCounterMode

from longeval.run.cost import RUNTIME_BYTES
from longeval.run.host import Host, Silent, backend_of
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.estimate import (
    forward_flops,
    memory_bytes,
    num_parameters,
    pass_costs,
    train_flops,
    training_costs,
)
from longeval.studies.posgen.model import cos_sin, forward, initial_weights
from longeval.studies.posgen.plan import plan_posgen

PRODUCTS = {"aten.mm", "aten.bmm"}


@pytest.mark.parametrize("choices", [{}, {"layers": 3}, {"tied": False}, {"frozen_mlp": True}], ids=str)
def test_operations_are_those_that_torch_counts(choices):
    """Torch counts attention as if nothing were masked, if at all: it is taken out and put in by hand.

    The look-up of embeddings, here a product with one-hot rows, isn't counted by the estimate.
    """
    config = tiny.config(**choices)
    weights = initial_weights(config, 0, "cpu")
    trained = [weights[name].requires_grad_() for name in config.trainable]
    tokens_BT = torch.zeros(1, 9, dtype=torch.int64)

    def counted(counter):
        return sum(
            flops for operator, flops in counter.get_flop_counts()["Global"].items() if str(operator) in PRODUCTS
        )

    with FlopCounterMode(display=False) as forwards:
        logits = forward(weights, tokens_BT, *cos_sin(tiny.table(), 9), config)
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
    weights = initial_weights(tiny.config(), 0, "cpu")
    assert num_parameters(tiny.config()) == sum(tensor.numel() for tensor in weights.values())
    nothing, one, two = (memory_bytes(ModelConfig(), batch_size, 64) for batch_size in (0, 128, 256))
    assert nothing == RUNTIME_BYTES + 16 * num_parameters(ModelConfig()) < one
    assert two - one == one - nothing, "activations grow with the batch"


def test_a_resumed_training_costs_its_last_epochs():
    experiment = plan_posgen(tiny_request(epochs=5)).experiment
    step, validation = pass_costs(experiment, 3)[:2]
    assert step == 40 / 3 * train_flops(experiment.config, 12) and validation == 3 * 6 * forward_flops(
        experiment.config, 20
    )
    # After epochs 4 and 5 of 5 it validates, after epoch 3 it doesn't: every second, and the last.
    assert training_costs(experiment, 2, 3) == [*[step] * 3, *[step] * 3, validation, *[step] * 3, validation]
    assert training_costs(experiment, 5, 3) == []


def test_an_estimate_counts_what_is_left(store):
    def left(plan):
        """What a dry run says of it, and the operations."""
        stored = plan.stored(store)
        host, work = Host(store=store, progress=Silent(), load=backend_of(plan.request)), plan.left(stored)
        return plan.overview(host, work, stored).costs[0], sum(sum(one.costs(host)) for one in work)

    spec = tiny_request(pe=ALL, regimes=BOTH)
    plan = plan_posgen(spec)
    told, whole = left(plan)
    assert "16 cells to compute from 8 trainings of 4 epochs, one after another; " in told
    carry_out(tiny_request(pe=("none",)), store)
    told, rest = left(plan)
    assert "14 cells to compute from 6 trainings of 4 epochs, one after another; " in told
    assert rest < 0.8 * whole
    carry_out(spec, store)
    assert left(plan)[1] == 0
