"""Curves of a PosGen cell: what its accuracies are made of, by position, and how its losses fell, by epoch.

A record holds means over positions; these hold every position, so that a figure needs no model. Stored as one JSON
object a cell.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from longeval.plain import made_from, read_json
from longeval.store.artefact import ARTEFACTS, Artefact, check_count
from longeval.store.records import Record

_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; null in a file is NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Accuracy and loss of one cell by position, and its validation losses by epoch."""

    positions: tuple[int, ...]
    """Index of each predicted token in its sequence, from the first that a rule makes to the last; the lists below of
    the same length go with it."""
    accuracy: tuple[_Number, ...]
    """Share of test sequences whose token here is the likeliest one, given the true ones before it."""
    loss: tuple[_Number, ...]
    """Mean negative log-likelihood of that token, nats."""
    generated: tuple[_Number, ...]
    """Share of test sequences whose token here is right when the model goes on from its own tokens."""
    epochs: tuple[int, ...]
    """Epochs after which the validation losses were taken, counted from 1."""
    valid_loss_in_distribution: tuple[_Number, ...]
    """Mean loss, nats, over positions below the training length, by epoch."""
    valid_loss_ood: tuple[_Number, ...]
    """Mean loss, nats, over positions from the training length on, by epoch."""

    def __post_init__(self) -> None:
        if not len(self.positions) == len(self.accuracy) == len(self.loss) == len(self.generated):
            raise ValueError("its lists by position differ in length")
        if not len(self.epochs) == len(self.valid_loss_in_distribution) == len(self.valid_loss_ood):
            raise ValueError("its lists by epoch differ in length")

    def num_inside(self, train_length: int) -> int:
        """How many of the positions, from the first on, are below the training length: in distribution."""
        return max(0, train_length - self.positions[0])

    def to_json(self) -> str:
        """One JSON object; a value that is not finite becomes null (JSON has no NaN)."""
        plain: dict[str, list[Any]] = {
            item.name: [value if math.isfinite(value) else None for value in getattr(self, item.name)]
            for item in dataclasses.fields(self)
        }
        return json.dumps(plain, allow_nan=False) + "\n"


def curves_from_json(content: bytes) -> Curves:
    """Inverse of `Curves.to_json`, null becoming NaN; ValueError where `content` is nothing of the kind."""
    return made_from(Curves, read_json(content))


def _check(curves: Curves, records: Sequence[Record]) -> None:
    """Raises ValueError, saying what, where positions, epochs or shares can't be."""
    positions = curves.positions
    if not positions or list(positions) != list(range(positions[0], positions[-1] + 1)):
        raise ValueError("its positions are not in a row")
    if list(curves.epochs) != sorted(set(curves.epochs)):
        raise ValueError("its epochs are not in order")
    if not all(0 <= share <= 1 for share in (*curves.accuracy, *curves.generated)):
        raise ValueError("an accuracy is not between 0 and 1")


def _mean_share(shares_of: Callable[[Curves, int], tuple[float, ...]]) -> Callable[[Curves, Record], float]:
    """Mean of a metric's shares, which are found from (curves, number of positions in distribution)."""

    def value(curves: Curves, record: Record) -> float:
        shares = shares_of(curves, curves.num_inside(record.params["train_length"]))
        if not shares:
            raise ValueError(f"no position is of {record.metric}")
        if record.n is not None:
            check_count(record.tokens, record.n * len(shares), "tokens")
        return math.fsum(shares) / len(shares)

    return value


CURVES = ARTEFACTS.register(
    "curves",
    Artefact(
        folder="curves",
        suffix="json",
        encode=lambda curves: curves.to_json().encode(),
        decode=curves_from_json,
        check=_check,
        by_epoch=lambda curves: {
            "valid_loss_in_distribution": dict(zip(curves.epochs, curves.valid_loss_in_distribution, strict=True)),
            "valid_loss_ood": dict(zip(curves.epochs, curves.valid_loss_ood, strict=True)),
        },
        values={
            "accuracy_in_distribution": _mean_share(lambda curves, inside: curves.accuracy[:inside]),
            "accuracy_ood": _mean_share(lambda curves, inside: curves.accuracy[inside:]),
            "accuracy_generated": _mean_share(lambda curves, inside: curves.generated[inside:]),
        },
    ),
)
