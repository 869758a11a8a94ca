"""Estimates the cost of a PosGen training and its evaluation: operations, memory, and the measured speed.

A multiply-add counts as two operations. A backward pass costs twice its forward pass: once for the gradients of inputs
and once for those of weights.
"""

from __future__ import annotations

import math
import statistics
import timeit
from typing import NamedTuple

import torch

from longeval.run.cost import RUNTIME_BYTES
from longeval.studies.posgen.cells import Experiment, ModelConfig
from longeval.studies.posgen.model import matmul_precision, product_dtype
from longeval.studies.posgen.request import Precision
from longeval.studies.posgen.train import steps_per_epoch

_WARM_UP, _REPEATS = 2, 5


class PassCosts(NamedTuple):
    """Operations of each kind of pass over a model."""

    step: float
    """One training step; the mean over an epoch."""
    validation: float
    """Losses on the validation sequences with every table."""
    evaluation: float
    """Accuracies on the test sequences with one table, teacher-forced and free-running with a key/value cache."""


def pass_costs(experiment: Experiment, tables: int) -> PassCosts:
    """The operations of passes over one model that is validated with so many tables."""
    request, config = experiment.request, experiment.config
    steps = steps_per_epoch(request.num_train, request.batch_size)
    forward = forward_flops(config, request.test_length)
    return PassCosts(
        step=request.num_train * train_flops(config, request.length) / steps,
        validation=tables * request.num_valid * forward,
        evaluation=request.num_test * 2 * forward,
    )


def training_costs(experiment: Experiment, epochs_done: int, tables: int) -> list[float]:
    """The operations of each pass that is left of a training: an epoch's steps, then its validation if there is one."""
    request, costs = experiment.request, pass_costs(experiment, tables)
    found: list[float] = []
    for epoch in range(epochs_done + 1, request.epochs + 1):
        found += [costs.step] * steps_per_epoch(request.num_train, request.batch_size)
        if request.validates(epoch):
            found.append(costs.validation)
    return found


def forward_flops(config: ModelConfig, tokens: int) -> float:
    """Operations of a forward pass over one sequence of `tokens` tokens, with causal attention."""
    attention = 4 * config.d_model * config.width
    feed_forward = 2 * config.d_model * config.d_ff
    per_token = 2.0 * (config.layers * (attention + feed_forward) + config.d_model * config.vocabulary)
    return per_token * tokens + 2.0 * config.layers * config.width * tokens**2


def train_flops(config: ModelConfig, tokens: int) -> float:
    """Operations of a forward and a backward pass over one sequence; frozen weights need no gradient."""
    frozen = 2.0 * config.layers * 2 * config.d_model * config.d_ff * tokens if config.frozen_mlp else 0.0
    return 3.0 * forward_flops(config, tokens) - frozen


def num_parameters(config: ModelConfig) -> int:
    """Number of weights of one model."""
    return sum(math.prod(shape) for shape in config.shapes.values())


def memory_bytes(config: ModelConfig, batch_size: int, tokens: int) -> int:
    """Peak of a training: weights, gradients and both moments, what backward needs, and the program itself."""
    weights = 4 * 4 * num_parameters(config)
    # Activations for backward, per layer: two inputs and their norms; queries, keys and values before and after
    # rotation; attention output; feed-forward layer before and after ReLU. Then logits, softmax and their gradient.
    per_token = config.layers * (4 * config.d_model + 7 * config.width + 2 * config.d_ff) + 3 * config.vocabulary
    return weights + 4 * batch_size * tokens * per_token + RUNTIME_BYTES


def matmul_rate(config: ModelConfig, batch_tokens: int, precision: Precision, device: str) -> float:
    """Measures now how many operations per second a matrix product on this model's shapes makes.

    Args:
        config: The model.
        batch_tokens: Tokens of a step.
        precision: Precision of the product.
        device: As `resolve_device` returns it.
    """
    x_TD = torch.randn(batch_tokens, config.d_model, dtype=product_dtype(precision), device=device)
    weight_DI = torch.randn(config.d_model, config.d_ff, dtype=x_TD.dtype, device=device)

    def product() -> None:
        torch.mm(x_TD, weight_DI)
        if x_TD.is_cuda:
            torch.cuda.synchronize(device)

    with matmul_precision(precision):
        seconds = timeit.repeat(product, number=1, repeat=_WARM_UP + _REPEATS)[_WARM_UP:]
    return 2.0 * batch_tokens * config.d_model * config.d_ff / statistics.median(seconds)
