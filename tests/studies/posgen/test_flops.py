"""Estimated operations against torch's own counter, and the figure for the whole published table."""

from __future__ import annotations

import pytest
import tiny_posgen as tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.estimate import forward_flops, train_flops
from longeval.studies.posgen.model import cos_sin, forward, initial_weights


@pytest.mark.parametrize("choices", [{}, {"tied": False}, {"frozen_mlp": True}])
def test_as_torch_counts_them(choices):
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
