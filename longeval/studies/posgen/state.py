"""A training as it stands after an epoch: weights, AdamW's moments and losses of all seeds that are stacked.

Shapes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longeval.studies.posgen.model import ModelConfig, Weights, initial_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidLoss:
    """Mean loss on the validation sequences, nats per token, after an epoch, read with one table."""

    epoch: int
    """Epochs done."""
    table: str
    """The table's name."""
    in_distribution: float
    """Of predicted positions below the training length."""
    ood: float
    """Of those from the training length on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The losses of one seed."""

    train_loss: tuple[float, ...] = ()
    """Mean over the sequences of each epoch, each as its batch found it, nats per token."""
    valid: tuple[ValidLoss, ...] = ()
    """In the order of epochs."""
    stacked: int = 1
    """The most seeds that trained together with it, itself included."""

    def curve(self, table: str) -> tuple[ValidLoss, ...]:
        """The validation losses under one table, by epoch."""
        return tuple(loss for loss in self.valid if loss.table == table)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainState:
    """All that a training needs to go on as if it had never stopped."""

    config: ModelConfig
    seeds: tuple[int, ...]
    epoch: int
    """Epochs done."""
    weights: Weights
    """Name → (S, …)."""
    first: Weights
    """AdamW's mean of gradients, of trained weights; empty in a state that is there to be evaluated only."""
    second: Weights
    """AdamW's mean of squared gradients."""
    history: tuple[History, ...]
    """By seed."""

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds with a loss that was no finite number; the others are untouched by that."""
        return tuple(
            seed
            for seed, history in zip(self.seeds, self.history, strict=True)
            if not all(map(math.isfinite, history.train_loss))
        )

    def failure(self, index: int = 0) -> str | None:
        """Why the index-th seed's weights are of no use, or None."""
        for epoch, loss in enumerate(self.history[index].train_loss, start=1):
            if not math.isfinite(loss):
                return f"the training diverged: its loss is {loss} in epoch {epoch}"
        if not all(bool(torch.isfinite(tensor[index]).all()) for tensor in self.weights.values()):
            return f"the training diverged: its weights are no finite numbers after epoch {self.epoch}"
        return None

    def alone(self, index: int) -> TrainState:
        """The state of the index-th seed; its tensors are views of these."""
        one = slice(index, index + 1)
        return TrainState(
            config=self.config,
            seeds=self.seeds[one],
            epoch=self.epoch,
            weights={name: tensor[one] for name, tensor in self.weights.items()},
            first={name: tensor[one] for name, tensor in self.first.items()},
            second={name: tensor[one] for name, tensor in self.second.items()},
            history=self.history[one],
        )


def initial_state(
    config: ModelConfig, seeds: Sequence[int], device: str | torch.device, dtype: torch.dtype = torch.float32
) -> TrainState:
    """The state before the first epoch."""
    weights = initial_weights(config, seeds, device, dtype)
    return TrainState(
        config=config,
        seeds=tuple(seeds),
        epoch=0,
        weights=weights,
        first={name: torch.zeros_like(weights[name]) for name in config.trainable},
        second={name: torch.zeros_like(weights[name]) for name in config.trainable},
        history=(History(),) * len(seeds),
    )


def stack(states: Sequence[TrainState]) -> TrainState:
    """One state of all the seeds of several, in their order; on the device of the first.

    Raises:
        ValueError: They are not the same model after the same epoch.
    """
    config, epoch = states[0].config, states[0].epoch
    if any((state.config, state.epoch) != (config, epoch) for state in states):
        raise ValueError("only states of the same model and the same epoch can be stacked")

    def joined(parts: Sequence[Weights]) -> Weights:
        return {name: torch.cat([part[name].to(tensor.device) for part in parts]) for name, tensor in parts[0].items()}

    return TrainState(
        config=config,
        seeds=tuple(seed for state in states for seed in state.seeds),
        epoch=epoch,
        weights=joined([state.weights for state in states]),
        first=joined([state.first for state in states]),
        second=joined([state.second for state in states]),
        history=tuple(history for state in states for history in state.history),
    )
