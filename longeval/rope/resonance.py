"""Resonance: every wavelength rounded to a whole number of tokens. Source: Wang et al. 2024, arXiv 2403.00071.

At positions beyond the trained length, a feature with an integer wavelength λ̃ ≤ L has only values that also occur in
training. Resonance transforms another method's table and is applied last, because scaling after rounding would give
wavelengths that are not integers.
"""

from __future__ import annotations

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable

_LONGEST_WAVELENGTH = 2.0**53
"""Longest wavelength in tokens; above it float64 has no fractions."""


def resonate(table: RopeTable) -> RopeTable:
    """Rounds all wavelengths of a method's table: λ̃_j = round(λ_j) and θ̃_j = 2π/λ̃_j, shape (F,).

    The attention factor stays. `period_F` is set, so angles repeat exactly after these numbers of tokens.

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
    return RopeTable(inv_freq_F=2.0 * np.pi / rounded_F, attention_factor=table.attention_factor, period_F=period_F)
