"""The state of a training after an epoch: weights, AdamW's moments and losses; and the file that holds it.

A file is one `.npz` per training, never a pickle, with everything that a resumed training needs:

about             JSON: format, model, seed, epoch, losses
weights/<name>    the weights, in the shapes of `ModelConfig.shapes`
first/<name>, second/<name>    AdamW's moments; finished weights, which are only evaluated, have none
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.model import Weights, initial_weights

FORMAT = 3
"""The version of the files that are written."""
_WITH_SEED_AXIS = 2
"""The version before, which is read too. Its arrays have one more axis in front, of length 1: a model could then be
several seeds, stacked. Other versions are refused."""


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
    """The losses of a training by epoch."""

    train_loss: tuple[float, ...] = ()
    """Mean loss of each epoch, computed during its training steps, nats per token."""
    valid: tuple[ValidLoss, ...] = ()
    """In the order of epochs."""

    def curve(self, table: str) -> tuple[ValidLoss, ...]:
        """The validation losses with one table, by epoch."""
        return tuple(loss for loss in self.valid if loss.table == table)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainState:
    """Everything that is needed to resume a training exactly."""

    config: ModelConfig
    seed: int
    epoch: int
    """Epochs done."""
    weights: Weights
    first: Weights
    """AdamW's mean of gradients, of each trained weight; empty in a state that is only evaluated."""
    second: Weights
    """AdamW's mean of squared gradients."""
    history: History

    @property
    def diverged(self) -> bool:
        """Whether the loss of an epoch is not a finite number."""
        return not all(map(math.isfinite, self.history.train_loss))

    def failure(self) -> str | None:
        """The reason why the weights can't be used, or None."""
        for epoch, loss in enumerate(self.history.train_loss, start=1):
            if not math.isfinite(loss):
                return f"the training diverged: its loss is {loss} in epoch {epoch}"
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.weights.values()):
            return f"the training diverged: its weights are not finite after epoch {self.epoch}"
        return None

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainState:
        """Returns the same state with every tensor, of weights and moments, put through a function."""
        return dataclasses.replace(
            self,
            weights={name: change(tensor) for name, tensor in self.weights.items()},
            first={name: change(tensor) for name, tensor in self.first.items()},
            second={name: change(tensor) for name, tensor in self.second.items()},
        )


def initial_state(
    config: ModelConfig, seed: int, device: str | torch.device, dtype: torch.dtype = torch.float32
) -> TrainState:
    """Makes the state before the first epoch."""
    weights = initial_weights(config, seed, device, dtype)
    return TrainState(
        config=config,
        seed=seed,
        epoch=0,
        weights=weights,
        first={name: torch.zeros_like(weights[name]) for name in config.trainable},
        second={name: torch.zeros_like(weights[name]) for name in config.trainable},
        history=History(),
    )


def to_bytes(state: TrainState, *, moments: bool = True) -> bytes:
    """Writes a state as the content of a file.

    Without AdamW's moments the file is a third as large, and its state can only be evaluated.
    """
    about = {
        "format": FORMAT,
        "config": dataclasses.asdict(state.config),
        "seed": state.seed,
        "epoch": state.epoch,
        "history": dataclasses.asdict(state.history),
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    parts = {"weights": state.weights} | ({"first": state.first, "second": state.second} if moments else {})
    for part, tensors in parts.items():
        arrays |= {f"{part}/{name}": tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # no array is called like numpy's own keyword
    return buffer.getvalue()


def from_bytes(content: bytes, model: ModelConfig | None = None) -> TrainState:
    """Reads a file's content into a state on the CPU, without moments if the file has none. It never unpickles.

    Args:
        content: The content.
        model: The model that the state must be of; None: any.

    Raises:
        ValueError: The file is of another kind, version or model, it is damaged, or its arrays don't fit its model.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["format"] not in (FORMAT, _WITH_SEED_AXIS):
                raise ValueError(f"format {about['format']}, and {_WITH_SEED_AXIS} and {FORMAT} are known")
            config = ModelConfig(**about["config"])
            if model is not None and config != model:
                raise ValueError("it is of another model")
            axes = (1,) if about["format"] == _WITH_SEED_AXIS else ()
            weights = _read(arrays, "weights", config, tuple(config.shapes), axes)
            has_moments = any(name.startswith("first/") for name in arrays.files)
            first, second = (
                _read(arrays, part, config, config.trainable, axes) if has_moments else {}
                for part in ("first", "second")
            )
        return TrainState(
            config=config,
            seed=int(about["seed"]),
            epoch=int(about["epoch"]),
            weights=weights,
            first=first,
            second=second,
            history=_history(about["history"]),
        )
    except (KeyError, ValueError, TypeError, OverflowError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"not a PosGen checkpoint: {error}") from error


def _read(arrays: Any, part: str, config: ModelConfig, names: tuple[str, ...], axes: tuple[int, ...]) -> Weights:
    """Reads the arrays of one part, and checks them against the model's shapes.

    `axes` are the lengths of the axes that the arrays have in front of the model's own.
    """
    tensors = {}
    for name in names:
        array, shape = arrays[f"{part}/{name}"], config.shapes[name]
        if array.shape != (*axes, *shape) or array.dtype.kind != "f":
            raise ValueError(f"{part}/{name} is {array.dtype} {array.shape}, which doesn't fit the model")
        tensors[name] = torch.from_numpy(array.reshape(shape))
    return tensors


def _history(plain: dict[str, Any]) -> History:
    return History(
        train_loss=tuple(float(loss) for loss in plain["train_loss"]),
        valid=tuple(ValidLoss(**loss) for loss in plain["valid"]),
    )
