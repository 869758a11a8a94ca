"""Means over seeds with Student's t-interval, and differences of two methods seed by seed.

A seed decides data, initial weights and order of training, so trainings are the independent units here; positions and
sequences of one training are not. With two methods, the same seed shares all three: their difference is taken seed by
seed (a paired t-interval), which leaves out what both have in common. A handful of seeds is enough for a t-interval and
too few for a bootstrap; it takes values to be roughly normal, which accuracies near 100% are not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.95
"""Nominal coverage of all intervals here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedMean:
    """A mean over seeds; the unit is that of the values."""

    n: int
    """Seeds."""
    mean: float
    variance: float | None
    """Sample variance (n − 1 below), in the square of the unit; None with one seed."""
    low: float | None
    """Lower end of the 95% t-interval of the mean; None with one seed."""
    high: float | None
    """Upper end."""

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Mapping[int, float], *, lowest: float = -math.inf, highest: float = math.inf) -> SeedMean | None:
    """Mean, variance and interval of one value per seed; None without any.

    Args:
        values: Seed to value, finite.
        lowest: Least value possible; the interval ends there, where t alone would go beyond.
        highest: Greatest value possible.
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
    """Mean of b − a over the seeds that both have, with its interval; None if they share none."""
    return over_seeds({seed: b[seed] - a[seed] for seed in a if seed in b})


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t with P(|T| ≤ t) = level for Student's distribution with so many degrees of freedom."""
    from scipy.special import stdtrit  # only here: it takes a second to import

    return float(stdtrit(degrees, (1 + level) / 2))
