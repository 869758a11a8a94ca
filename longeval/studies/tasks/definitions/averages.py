"""Averages over the tasks of a group, by lm-eval's rules and by ours where a benchmark publishes its own.

lm-eval (0.4.13, api/group.py, api/metrics.py): the mean over all leaves of a group, nested groups laid flat, plain or
weighted by the number of samples. One difference, on purpose: lm-eval leaves out tasks that have no value, with a
warning; here an average with a missing member is no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAverage:
    """One average of a group: `aggregate_metric_list` in lm-eval's YAML, or our `average_over`."""

    group: str
    """Name of the group, which may be nested in the one that was asked for."""
    metric: str | None
    """lm-eval's name of the metric, `acc`; null: each member's main metric. A number, as in RULER, whose metrics are
    named by length, stands for the metric of the cell's length."""
    filters: tuple[str, ...] | None
    """Filters to average, one number each; null: all that the members have."""
    weight_by_size: bool
    """Whether a member counts as often as it has samples; otherwise all members count alike."""
    members: tuple[str, ...]
    """The tasks that are averaged; in a group's entry: none where all of its tasks are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Averaged:
    """The outcome of an average."""

    value: float | None
    """The mean; null if a member is missing."""
    stderr: float | None
    """Its standard error; null if a member has none."""
    missing: tuple[str, ...]
    """Members without a value."""


def average(
    spec: GroupAverage,
    values: Mapping[str, float | None],
    *,
    sizes: Mapping[str, int] | None = None,
    stderrs: Mapping[str, float | None] | None = None,
) -> Averaged:
    """Averages the members' values of one metric and one filter.

    The standard error is that of a weighted sum of independent means, sqrt(Σ w²·se²), for both kinds of weights.
    (lm-eval pools the variances for weighted means, which is the same only if the members' means are equal.)

    Args:
        spec: What is averaged.
        values: Value by member; left out or null: missing.
        sizes: Number of samples by member; needed where `spec.weight_by_size`.
        stderrs: Standard error by member, where there is one.
    """
    missing = tuple(name for name in spec.members if values.get(name) is None)
    if missing or not spec.members:
        return Averaged(value=None, stderr=None, missing=missing)
    if spec.weight_by_size:
        assert sizes is not None, "a weighted average needs sizes"
        total = sum(sizes[name] for name in spec.members)
        weights = {name: sizes[name] / total for name in spec.members}
    else:
        weights = dict.fromkeys(spec.members, 1 / len(spec.members))
    value = math.fsum(weights[name] * float(values[name] or 0.0) for name in spec.members)
    found = {name: (stderrs or {}).get(name) for name in spec.members}
    if any(stderr is None for stderr in found.values()):
        return Averaged(value=value, stderr=None, missing=())
    variance = math.fsum((weights[name] * float(stderr or 0.0)) ** 2 for name, stderr in found.items())
    return Averaged(value=value, stderr=math.sqrt(variance), missing=())
