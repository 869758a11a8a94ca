"""The state of a training after an epoch (weights, AdamW's moments and losses of all stacked seeds), and its files.

Each seed has one `.npz` file without pickled objects, with everything that a resumed training needs:

about             JSON: format, model, seed, epoch, losses
weights/<name>    shape (1, …), as in `TrainState`
first/<name>, second/<name>    AdamW's moments; left out of finished weights, which are only evaluated

Shapes: S seeds.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.model import Weights, initial_weights

FORMAT = 2
"""Version of the files; other versions are not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidLoss:
    """Mean losses on the validation sequences after an epoch with one table, nats per token."""

    epoch: int
    """Epochs done."""
    table: str
    """Name of the table."""
    in_distribution: float
    """Mean over the predicted positions below the training length."""
    ood: float
    """Mean over the positions from the training length on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The losses of one seed during training."""

    train_loss: tuple[float, ...] = ()
    """Mean loss of each epoch, computed during its training steps, nats per token."""
    valid: tuple[ValidLoss, ...] = ()
    """Validation losses in the order of epochs."""
    stacked: int = 1
    """The largest number of seeds that trained together."""

    def curve(self, table: str) -> tuple[ValidLoss, ...]:
        """The validation losses with one table, by epoch."""
        return tuple(loss for loss in self.valid if loss.table == table)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainState:
    """Everything that is needed to resume a training exactly."""

    config: ModelConfig
    seeds: tuple[int, ...]
    """The seeds in the order of the tensors' first axis."""
    epoch: int
    """Epochs done."""
    weights: Weights
    """Name → tensor of shape (S, …)."""
    first: Weights
    """AdamW's mean of gradients, for trained weights; empty if the state is only evaluated."""
    second: Weights
    """AdamW's mean of squared gradients."""
    history: tuple[History, ...]
    """The losses of each seed."""

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds with a loss that is not finite. They don't affect the other seeds."""
        return tuple(
            seed
            for seed, history in zip(self.seeds, self.history, strict=True)
            if not all(map(math.isfinite, history.train_loss))
        )

    def failure(self, index: int = 0) -> str | None:
        """The reason why the weights of the seed at `index` can't be used, or None."""
        for epoch, loss in enumerate(self.history[index].train_loss, start=1):
            if not math.isfinite(loss):
                return f"the training diverged: its loss is {loss} in epoch {epoch}"
        if not all(bool(torch.isfinite(tensor[index]).all()) for tensor in self.weights.values()):
            return f"the training diverged: its weights are not finite after epoch {self.epoch}"
        return None

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainState:
        """A copy of the state with a function applied to every tensor of weights and moments."""
        return dataclasses.replace(
            self,
            weights={name: change(tensor) for name, tensor in self.weights.items()},
            first={name: change(tensor) for name, tensor in self.first.items()},
            second={name: change(tensor) for name, tensor in self.second.items()},
        )

    def alone(self, index: int) -> TrainState:
        """The state of the seed at `index` alone; its tensors are views."""
        one = slice(index, index + 1)
        alone = self.mapped(lambda tensor: tensor[one])
        return dataclasses.replace(alone, seeds=self.seeds[one], history=self.history[one])


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
    """Joins states with the same model and epoch into one, with all seeds in order, on the device of the first."""
    first = states[0]
    assert all((state.config, state.epoch) == (first.config, first.epoch) for state in states)

    def joined(parts: Sequence[Weights]) -> Weights:
        return {name: torch.cat([part[name].to(tensor.device) for part in parts]) for name, tensor in parts[0].items()}

    return dataclasses.replace(
        first,
        seeds=tuple(seed for state in states for seed in state.seeds),
        weights=joined([state.weights for state in states]),
        first=joined([state.first for state in states]),
        second=joined([state.second for state in states]),
        history=tuple(history for state in states for history in state.history),
    )


def to_bytes(state: TrainState, index: int = 0, *, moments: bool = True) -> bytes:
    """The content of the file for the seed at `index`.

    Without AdamW's moments it is a third as large, and the state can only be evaluated.
    """
    alone = state.alone(index)
    about = {
        "format": FORMAT,
        "config": dataclasses.asdict(alone.config),
        "seed": alone.seeds[0],
        "epoch": alone.epoch,
        "history": dataclasses.asdict(alone.history[0]),
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    parts = {"weights": alone.weights} | ({"first": alone.first, "second": alone.second} if moments else {})
    for part, tensors in parts.items():
        arrays |= {f"{part}/{name}": tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # no array is called like numpy's own keyword
    return buffer.getvalue()


def from_bytes(content: bytes) -> TrainState:
    """Reads the file of one seed into a state on the CPU, with moments if the file has them. Never unpickles.

    Raises:
        ValueError: The file has another format or is damaged, or its arrays don't match its model.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, not {FORMAT}")
            config = ModelConfig(**about["config"])
            weights = _read(arrays, "weights", config, tuple(config.shapes))
            has_moments = any(name.startswith("first/") for name in arrays.files)
            first, second = (
                _read(arrays, part, config, config.trainable) if has_moments else {} for part in ("first", "second")
            )
        return TrainState(
            config=config,
            seeds=(int(about["seed"]),),
            epoch=int(about["epoch"]),
            weights=weights,
            first=first,
            second=second,
            history=(_history(about["history"]),),
        )
    except (KeyError, ValueError, TypeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"not a PosGen checkpoint: {error}") from error


def _read(arrays: Any, part: str, config: ModelConfig, names: tuple[str, ...]) -> Weights:
    """Reads the arrays of one part and checks their shapes against the model."""
    tensors = {}
    for name in names:
        array = arrays[f"{part}/{name}"]
        if array.shape != (1, *config.shapes[name]) or array.dtype.kind != "f":
            raise ValueError(f"{part}/{name} is {array.dtype} {array.shape}, which doesn't fit the model")
        tensors[name] = torch.from_numpy(array)
    return tensors


def _history(plain: dict[str, Any]) -> History:
    return History(
        train_loss=tuple(float(loss) for loss in plain["train_loss"]),
        valid=tuple(ValidLoss(**loss) for loss in plain["valid"]),
        stacked=int(plain["stacked"]),
    )
