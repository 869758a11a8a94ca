"""What a PosGen training and its evaluation cost: operations and memory from the model's sizes, and a measured rate.

Operations count two per multiply-add; a backward pass takes twice its forward pass, once for the gradients of what came
in and once for those of the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from longeval.run.cost import RUNTIME_BYTES
from longeval.studies.posgen.cells import Experiment, ModelConfig, Stack
from longeval.studies.posgen.request import PosGenRequest
from longeval.studies.posgen.train import steps_per_epoch

_WARM_UP, _REPEATS = 2, 5


class Phase(NamedTuple):
    """Epochs that the same seeds make together."""

    seeds: int
    first: int
    """Epochs done before."""
    until: int
    """Epochs done after."""


def phases(epochs_done: Sequence[int], epochs: int) -> Iterator[Phase]:
    """How seeds that are differently far are brought together: those behind catch up, then all go on as one.

    Args:
        epochs_done: Of each seed.
        epochs: Of the whole training.
    """
    seeds = 0
    ends = [*sorted(set(epochs_done))[1:], epochs]
    for (first, group), until in zip(groupby(sorted(epochs_done)), ends, strict=True):
        seeds += len(list(group))
        yield Phase(seeds=seeds, first=first, until=until)


class PassCosts(NamedTuple):
    """Operations of each kind of pass over a stack."""

    step: float
    """A step of training, the mean of an epoch's."""
    validation: float
    """Losses on the validation sequences, with every table."""
    evaluation: float
    """Accuracies on the test sequences with one table, generation included."""


def pass_costs(experiment: Experiment, seeds: int, tables: int) -> PassCosts:
    """What passes cost.

    Args:
        experiment: Sizes.
        seeds: Models in the stack.
        tables: Tables to validate with.
    """
    request, config = experiment.request, experiment.config
    steps = steps_per_epoch(request.num_train, request.batch_size)
    forward = forward_flops(config, request.test_length)
    return PassCosts(
        step=seeds * request.num_train * train_flops(config, request.length) / steps,
        validation=seeds * tables * request.num_valid * forward,
        evaluation=seeds * request.num_test * evaluation_flops(config, request.test_length),
    )


def costs(experiment: Experiment, stack: Stack, epochs_done: Mapping[str, int | None]) -> Iterator[float]:
    """The operations of each pass of a stack: steps and validations of every phase, then evaluations.

    Args:
        experiment: Sizes.
        stack: What is to be computed.
        epochs_done: Training id → epochs done; None where its weights are there.
    """
    request, tables = experiment.request, len(stack.tables)
    steps = steps_per_epoch(request.num_train, request.batch_size)
    under_way = [done for done in epochs_done.values() if done is not None]
    for phase in phases(under_way, request.epochs) if under_way else ():
        cost = pass_costs(experiment, phase.seeds, tables)
        for epoch in range(phase.first + 1, phase.until + 1):
            yield from [cost.step] * steps
            if validates(request, epoch):
                yield cost.validation
    for same in stack.alike():
        yield pass_costs(experiment, len(same[0].cells), tables).evaluation


def validates(request: PosGenRequest, epoch: int) -> bool:
    """Whether losses are taken after so many epochs."""
    return epoch % request.validate_every == 0 or epoch == request.epochs


def token_flops(config: ModelConfig) -> float:
    """Operations of one token in a forward pass, attention scores left out."""
    attention = 4 * config.d_model * config.width
    feed_forward = 2 * config.d_model * config.d_ff
    return 2.0 * (config.layers * (attention + feed_forward) + config.d_model * config.vocabulary)


def forward_flops(config: ModelConfig, tokens: int) -> float:
    """Operations of a forward pass over one sequence of so many tokens, causal attention included."""
    return token_flops(config) * tokens + 2.0 * config.layers * config.width * tokens**2


def train_flops(config: ModelConfig, tokens: int) -> float:
    """Operations of a forward and a backward pass over one sequence; frozen weights get no gradient."""
    frozen = 2.0 * config.layers * 2 * config.d_model * config.d_ff * tokens if config.frozen_mlp else 0.0
    return 3.0 * forward_flops(config, tokens) - frozen


def evaluation_flops(config: ModelConfig, tokens: int) -> float:
    """Operations of a teacher-forced pass over one sequence, and of generating it with its keys and values kept."""
    return 2.0 * forward_flops(config, tokens)


def num_parameters(config: ModelConfig) -> int:
    """Weights of one model."""
    return sum(math.prod(shape) for shape in config.shapes.values())


def memory_bytes(config: ModelConfig, seeds: int, batch_size: int, tokens: int) -> int:
    """Peak of a stacked training: weights, gradients and both moments, what backward needs, and the program itself.

    Args:
        config: The model.
        seeds: Trainings in the stack.
        batch_size: Sequences of a step.
        tokens: Tokens of a sequence.
    """
    weights = 4 * 4 * num_parameters(config)
    # Kept for backward, a layer: inputs, normed twice, queries, keys and values before and after rotation, attended,
    # and the feed-forward layer before and after its ReLU; then logits, their softmax and their gradient.
    per_token = config.layers * (4 * config.d_model + 7 * config.width + 2 * config.d_ff) + 3 * config.vocabulary
    return seeds * (weights + 4 * batch_size * tokens * per_token) + RUNTIME_BYTES


def matmul_rate(config: ModelConfig, seeds: int, batch_tokens: int, precision: str, device: str) -> float:
    """Operations per second of a stacked matrix product on this model's shapes, measured now.

    Args:
        config: The model.
        seeds: Models in the stack.
        batch_tokens: Tokens of a step.
        precision: float32, tf32 or bf16.
        device: As `resolve_device` returns it.
    """
    import torch

    place = torch.device(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        x_STD = torch.randn(seeds, batch_tokens, config.d_model, dtype=dtype, device=place)
        weight_SDI = torch.randn(seeds, config.d_model, config.d_ff, dtype=dtype, device=place)
        seconds = []
        for _ in range(_WARM_UP + _REPEATS):
            started = time.perf_counter()
            torch.bmm(x_STD, weight_SDI)
            _wait(place)
            seconds.append(time.perf_counter() - started)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    product = 2.0 * seeds * batch_tokens * config.d_model * config.d_ff
    return product / sorted(seconds[_WARM_UP:])[_REPEATS // 2]


def _wait(device: Any) -> None:
    """Until a GPU has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
