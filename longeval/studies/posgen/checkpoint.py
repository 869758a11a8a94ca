"""States of a training as files: one `.npz` a seed, never pickle, with all that makes a resumed training the same.

about             JSON: format, model, seed, epoch, losses
weights/<name>    (1, …) as in `state.TrainState`
first/<name>, second/<name>    AdamW's moments, unless the file is there for evaluation only
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from typing import Any

import numpy as np
import torch

from longeval.errors import LongEvalError
from longeval.studies.posgen.model import ModelConfig, Weights
from longeval.studies.posgen.state import History, TrainState, ValidLoss

FORMAT = 2
"""Of these files; a file of another format isn't read."""


def to_bytes(state: TrainState, index: int = 0, *, moments: bool = True) -> bytes:
    """The file of one seed.

    Args:
        state: Of any number of seeds.
        index: Which one.
        moments: False for finished weights, which nobody trains further: a third of the size.
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
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its own keyword is no name of ours
    return buffer.getvalue()


def from_bytes(content: bytes) -> TrainState:
    """The state of one seed, on the CPU; without moments if the file has none. Never unpickles.

    Raises:
        ValueError: Not such a file, a damaged one, or one whose arrays don't fit its model.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, and {FORMAT} is known")
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
    except (KeyError, ValueError, TypeError, EOFError, OSError, LongEvalError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"not a PosGen checkpoint: {error}") from error


def _read(arrays: Any, part: str, config: ModelConfig, names: tuple[str, ...]) -> Weights:
    """The arrays of one part, checked against the model's shapes."""
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
