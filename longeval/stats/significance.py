"""Tests of differences on the same tokens or samples, and the correction for how many of them there are.

- `sign_flip`: a randomisation test (Fisher 1935, section 21). If two methods don't differ, each unit's difference could
  as well have the other sign. So p is the share of all choices of signs whose sum is at least as far from 0. For
  differences that are −1, 0 or 1 this is McNemar's exact two-sided test.
- `holm`: the chance of one or more false findings among all stays below the level, whatever the tests have in common
  (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure").

Shapes: U units, M tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longeval.stats.bootstrap import FloatArray

FLIPS = 9_999
"""Choices of signs that are drawn where there are too many to try all. The smallest p is then 1 / 10,000."""

_MOST_EXACT = 13
"""With so many units or fewer, all choices of signs are tried: at most 8,192, no more than would be drawn."""

_SIGNS_AT_ONCE = 1 << 22
"""Most signs held at once, 32 MiB as float64."""


def sign_flip(difference_U: FloatArray, *, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that the differences of independent units are symmetric about 0.

    Args:
        difference_U: Sum of differences of each unit, shape (U,), in any unit of measurement.
        flips: Number of drawn choices of signs.
        seed: Seed of the random numbers.

    Returns:
        The exact p for up to 13 units. Otherwise (1 + number of drawn sums at least as far from 0) / (1 + flips), which
        is a valid p too (Phipson & Smyth 2010).
    """
    num_units = len(difference_U)
    # Sums that are equal on paper may differ by rounding.
    least = abs(float(difference_U.sum())) - 1e-9 * float(np.abs(difference_U).sum())
    if num_units <= _MOST_EXACT:
        bits_RU = np.arange(1 << num_units)[:, None] >> np.arange(num_units) & 1
        return float((np.abs((1.0 - 2.0 * bits_RU) @ difference_U) >= least).mean())
    random = np.random.default_rng(seed)
    at_once = max(1, _SIGNS_AT_ONCE // num_units)
    as_far = 0
    for first in range(0, flips, at_once):
        signs_RU = 1.0 - 2.0 * random.integers(2, size=(min(at_once, flips - first), num_units), dtype=np.int8)
        as_far += int((np.abs(signs_RU @ difference_U) >= least).sum())
    return (1 + as_far) / (1 + flips)


def holm(p_M: Sequence[float]) -> list[float]:
    """Adjusted p-values: those below α are what Holm's procedure rejects at level α. In the order given."""
    adjusted = [0.0] * len(p_M)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_M)), key=lambda place: p_M[place])):
        highest = max(highest, min(1.0, (len(p_M) - rank) * p_M[place]))
        adjusted[place] = highest
    return adjusted
