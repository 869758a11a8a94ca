"""Estimates the cost of a PosGen training and its evaluation: operations, memory, and the measured speed.

A multiply-add counts as two operations. A backward pass costs twice its forward pass: once for the gradients of inputs
and once for those of weights.
"""

from __future__ import annotations

import math
import statistics
import timeit
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from longeval.run.cost import RUNTIME_BYTES
from longeval.studies.posgen.cells import Experiment, ModelConfig
from longeval.studies.posgen.model import matmul_precision, product_dtype
from longeval.studies.posgen.request import Precision
from longeval.studies.posgen.train import steps_per_epoch

_WARM_UP, _REPEATS = 2, 5


class Phase(NamedTuple):
    """A range of epochs in which the same seeds train together."""

    seeds: int
    """Number of seeds."""
    first: int
    """Epochs done before the phase."""
    until: int
    """Epochs done after the phase."""


def phases(epochs_done: Sequence[int], epochs: int) -> Iterator[Phase]:
    """Divides the training of seeds, given the finished epochs of each, into phases up to epoch `epochs`.

    Seeds with fewer epochs catch up first; then all train together.
    """
    seeds = 0
    ends = [*sorted(set(epochs_done))[1:], epochs]
    for (first, group), until in zip(groupby(sorted(epochs_done)), ends, strict=True):
        seeds += len(list(group))
        yield Phase(seeds=seeds, first=first, until=until)


class PassCosts(NamedTuple):
    """Number of operations of each kind of pass over a stack of seeds."""

    step: float
    """One training step; the mean over an epoch."""
    validation: float
    """Losses on the validation sequences with every table."""
    evaluation: float
    """Accuracies on the test sequences with one table, teacher-forced and free-running with a key/value cache."""


def pass_costs(experiment: Experiment, seeds: int, tables: int) -> PassCosts:
    """The costs of passes for this number of stacked seeds and of tables in validation."""
    request, config = experiment.request, experiment.config
    steps = steps_per_epoch(request.num_train, request.batch_size)
    forward = forward_flops(config, request.test_length)
    return PassCosts(
        step=seeds * request.num_train * train_flops(config, request.length) / steps,
        validation=seeds * tables * request.num_valid * forward,
        evaluation=seeds * request.num_test * 2 * forward,
    )


def phase_costs(experiment: Experiment, phase: Phase, tables: int) -> Iterator[float]:
    """Yields the operations of each pass of a phase in order: for each epoch its steps, then a validation if due."""
    request = experiment.request
    cost = pass_costs(experiment, phase.seeds, tables)
    for epoch in range(phase.first + 1, phase.until + 1):
        yield from [cost.step] * steps_per_epoch(request.num_train, request.batch_size)
        if request.validates(epoch):
            yield cost.validation


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


def memory_bytes(config: ModelConfig, seeds: int, batch_size: int, tokens: int) -> int:
    """Peak memory of a stacked training: weights, gradients, both moments, activations, and the program itself."""
    weights = 4 * 4 * num_parameters(config)
    # Activations for backward, per layer: two inputs and their norms; queries, keys and values before and after
    # rotation; attention output; feed-forward layer before and after ReLU. Then logits, softmax and their gradient.
    per_token = config.layers * (4 * config.d_model + 7 * config.width + 2 * config.d_ff) + 3 * config.vocabulary
    return seeds * (weights + 4 * batch_size * tokens * per_token) + RUNTIME_BYTES


def matmul_rate(config: ModelConfig, seeds: int, batch_tokens: int, precision: Precision, device: str) -> float:
    """Measures the operations per second of a product with the model's shapes for stacked seeds."""
    x_STD = torch.randn(seeds, batch_tokens, config.d_model, dtype=product_dtype(precision), device=device)
    weight_SDI = torch.randn(seeds, config.d_model, config.d_ff, dtype=x_STD.dtype, device=device)

    def product() -> None:
        torch.bmm(x_STD, weight_SDI)
        if x_STD.is_cuda:
            torch.cuda.synchronize(device)

    with matmul_precision(precision):
        seconds = timeit.repeat(product, number=1, repeat=_WARM_UP + _REPEATS)[_WARM_UP:]
    operations = 2.0 * seeds * batch_tokens * config.d_model * config.d_ff
    return operations / statistics.median(seconds)
