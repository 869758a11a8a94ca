"""The feature gap: how far a feature's value at an unseen position can be from its values at all seen positions.

Source of the idea: Wang et al. 2024, arXiv 2403.00071. It is defined here in its strong reading, for each feature j,
with L the native and L' the target length:

    gap_j = max over m in [L, L') of min over n in [0, L) of 2·|sin((m−n)·θ_j/2)|

the largest change of a unit feature between an unseen position and the nearest seen one, between 0 and 2. It is
computed exactly, in a time that grows with L' alone.

Shapes: F features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import FloatArray, Geometry, IntArray, RopeTable
from longeval.rope.build import MethodName

_CHUNK = 2**18
"""Positions in memory at once; a block is never shorter than the native length."""
_MOST_EVALUATIONS = 2**32
"""The largest L'·F, which takes about a minute."""


def feature_gaps(table: RopeTable, geometry: Geometry) -> FloatArray:
    """The feature gap of every feature between the native and the target length.

    Args:
        table: A method's frequencies or, where resonance rounded them, periods.
        geometry: Gives L and L' = s·L.

    Returns:
        Gaps from 0 to 2, shape (F,). All 0 if L' ≤ L; exactly 0 for a period of at most L tokens.

    Raises:
        LongEvalError: A target length so long that the exact maximum is out of reach.
    """
    native = geometry.native_length
    check_target(geometry)
    target = geometry.target_length
    gaps_F = np.zeros(geometry.num_features)
    if target <= native:
        return gaps_F
    for j in range(geometry.num_features):
        period = None if table.period_F is None else int(table.period_F[j])
        if period is not None and period <= native:
            continue
        turns = 1.0 / period if period is not None else _turns(float(table.inv_freq_F[j]))
        if (target - 1) * turns <= 0.5:
            # Less than half a turn in all: the nearest seen position is the last one, the farthest unseen the last.
            turn = (target - native) * turns
        else:
            turn = _largest_window_minimum(turns, period, native, target)
        gaps_F[j] = 2.0 * math.sin(math.pi * turn)
    return gaps_F


def check_target(geometry: Geometry) -> None:
    """Raises LongEvalError if the target length is too long for exact gaps (64m tokens at head_dim 128)."""
    # As floats: a factor whose target is beyond every float must not overflow here.
    target = geometry.factor * geometry.native_length
    if target * geometry.num_features > _MOST_EVALUATIONS:
        raise LongEvalError(
            f"--factor {geometry.factor:g}: a target length of {target:.4g} tokens is too long for exact feature gaps",
            f"At {geometry.head_dim} rotary dimensions, at most {_MOST_EVALUATIONS // geometry.num_features} tokens "
            "are possible.",
        )


def _turns(inv_freq: float) -> float:
    """Turns per token, brought to 0 … 1/2: whole turns and the direction don't change a distance."""
    turns = inv_freq / (2.0 * math.pi)
    return abs(turns - round(turns))


