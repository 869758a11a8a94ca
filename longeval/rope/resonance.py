"""Resonance: every feature repeats exactly after a whole number of tokens. Source: Wang et al. 2024, arXiv 2403.00071.

At positions beyond the trained length, a feature with a period of p ≤ L tokens has only values that also occur in
training. The paper rounds every wavelength, so that a feature turns once in its period: p = round(λ). It repeats as
exactly if it turns q times in p tokens. Then its wavelength is p/q, which can be nearer to the method's own.

Resonance transforms another method's table and is applied last, because scaling after rounding would give features
that don't repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable

RESONANCE = "resonance"
"""The name under which `--pe-arg` takes the parameters of every resonance form."""

_LONGEST_WAVELENGTH = 2.0**53
"""Longest wavelength in tokens; above it float64 has no fractions."""

_LONGEST_PERIOD = 2**30
"""Longest period with several turns, tokens: products of a position below it and of turns fit into int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResonanceParameters:
    """Parameters of the resonance form of every method."""

    max_period: int | Literal["rounded", "native"] = "rounded"
    """Longest period in tokens in which a feature may turn several times. `rounded`: each turns once (the paper's);
    `native`: L."""

    def __post_init__(self) -> None:
        if isinstance(self.max_period, int) and not 1 <= self.max_period <= _LONGEST_PERIOD:
            raise LongEvalError(
                f"max_period {self.max_period}: must be from 1 to {_LONGEST_PERIOD} tokens",
                "Give a number of tokens, native (the native length) or rounded (one turn in each period).",
            )

    def longest_period(self, native_length: int) -> int:
        """The argument `max_period` of `resonate`, tokens, for a native length of L tokens."""
        if isinstance(self.max_period, int):
            return self.max_period
        return min(native_length, _LONGEST_PERIOD) if self.max_period == "native" else 0


def resonate(table: RopeTable, max_period: int = 0) -> RopeTable:
    """Replaces every frequency of a method's table by one that repeats exactly: θ̃_j = 2π·q_j/p_j, shape (F,).

    A feature with λ_j ≤ `max_period` gets the fraction q_j/p_j of a turn a token that is nearest to θ_j/2π among those
    with p_j ≤ `max_period`. Every other feature gets the paper's rounding, p_j = round(λ_j) and q_j = 1, because with
    such a period it could only stand still or turn faster, once in `max_period` tokens.

    The attention factor stays. `period_F` and `turns_F` are set, so angles repeat exactly after p_j tokens.

    Args:
        table: The table of a method.
        max_period: Longest period of features that turn several times, tokens; 0: every feature turns once.

    Raises:
        LongEvalError: A wavelength is below half a token, or too long for an exact integer in float64.
    """
    wavelengths_F = np.asarray(table.wavelengths_F)
    rounded_F = np.rint(wavelengths_F)
    good_F = (rounded_F >= 1) & (rounded_F < _LONGEST_WAVELENGTH)
    if not good_F.all():
        worst = int(np.argmin(good_F))
        raise LongEvalError(
            f"--pe resonance: feature {worst} has a wavelength of {wavelengths_F[worst]:.6g} tokens, "
            "which can't be rounded to a usable integer",
            "Check --theta and the method's parameters.",
        )
    period_F = rounded_F.astype(np.int64)
    turns_F = np.ones_like(period_F)
    for j in np.flatnonzero(wavelengths_F <= max_period):
        nearest = Fraction(float(table.inv_freq_F[j] / (2.0 * np.pi))).limit_denominator(max_period)
        period_F[j], turns_F[j] = nearest.denominator, nearest.numerator
    return RopeTable(
        inv_freq_F=2.0 * np.pi * turns_F / period_F,
        attention_factor=table.attention_factor,
        period_F=period_F,
        turns_F=None if np.all(turns_F == 1) else turns_F,
    )
