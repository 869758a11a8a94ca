"""Intervals and a test for right-or-wrong samples that are independent: one proportion, and two paired ones."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

ScoreUnit = Literal["sample", "document"]

LEVEL = 0.95
"""Nominal coverage of every interval here."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


class Spread(NamedTuple):
    """An interval and how it was drawn."""

    low: float | None
    high: float | None
    how: dict[str, Any] | None


NO_SPREAD = Spread(None, None, None)


def mcnemar(a_only: int, b_only: int) -> float:
    """McNemar's exact two-sided p: twice the smaller tail of Binomial(a_only + b_only, 1/2), at most 1."""
    discordant = a_only + b_only
    tail = sum(math.comb(discordant, k) for k in range(min(a_only, b_only) + 1))
    # Integers of any size: only their quotient has to fit into a float.
    return float(min(1.0, 2 * tail / (1 << discordant)))


def wilson(share: float, n: int, kind: ScoreUnit = "sample") -> Spread:
    """Wilson's 95% interval of a proportion `share` among `n` (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4)."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and 1 the formula's own ends, without the last digits of its rounding.
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
    return Spread(low, high, {"method": "wilson", "kind": kind, "units": n, "level": LEVEL})


def bonett_price(a_only: int, b_only: int, n: int, kind: ScoreUnit = "sample") -> Spread:
    """Bonett & Price's 95% interval of a difference of paired proportions (2012, Wald with Laplace's adjustment).

    Its coverage is close to nominal from small samples on (Fagerland, Lydersen & Laake 2014), and it has a width where
    no sample differs.
    """
    more, less = (b_only + 1) / (n + 2), (a_only + 1) / (n + 2)
    half = _Z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    how = {"method": "bonett_price", "kind": kind, "units": n, "level": LEVEL}
    return Spread(max(-1.0, more - less - half), min(1.0, more - less + half), how)
