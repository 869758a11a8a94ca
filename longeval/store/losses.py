"""The losses of a training by step, which the training leaves beside its record, as one JSON object."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longeval.plain import made_from, read_json
from longeval.store.artefact import ARTEFACTS, Artefact, check_count
from longeval.store.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What one training logged, with one value for each optimiser step."""

    steps: tuple[int, ...]
    """Number of each step, counted from 1."""
    loss: tuple[float, ...]
    """The loss that the step minimised, nats per token that it trained on. Weights of tokens are in it."""
    lr: tuple[float, ...]
    """Learning rate of the step."""
    gradient_norm: tuple[float, ...]
    """Norm of the gradient before it was clipped."""
    seconds: tuple[float, ...]
    """Wall time of the step."""
    tokens: tuple[int, ...]
    """Tokens that the step read, on all devices."""
    plain_loss: tuple[float, ...] | None = None
    """Mean cross-entropy of the same tokens, nats per token, where `loss` weights them; None where it doesn't."""

    def __post_init__(self) -> None:
        if any(len(values) != len(self.steps) for values in self._by_step().values()):
            raise ValueError("its lists by step differ in length")

    @property
    def cross_entropy(self) -> tuple[float, ...]:
        """Mean cross-entropy of each step's tokens without weights, nats per token."""
        return self.loss if self.plain_loss is None else self.plain_loss

    def rows(self) -> list[dict[str, float]]:
        """One mapping for each step, from name to value; its number is under `step`."""
        by_step = self._by_step()
        names = ["step", *list(by_step)[1:]]
        return [dict(zip(names, values, strict=True)) for values in zip(*by_step.values(), strict=True)]

    def to_json(self) -> str:
        """The losses as one JSON object, without `plain_loss` where there is none."""
        return json.dumps(self._by_step(), allow_nan=False) + "\n"

    def _by_step(self) -> dict[str, Sequence[float]]:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: found for name, found in values.items() if found is not None}


def losses_from_json(content: bytes) -> Losses:
    """Inverse of `Losses.to_json`. Raises ValueError for any other content."""
    return made_from(Losses, read_json(content))


def _check(losses: Losses, records: Sequence[Record]) -> None:
    """Raises ValueError with the reason for steps or values that no training has, or other counts than the records'."""
    if not losses.steps or list(losses.steps) != list(range(1, len(losses.steps) + 1)):
        raise ValueError("its steps are not counted from 1")
    if not all(math.isfinite(value) for value in (*losses.loss, *losses.cross_entropy)):
        raise ValueError("a loss is not finite")
    for name in ("lr", "gradient_norm", "seconds"):
        if not all(math.isfinite(value) and value >= 0 for value in getattr(losses, name)):
            raise ValueError(f"a value of {name} is negative or not finite")
    if min(losses.tokens) < 1:
        raise ValueError("a step has no tokens")
    for record in records:
        check_count(record.tokens, sum(losses.tokens), "tokens")
        check_count(record.params.get("steps"), len(losses.steps), "steps")


def _by_step(losses: Losses) -> Mapping[str, Mapping[int, float]]:
    """Loss and learning rate by step, under names that no metric has."""
    return {
        "training_loss": dict(zip(losses.steps, losses.loss, strict=True)),
        "learning_rate": dict(zip(losses.steps, losses.lr, strict=True)),
    }


LOSSES = ARTEFACTS.register(
    "losses",
    Artefact(
        folder="losses",
        suffix="json",
        encode=lambda losses: losses.to_json().encode(),
        decode=losses_from_json,
        check=_check,
        by_epoch=_by_step,
    ),
)
