"""Metrics of PosGen's curves: accuracies below and beyond the training length.

Each is the share (0 to 1) of correct tokens over all test sequences and some positions. For teacher-forced accuracy the
model sees the true tokens before each predicted one; for free-running accuracy it sees the tokens it generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from longeval.metrics.base import Metric, Value, register
from longeval.store.curves import CURVES, Curves


def _in_distribution(curves: Curves, protocol: str | None, params: Mapping[str, Any]) -> Value:
    inside = slice(0, curves.num_inside(params["train_length"]))
    return _teacher_forced(curves.accuracy[inside], curves.loss[inside], params["num_test"])


def _ood(curves: Curves, protocol: str | None, params: Mapping[str, Any]) -> Value:
    outside = slice(curves.num_inside(params["train_length"]), None)
    return _teacher_forced(curves.accuracy[outside], curves.loss[outside], params["num_test"])


def _generated(curves: Curves, protocol: str | None, params: Mapping[str, Any]) -> Value:
    shares = curves.generated[curves.num_inside(params["train_length"]) :]
    fields = {"protocol": "free_running", "tokens": params["num_test"] * len(shares)}
    return Value(value=float(np.mean(shares)), fields=fields)


def _teacher_forced(shares: tuple[float, ...], losses: tuple[float, ...], num_sequences: int) -> Value:
    """Mean accuracy over some positions, with their summed NLL."""
    fields = {
        "protocol": "teacher_forced",
        "tokens": num_sequences * len(shares),
        "nll_sum": float(np.sum(losses) * num_sequences),
    }
    return Value(value=float(np.mean(shares)), fields=fields)


ACCURACY_IN_DISTRIBUTION = register(
    Metric(
        name="accuracy_in_distribution",
        artefact=CURVES,
        higher_is_better=True,
        number="percent",
        definition="Teacher-forced accuracy over the predicted positions below the training length.",
        function=_in_distribution,
    )
)

ACCURACY_OOD = register(
    Metric(
        name="accuracy_ood",
        artefact=CURVES,
        higher_is_better=True,
        number="percent",
        definition="Teacher-forced accuracy over the positions from the training length on (out of distribution).",
        function=_ood,
    )
)

ACCURACY_GENERATED = register(
    Metric(
        name="accuracy_generated",
        artefact=CURVES,
        higher_is_better=True,
        number="percent",
        definition="Free-running accuracy over the positions from the training length on.",
        function=_generated,
    )
)
