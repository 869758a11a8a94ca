"""Checkpoints of a training under way, from which it goes on exactly.

A checkpoint is a folder, `step-000040`, that gets this name when it is complete:

weights.safetensors    the weights that are trained
moments.safetensors    AdamW's state, `<name of the weight>:<name in AdamW>`
about.json             format, training, step, the log so far, and a checksum of both files

Nothing is pickled. All other state (order of the text, learning rate, dropout) follows from the seed and the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longeval.errors import LongEvalError, reason
from longeval.files import working_folder
from longeval.store.losses import Losses

_FORMAT = 1
_NAME = re.compile(r"step-([0-9]{6,})")
_ABOUT, _WEIGHTS, _MOMENTS = "about.json", "weights.safetensors", "moments.safetensors"
_SECONDS = 600.0
"""Time between checkpoints where no number of steps is set."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLog:
    """What is known of one optimiser step."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """The loss that the step minimised, nats per token; tokens are weighted where the loss weights them."""
    plain_loss: float | None
    """Mean cross-entropy of the same tokens, nats per token, where `loss` weights them; None where it doesn't."""
    lr: float
    """Learning rate."""
    gradient_norm: float
    """Norm of the gradient before it was clipped."""
    seconds: float
    """Wall time of the step."""
    tokens: int
    """Tokens that the step read, on all devices."""


def losses_of(log: Sequence[StepLog]) -> Losses:
    """The log of a training in the form in which it is stored, with one tuple for each value."""
    steps, loss, plain_loss, lr, gradient_norm, seconds, tokens = zip(*map(dataclasses.astuple, log), strict=True)
    return Losses(
        steps=steps,
        loss=loss,
        plain_loss=None if plain_loss[0] is None else plain_loss,
        lr=lr,
        gradient_norm=gradient_norm,
        seconds=seconds,
        tokens=tokens,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingState:
    """What a training needs to go on after a step."""

    log: tuple[StepLog, ...]
    """The steps done."""
    weights: Mapping[str, torch.Tensor]
    """The weights that are trained, by name."""
    moments: Mapping[str, torch.Tensor]
    """AdamW's state, by `<name of the weight>:<name in AdamW>`."""

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.log)


class Checkpoints:
    """The checkpoints of one training in a folder of their own.

    Args:
        folder: The folder, which is made when the first checkpoint is saved.
        keep: How many checkpoints are kept; older ones are removed.
        every: Steps between checkpoints; None: as many as take ten minutes.
        training: Identifies the training; a folder with checkpoints of another one is refused.
    """

    def __init__(self, folder: str, keep: int = 1, *, every: int | None = None, training: str = "") -> None:
        assert keep >= 1
        self.folder = folder
        self._keep = keep
        self._every = every
        self._training = training
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after `step` steps."""
        if self._every is not None:
            return step % self._every == 0
        return time.monotonic() - self._last >= _SECONDS

    def save(self, state: TrainingState) -> None:
        """Saves a checkpoint, then removes those that are not kept.

        Raises:
            OSError: It can't be written. Then no part of it is left, and earlier ones stay.
        """
        os.makedirs(self.folder, exist_ok=True)
        final = os.path.join(self.folder, f"step-{state.step:06d}")
        with working_folder(self.folder) as place:
            made = os.path.join(place, "made")
            os.mkdir(made)
            checksums = {}
            for name, tensors in ((_WEIGHTS, state.weights), (_MOMENTS, state.moments)):
                path = os.path.join(made, name)
                try:
                    save_file(dict(tensors), path)
                except SafetensorError as error:
                    raise OSError(f"can't write {final}: {reason(error)}") from error
                checksums[name] = _checksum(path)
                _flush(path)
            about = {
                "format": _FORMAT,
                "training": self._training,
                "step": state.step,
                "log": [dataclasses.asdict(step) for step in state.log],
                "checksums": checksums,
            }
            with open(os.path.join(made, _ABOUT), "w", encoding="utf-8") as file:
                json.dump(about, file)
            _flush(os.path.join(made, _ABOUT))
            if os.path.lexists(final):  # a damaged one, or the training would have gone on from it
                os.rename(final, os.path.join(place, "damaged"))
            os.rename(made, final)
        for step in self._steps()[: -self._keep]:
            shutil.rmtree(os.path.join(self.folder, f"step-{step:06d}"), ignore_errors=True)
        self._last = time.monotonic()

    def newest(self) -> TrainingState | None:
        """Reads the newest checkpoint that is whole, onto the CPU; None where there is none.

        Raises:
            LongEvalError: The folder holds checkpoints of another training.
        """
        for step in reversed(self._steps()):
            path = os.path.join(self.folder, f"step-{step:06d}")
            try:
                return self._read(path)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                _log.warning("%s is damaged, and the checkpoint before it is used: %s", path, reason(error))
        return None

    @property
    def last_step(self) -> int:
        """Steps done at the newest checkpoint, which may be damaged; 0 where there is none."""
        return max(self._steps(), default=0)

    def remove(self) -> None:
        """Removes the folder, and the one that it lies in if that is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self.folder))

    def _steps(self) -> list[int]:
        """The steps of which there are checkpoints, ascending."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def _read(self, path: str) -> TrainingState:
        with open(os.path.join(path, _ABOUT), encoding="utf-8") as file:
            about: dict[str, Any] = json.load(file)
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']!r}, and {_FORMAT} is known")
        if about["training"] != self._training:
            raise LongEvalError(
                f"{path}: a checkpoint of another training", "Give another --out, or remove the folder of checkpoints."
            )
        for name in (_WEIGHTS, _MOMENTS):
            if _checksum(os.path.join(path, name)) != about["checksums"][name]:
                raise ValueError(f"{name} is not what was written")
        return TrainingState(
            log=tuple(StepLog(**step) for step in about["log"]),
            weights=load_file(os.path.join(path, _WEIGHTS)),
            moments=load_file(os.path.join(path, _MOMENTS)),
        )


def _checksum(path: str) -> int:
    """CRC-32 of a file; a flipped bit would otherwise train on in silence."""
    value = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            value = zlib.crc32(part, value)
    return value


def _flush(path: str) -> None:
    """Waits until a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
