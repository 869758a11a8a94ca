"""The feature gap: the largest distance of a feature's value at an unseen position from all values seen in training.

The idea is from Wang et al. 2024, arXiv 2403.00071. For each feature j, with L the native and L' the target length:

    gap_j = max over m in [L, L') of min over n in [0, L) of 2·|sin((m−n)·θ_j/2)|

This is the distance on the unit circle between an unseen position and the nearest seen one, for the worst unseen
position; it lies between 0 and 2. It is computed exactly, in a time proportional to L'.

Shapes: F features.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import FloatArray, Geometry, RopeTable

_CHUNK = 2**18
"""Positions in memory at the same time, unless the native length is longer."""
_MOST_EVALUATIONS = 2**32
"""The largest L'·F that is computed. It takes about a minute, and is 64m tokens at head_dim 128."""


def feature_gaps(table: RopeTable, geometry: Geometry) -> FloatArray:
    """The feature gap of every feature between the native and the target length.

    Args:
        table: A method's table.
        geometry: The native length L and the target length L' = s·L.

    Returns:
        Gaps from 0 to 2, shape (F,). All are 0 if L' ≤ L; a feature with a period of at most L tokens has exactly 0.

    Raises:
        LongEvalError: The target length is too long for the exact maximum to be computed.
    """
    native, target, num_features = geometry.native_length, geometry.target_length, geometry.num_features
    if target * num_features > _MOST_EVALUATIONS:
        raise LongEvalError(
            f"--factor {geometry.factor:g}: a target length of {target:.4g} tokens is too long for exact feature gaps",
            f"At {geometry.head_dim} rotary dimensions, at most {_MOST_EVALUATIONS // num_features} tokens "
            "are possible.",
        )
    gaps_F, fractions = np.zeros(num_features), table.fractions()
    if target <= native:
        return gaps_F
    for j in range(num_features):
        fraction = None if fractions is None else fractions[j]
        if fraction is not None and fraction.denominator <= native:
            continue
        turns = _turns(float(table.inv_freq_F[j])) if fraction is None else float(abs(fraction - round(fraction)))
        if (target - 1) * turns <= 0.5:
            # All positions lie within half a turn: the worst unseen position is L'−1, and L−1 is nearest to it.
            turn = (target - native) * turns
        else:
            turn = _largest_window_minimum(turns, fraction, native, target)
        gaps_F[j] = 2.0 * math.sin(math.pi * turn)
    return gaps_F


def _turns(inv_freq: float) -> float:
    """Turns per token, reduced to 0 … 1/2: neither whole turns nor the direction change a distance."""
    turns = inv_freq / (2.0 * math.pi)
    return abs(turns - round(turns))


def _largest_window_minimum(turns: float, fraction: Fraction | None, native: int, target: int) -> float:
    """Max over windows [a, a+L) within 1 … L'−1 of the min over k in it of the distance of k·turns to an integer.

    With k = m−n this is the gap as a fraction of a turn. The sliding minima take two passes (van Herk 1992): a window
    of L consists of the end of one block of L and the start of the next, so running minima from both sides give it.
    """
    windows = target - native
    blocks = max(1, min(_CHUNK // native, -(-windows // native)))
    largest = 0.0
    for first in range(1, windows + 1, blocks * native):
        k = np.arange(first, first + (blocks + 1) * native)
        if fraction is None:
            position = k * turns
            distance = np.abs(position - np.rint(position))
        else:
            period = fraction.denominator
            remainder = k * fraction.numerator % period
            distance = np.minimum(remainder, period - remainder) / period
        distance = distance.reshape(blocks + 1, native)
        minimum = np.minimum.accumulate(distance[:-1, ::-1], axis=1)[:, ::-1]
        from_start = np.minimum.accumulate(distance[1:, : native - 1], axis=1)
        np.minimum(minimum[:, 1:], from_start, out=minimum[:, 1:])
        largest = max(largest, float(minimum.reshape(-1)[: windows + 1 - first].max()))
    return largest