def _largest_window_minimum(turns: float, period: int | None, native: int, target: int) -> float:
    """Max over windows [a, a+L) within 1 … L'−1 of the min over k in it of the distance of k·turns to an integer.

    With k = m−n this is the gap as a fraction of a turn. Sliding minima in two passes (van Herk 1992): in blocks of L,
    a window is the end of one block and the start of the next, so running minima from both sides give it.
    """
    windows = target - native
    blocks = max(1, min(_CHUNK // native, -(-windows // native)))
    largest = 0.0
    for first in range(1, windows + 1, blocks * native):
        k = np.arange(first, first + (blocks + 1) * native)
        if period is None:
            position = k * turns
            distance = np.abs(position - np.rint(position))
        else:
            remainder = k % period
            distance = np.minimum(remainder, period - remainder) / period
        distance = distance.reshape(blocks + 1, native)
        minimum = np.minimum.accumulate(distance[:-1, ::-1], axis=1)[:, ::-1]
        from_start = np.minimum.accumulate(distance[1:, : native - 1], axis=1)
        np.minimum(minimum[:, 1:], from_start, out=minimum[:, 1:])
        largest = max(largest, float(minimum.reshape(-1)[: windows + 1 - first].max()))
    return largest


# Where on the circle a feature's seen and unseen positions lie: why a rounded feature has no gap.
#
# At position m a feature has the phase m/λ mod 1, a fraction of a turn. Positions 0 … L−1 are seen in training. With a
# wavelength that is no integer, later positions fall into the holes between the seen phases; with an integer wavelength
# λ̃ ≤ L they fall on the seen ones. Source of the idea: Wang et al. 2024, arXiv 2403.00071.
#
# Shapes: F features, P positions.

LONGEST_NATIVE = 2**22
"""No feature is chosen beyond this native length, which no model has: sorting its phases would take too long."""

_MOST_LENGTHS = 8
"""Positions are shown up to this multiple of the native length; beyond it, the trained part would be a thin line."""
_ENOUGH_UNSEEN = 2**14
"""Unseen positions that are enough to choose a feature by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A pre-critical feature whose phases are shown."""

    name: str
    """The method without rounding, or `NAME before rounding` where only the rounded one is drawn."""
    rounded_name: str | None
    """The method that rounds it, if that is drawn."""
    feature: int
    """j."""
    wavelength: float
    """λ_j before rounding, tokens."""
    gap: float
    """Its feature gap before rounding, 0 … 2; from a sample of positions where only the resonance form is drawn."""

    @property
    def period(self) -> int:
        """λ̃_j, tokens."""
        return round(self.wavelength)


def choose_example(descriptions: Sequence[Mapping[str, Any]]) -> Example | None:
    """The pre-critical feature with the largest gap of an unrounded method, if possible one with its resonance form.

    Where no such method is drawn, wavelengths are taken back to before the rounding. None without a pre-critical
    feature, or for a native length with too many phases.
    """
    if int(descriptions[0]["native_length"]) > LONGEST_NATIVE:
        return None
    names = {item["name"] for item in descriptions}
    plain = [item for item in descriptions if item["unique_positions"] is None]
    pairs = [item for item in plain if MethodName(base=item["name"], resonance=True).canonical in names]
    rounded = [item for item in descriptions if item["unique_positions"] is not None]
    best: Example | None = None
    for candidates in (pairs, plain, rounded):
        for description in candidates:
            for example in _examples(description, names):
                if best is None or example.gap > best.gap:
                    best = example
        if best is not None and best.gap > 0:
            break
    return best


def _examples(description: Mapping[str, Any], names: Collection[str]) -> Iterator[Example]:
    """Yields a method's pre-critical features as they are before rounding."""
    name, rounded = description["name"], description["unique_positions"] is not None
    form = name if rounded else MethodName(base=name, resonance=True).canonical
    native = int(description["native_length"])
    unseen_P = unseen_positions(native, shown_end(description), _ENOUGH_UNSEEN)
    wavelengths_F = np.array(description["wavelengths"]) / (1.0 + np.array(description["rounding_errors"]))
    for j in np.flatnonzero((wavelengths_F <= native) & (np.rint(wavelengths_F) >= 1)):
        wavelength = float(wavelengths_F[j])
        gap = float(description["feature_gaps"][j])
        if rounded and unseen_P.size:
            gap = 2.0 * math.sin(math.pi * float(distances_to_seen(wavelength, native, unseen_P).max()))
        yield Example(
            name=f"{name} before rounding" if rounded else name,
            rounded_name=form if form in names else None,
            feature=int(j),
            wavelength=wavelength,
            gap=gap,
        )


def phases(wavelength: float, positions_P: IntArray) -> FloatArray:
    """Phases m/λ mod 1 in turns, shape (P,); they repeat exactly for an integer wavelength."""
    return np.asarray((positions_P % wavelength) / wavelength)


def distances_to_seen(wavelength: float, native: int, unseen_P: IntArray) -> FloatArray:
    """How far the phase of each position is from the nearest one of positions 0 … L−1, in turns, shape (P,)."""
    seen_P = np.sort(phases(wavelength, np.arange(native)))
    phases_P = phases(wavelength, unseen_P)
    right_P = np.searchsorted(seen_P, phases_P)
    return np.minimum((phases_P - seen_P[right_P - 1]) % 1, (seen_P[right_P % native] - phases_P) % 1)


def shown_end(description: Mapping[str, Any]) -> int:
    """The end of the positions that are shown, exclusive."""
    native, factor = int(description["native_length"]), float(description["factor"])
    return min(round(factor * native), _MOST_LENGTHS * native)


def unseen_positions(native: int, end: int, most: int) -> IntArray:
    """Positions L … end−1, or a fixed random sample of them; regular steps could be in phase with the wavelength."""
    if end - native <= most:
        return np.arange(native, end)
    return np.unique(np.random.default_rng(0).integers(native, end, most))


def seen_intervals(phases_P: FloatArray, resolution: float) -> list[tuple[float, float]]:
    """Phases in order, with those closer than the resolution joined: [(first, last), …]."""
    if not phases_P.size:
        return []
    sorted_P = np.sort(phases_P)
    breaks = np.flatnonzero(np.diff(sorted_P) > resolution)
    starts = sorted_P[np.concatenate(([0], breaks + 1))]
    stops = sorted_P[np.concatenate((breaks, [sorted_P.size - 1]))]
    return [(float(start), float(stop)) for start, stop in zip(starts, stops, strict=True)]
