"""Curves of a PosGen cell: accuracy and loss by position, and validation losses by epoch.

Records hold means over positions. Curves hold every position, so that figures can be drawn without the model. Each
cell's curves are stored as one JSON object.
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
"""A float; null in the file stands for NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Accuracy and loss of one cell by position, and its validation losses by epoch."""

    positions: tuple[int, ...]
    """Index in the sequence of each predicted token, ascending. `accuracy`, `loss` and `generated` have one value for
    each of them."""
    accuracy: tuple[_Number, ...]
    """Share of test sequences in which the model finds the true token likeliest, given the true tokens before it."""
    loss: tuple[_Number, ...]
    """Mean negative log-likelihood of the true token, nats."""
    generated: tuple[_Number, ...]
    """Share of test sequences in which the model generates the true token, continuing from its own tokens."""
    epochs: tuple[int, ...]
    """Epochs after which the validation losses were computed, counted from 1."""
    valid_loss_in_distribution: tuple[_Number, ...]
    """Mean loss in nats over positions below the training length, for each epoch."""
    valid_loss_ood: tuple[_Number, ...]
    """Mean loss in nats over positions from the training length on, for each epoch."""

    def __post_init__(self) -> None:
        if not len(self.positions) == len(self.accuracy) == len(self.loss) == len(self.generated):
            raise ValueError("its lists by position differ in length")
        if not len(self.epochs) == len(self.valid_loss_in_distribution) == len(self.valid_loss_ood):
            raise ValueError("its lists by epoch differ in length")

    def num_inside(self, train_length: int) -> int:
        """Number of positions below the training length (in distribution); they come first."""
        return max(0, train_length - self.positions[0])

    def to_json(self) -> str:
        """The curves as one JSON object. Values that are not finite become null, because JSON has no NaN."""
        plain: dict[str, list[Any]] = {
            item.name: [value if math.isfinite(value) else None for value in getattr(self, item.name)]
            for item in dataclasses.fields(self)
        }
        return json.dumps(plain, allow_nan=False) + "\n"


def curves_from_json(content: bytes) -> Curves:
    """Inverse of `Curves.to_json`; null becomes NaN. Raises ValueError for any other content."""
    return made_from(Curves, read_json(content))


def _check(curves: Curves, records: Sequence[Record]) -> None:
    """Raises ValueError with the reason for impossible positions, epochs or shares."""
    positions = curves.positions
    if not positions or list(positions) != list(range(positions[0], positions[-1] + 1)):
        raise ValueError("its positions are not consecutive")
    if list(curves.epochs) != sorted(set(curves.epochs)):
        raise ValueError("its epochs are not in order")
    if not all(0 <= share <= 1 for share in (*curves.accuracy, *curves.generated)):
        raise ValueError("an accuracy is not between 0 and 1")


def _mean_share(shares_of: Callable[[Curves, int], tuple[float, ...]]) -> Callable[[Curves, Record], float]:
    """Makes the function for `Artefact.values`: the mean of `shares_of(curves, positions in distribution)`."""

    def value(curves: Curves, record: Record) -> float:
        shares = shares_of(curves, curves.num_inside(record.params["train_length"]))
        if not shares:
            raise ValueError(f"it has no position for {record.metric}")
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
