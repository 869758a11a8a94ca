"""Resonance: every wavelength rounded to a whole number of tokens. Source: Wang et al. 2024, arXiv 2403.00071.

A feature with an integer wavelength λ̃ ≤ L takes, at positions never seen in training, only values it took there. It
is a transform of another method's table, applied last: rounding first and scaling afterwards gives other wavelengths,
most of which are no integers.
"""

from __future__ import annotations

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable

# From here on float64 has no fractions, and positions that long don't exist.
_LONGEST_WAVELENGTH = 2.0**53


def resonate(table: RopeTable) -> RopeTable:
    """λ̃_j = round(λ_j) and θ̃_j = 2π/λ̃_j for every feature; the attention factor is kept.

    Args:
        table: Any method's table.

    Returns:
        A table with `period_F` set, whose angles repeat exactly after `period_F` tokens.

    Raises:
        LongEvalError: A wavelength below half a token, or too long to be an exact integer (a senseless base).
    """
    wavelengths_F = np.asarray(table.wavelengths_F)
    rounded_F = np.rint(wavelengths_F)
    if rounded_F.min() < 1 or not rounded_F.max() < _LONGEST_WAVELENGTH:
        worst = int(np.argmin(rounded_F) if rounded_F.min() < 1 else np.argmax(rounded_F))
        raise LongEvalError(
            f"--pe resonance: feature {worst} has a wavelength of {wavelengths_F[worst]:.6g} tokens, "
            "which can't be rounded to a usable integer",
            "Check --theta and the method's parameters.",
        )
    period_F = rounded_F.astype(np.int64)
    return RopeTable(inv_freq_F=2.0 * np.pi / rounded_F, attention_factor=table.attention_factor, period_F=period_F)
