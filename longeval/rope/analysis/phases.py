"""Where on the circle a feature's seen and unseen positions lie: why a rounded feature has no gap.

At position m a feature has the phase m/λ mod 1, a fraction of a turn. Positions 0 … L−1 are seen in training. With a
wavelength that is no integer, later positions fall into the holes between the seen phases; with an integer wavelength
λ̃ ≤ L they fall on the seen ones. Source of the idea: Wang et al. 2024, arXiv 2403.00071.

Shapes: F features, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.rope.base import FloatArray, IntArray
from longeval.rope.build import MethodName

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
