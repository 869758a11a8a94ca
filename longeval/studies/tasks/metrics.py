"""Metrics of lm-eval's tasks under longeval's names, and which of them are means over samples.

A metric that is a mean has a value for every sample, which standard errors, paired comparisons and heat maps need. Any
other (perplexity, F1 and BLEU over a whole corpus) has one for all samples together, by the task's own aggregation.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from longeval.studies.tasks.definitions.guards import quiet

RESAMPLES = 200
"""Draws of a bootstrap; lm-eval's own default of 100,000 takes minutes and changes nothing in two digits."""

_PLACEHOLDER = -1.0
"""What lm-eval's RULER tasks give for lengths that a sample doesn't have (tasks/ruler/common_utils.py)."""

_PROBES = ((0.0, 1.0, 1.0, 0.0, 1.0), (0.25, 0.5, 0.875, 0.125))
"""Numbers on which an aggregation is tried: only a mean gives their means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMetric:
    """A metric of a task, as the task itself defines it."""

    name: str
    """As records have it."""
    filter: str
    """Name of the filter that answers went through; `none` where the task has none of its own."""
    higher_is_better: bool | None
    """None where the task doesn't say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """A value for all samples together."""

    value: float
    stderr: float | None
    """By bootstrap over samples; None where lm-eval has none."""
    n: int
    """Samples that it is made of."""


def is_length(name: str) -> bool:
    """Whether a metric is called after a context length, as in lm-eval's RULER tasks."""
    return name.isdecimal()


def metric_name(name: str, filter_name: str, *, only_filter: bool) -> str:
    """Name in records of lm-eval's metric `name` after filter `filter_name`.

    `acc` is `accuracy`, lengths (RULER) are `recall`, words are in snake case; a filter's name is put behind unless it
    is `none` or the only one.
    """
    plain = "recall" if is_length(name) else re.sub(r"^acc(?=_|$)", "accuracy", _snake(name))
    return plain if only_filter or filter_name == "none" else f"{plain}_{_snake(filter_name)}"


def is_mean(aggregation: Callable[[Sequence[float]], float] | None) -> bool:
    """Whether an aggregation of lm-eval's is the plain mean of its values; a task without one has lm-eval's mean.

    nanmean is one: samples without a value are left out. Functions of a task's own are tried on a few numbers.
    """
    from lm_eval.api import metrics

    if aggregation in (None, metrics.mean, metrics.nanmean):
        return True
    assert aggregation is not None
    try:
        with quiet():
            return all(math.isclose(float(aggregation(list(probe))), statistics.fmean(probe)) for probe in _PROBES)
    except Exception:  # it wants something else than numbers, and may say so in any way
        return False


def absent(name: str, value: Any, aggregation: Callable[[Sequence[float]], float] | None) -> bool:
    """Whether a sample's `value` says that it has none: RULER's other lengths, NaN where the task's mean skips it."""
    from lm_eval.api import metrics

    if is_length(name):
        return bool(value == _PLACEHOLDER)
    return aggregation is metrics.nanmean and bool(math.isnan(value))


def aggregate(aggregation: Callable[[Sequence[Any]], float], values: Sequence[Any]) -> Aggregate:
    """A task's own aggregation, with its standard error where lm-eval has one for it, or for weighted perplexities.

    Raises:
        ValueError: The value is no finite number.
    """
    items = list(values)
    with quiet():
        try:
            value = float(aggregation(items))
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise ValueError(f"its value over {len(items)} samples is {value}")
        return Aggregate(value=value, stderr=_stderr(aggregation, items), n=len(items))


def _stderr(aggregation: Callable[[Sequence[Any]], float], items: list[Any]) -> float | None:
    """Standard deviation of the aggregation over resamples, drawn as lm-eval draws its first; None without any."""
    from lm_eval.api import metrics

    if len(items) < 2:
        return None
    if aggregation is metrics.acc_all:
        return float(metrics.acc_all_stderr(items))
    weighted = (metrics.weighted_perplexity, metrics.bits_per_byte)
    if aggregation not in weighted and metrics.stderr_for_metric(aggregation, RESAMPLES) is None:
        return None
    # lm-eval's own bootstrap_stderr starts a process for each core, prints, and draws bars.
    slow = aggregation in (metrics.bleu, metrics.chrf, metrics.chrfpp, metrics.ter)
    draws = random.Random(0)  # noqa: S311  # no secret
    try:
        values = [aggregation(draws.choices(items, k=len(items))) for _ in range(RESAMPLES // 2 if slow else RESAMPLES)]
    except (ArithmeticError, ValueError):  # of a resample without some class, or with nothing but the worst sample
        return None
    spread = statistics.stdev(map(float, values))
    return spread if math.isfinite(spread) else None


def _snake(name: str) -> str:
    return re.sub(r"[-\s]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()
