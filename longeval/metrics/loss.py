"""Metric of a training: its loss at the end.

The loss of one step is that of a few sequences and varies with their text. The mean of the last steps says better
where a training arrived, and the last tenth is little enough to leave out its beginning. Trainings are compared by
their cross-entropy without weights, so that a loss that weights tokens (LongCE) has the same unit as one that doesn't.
The same mean of the first tenth is the record's `params.first_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longeval.metrics.base import Metric, Value, register
from longeval.store.losses import LOSSES, Losses


def _loss(losses: Losses, protocol: str | None, params: Mapping[str, Any]) -> Value:
    tenth = max(1, len(losses.steps) // 10)
    return Value(
        value=_mean(losses, slice(-tenth, None)),
        fields={"tokens": sum(losses.tokens)},
        params={"first_loss": _mean(losses, slice(tenth))},
    )


def _mean(losses: Losses, steps: slice) -> float:
    """Mean cross-entropy of the tokens of some steps, nats per token."""
    values, tokens = losses.cross_entropy[steps], losses.tokens[steps]
    return math.fsum(value * count for value, count in zip(values, tokens, strict=True)) / sum(tokens)


LOSS = register(
    Metric(
        name="loss",
        artefact=LOSSES,
        higher_is_better=False,
        number="significant",
        definition="Mean cross-entropy of the tokens of the last tenth of the training's steps (at least one step), "
        "nats per token.",
        function=_loss,
    )
)
