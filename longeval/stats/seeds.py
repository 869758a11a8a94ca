"""Means over seeds with Student's t-interval, and differences of two methods seed by seed.

A seed determines data, initial weights and batch order of a training. Trainings are therefore independent of each
other; positions and sequences within a training are not. Two methods with the same seed share all three, so they are
compared seed by seed (paired t-interval), which removes the variation they share. A few seeds are enough for a
t-interval but not for a bootstrap. The t-interval assumes roughly normal values; accuracies near 100% are not normal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.95
"""Nominal coverage of the intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedMean:
    """A mean over seeds, in the unit of the values."""

    n: int
    """Number of seeds."""
    mean: float
    variance: float | None
    """Sample variance (divided by n − 1); None with one seed."""
    low: float | None
    """Lower end of the 95% t-interval of the mean; None with one seed."""
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Mapping[int, float], *, lowest: float = -math.inf, highest: float = math.inf) -> SeedMean | None:
    """Mean, variance and 95% t-interval of one finite value per seed; None without values.

    The interval is cut at `lowest` and `highest`, the bounds of possible values.
    """
    found = list(values.values())
    n = len(found)
    if not n:
        return None
    mean = math.fsum(found) / n
    if n == 1:
        return SeedMean(n=1, mean=mean, variance=None, low=None, high=None)
    variance = statistics.variance(found)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return SeedMean(n=n, mean=mean, variance=variance, low=max(lowest, mean - half), high=min(highest, mean + half))


def paired_over_seeds(a: Mapping[int, float], b: Mapping[int, float]) -> SeedMean | None:
    """Mean of b − a over the seeds that both have, with its interval; None if they share no seed."""
    return over_seeds({seed: b[seed] - a[seed] for seed in a if seed in b})


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t with P(|T| ≤ t) = level for Student's t-distribution with this many degrees of freedom."""
    from scipy.special import stdtrit  # imported here because it takes a second

    return float(stdtrit(degrees, (1 + level) / 2))
