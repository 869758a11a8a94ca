"""What PosGen passes cost, against counted operations, and how seeds that are differently far come together."""

from __future__ import annotations

import pytest
import torch
from posgen_requests import carry_out, tiny_request
from torch.utils.flop_counter import FlopCounterMode

from longeval.run.engine import stored_cells
from longeval.run.host import Silent, open_host
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.estimate import (
    forward_flops,
    memory_bytes,
    num_parameters,
    phases,
    train_flops,
)
from longeval.studies.posgen.model import cos_sin, forward, initial_weights, model_inputs
from longeval.studies.posgen.plan import model_config, plan_posgen
from longeval.studies.posgen.request import PosGenRequest

TOKENS = 21


def counted(config, *, backward):
    """Operations that torch counts in a pass over one sequence of 20 tokens read."""
    weights = initial_weights(config, (0,), "cpu")
    trained = [weights[name].requires_grad_() for name in config.trainable]
    plan = plan_posgen(tiny_request())
    table = cos_sin(plan.stacks[0].table, TOKENS - 1)
    tokens_SBT = torch.zeros(1, 1, TOKENS, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = forward(weights, model_inputs(tokens_SBT, config), table.cos_TF, table.sin_TF, config)
        if backward:
            torch.autograd.grad(logits.sum(), trained)
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, {"layers": 3}, {"tied": False}, {"heads": 1}], ids=str)
def test_forward_operations_are_those_that_torch_counts(changes):
    config = model_config(tiny_request(**changes))
    # Counted besides: the look-up as a product with one-hot rows, and the half of attention that the mask hides.
    look_up = 2 * config.vocabulary * config.d_model * (TOKENS - 1)
    hidden = 2 * config.layers * config.width * (TOKENS - 1) ** 2
    assert counted(config, backward=False) == forward_flops(config, TOKENS - 1) + look_up + hidden


@pytest.mark.parametrize("frozen_mlp", [False, True])
def test_training_operations_are_about_those_that_torch_counts(frozen_mlp):
    config = model_config(tiny_request(d_model=32, d_ff=256, frozen_mlp=frozen_mlp))
    assert train_flops(config, TOKENS - 1) == pytest.approx(counted(config, backward=True), rel=0.1)


def test_the_full_table_is_what_the_request_says():
    plan = plan_posgen(PosGenRequest(device="cpu"))
    config = plan.experiment.config
    assert config == ModelConfig()
    # 60 trainings · 150 epochs · 10,000 sequences of 64 tokens · 6 operations a weight of 6.3 million, attention on top
    total = 60 * 150 * 10000 * train_flops(config, 64)
    assert total == pytest.approx(2.2e17, rel=0.05)


def test_parameters_and_memory(store):
    config = model_config(tiny_request())
    weights = initial_weights(config, (0, 1), "cpu")
    assert 2 * num_parameters(config) == sum(tensor.numel() for tensor in weights.values())
    one, five = (memory_bytes(ModelConfig(), seeds, 128, 64) for seeds in (1, 5))
    assert 4 * (one - memory_bytes(ModelConfig(), 0, 128, 64)) == five - one


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([0, 0, 0], [(3, 0, 10)]),
        ([4], [(1, 4, 10)]),
        ([4, 0, 4, 7], [(1, 0, 4), (3, 4, 7), (4, 7, 10)]),
    ],
)
def test_seeds_that_are_behind_catch_up_first(done, expected):
    assert [tuple(phase) for phase in phases(done, 10)] == expected


def test_an_estimate_counts_what_is_left(store):
    def left(plan):
        """What a dry run says of it, and the operations."""
        stored = stored_cells(plan, store)
        host, work = open_host(plan.request, store, Silent()), plan.left(stored)
        return plan.overview(host, work, stored).costs[0], sum(sum(one.costs(host)) for one in work)

    spec = tiny_request(pe=("none", "resonance", "yarn", "resonance_yarn"), regimes=("trained", "swapped"))
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
    told, done = left(plan)
    assert "0 cells to compute from 0 trainings of 4 epochs in 0 stacks; 0 operations, estimated 0 s" in told
    assert done == 0
