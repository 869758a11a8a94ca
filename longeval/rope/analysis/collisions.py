"""How many positions a frequency table distinguishes: by its exact periods, and in the numbers of a dtype.

With integer wavelengths the pre-critical features as a whole repeat after the least common multiple of those
wavelengths: so many positions are unique (Wang et al. 2024, arXiv 2403.00071). In finite precision positions can
coincide earlier, where every cosine and every sine of a row is rounded to the same number as in another row.

Shapes: F features, T positions that are still in question.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.rope.analysis.precision import bfloat16_bits
from longeval.rope.base import IntArray, RopeTable

Words = tuple[npt.NDArray[np.uint32], ...]
"""A column of cos and sin as bit patterns, each of shape (T,)."""

_MOST_VALUES = 2**26
"""The largest L'·F: 1m positions of 64 features, which take about half a second."""
_MANY_VALUES = 128
"""From this wavelength on, in tokens, a feature has about as many values as bfloat16 can show."""


class Collisions(NamedTuple):
    """How many of the positions 0 … n−1 have the same row of cos and sin as an earlier one, in two dtypes."""

    float32: int
    bfloat16: int


def unique_positions(periods: IntArray | None) -> int | None:
    """The number of positions that the pre-critical features distinguish: the lcm of their periods.

    Args:
        periods: Integer wavelengths of the pre-critical features, tokens; None where they aren't integers.

    Returns:
        The lcm (1 without any such feature), or None where wavelengths aren't integers.
    """
    return None if periods is None else math.lcm(*(int(period) for period in periods))


def decimal(number: int) -> str:
    """All digits of a positive integer; `str` refuses more than 4,300, which many long periods reach."""
    digits = 10**4000
    parts: list[str] = []
    while number >= digits:
        number, rest = divmod(number, digits)
        parts.append(f"{rest:04000d}")
    return str(number) + "".join(reversed(parts))


def count_collisions(table: RopeTable, length: int) -> Collisions | None:
    """Counts the positions below `length` whose whole row equals an earlier one's, in float32 and in bfloat16.

    The rows are those that models are given: attention factor included, float32, and cast to bfloat16 last.

    Args:
        table: A method's table.
        length: Number of positions, tokens.

    Returns:
        The counts, or None where length·F is too large to count quickly.
    """
    if length * len(table.inv_freq_F) > _MOST_VALUES:
        return None
    groups = _Groups(np.arange(length, dtype=np.int64), np.zeros(length, dtype=np.int64))
    bfloat16 = _split(groups, table, _bfloat16_words)
    # Rows that are equal in float32 are equal in bfloat16 too, so that only these groups are left to compare.
    float32 = _split(bfloat16, table, _float32_words)
    return Collisions(float32=float32.repeats, bfloat16=bfloat16.repeats)


class _Groups(NamedTuple):
    """Positions that share their values with another position, in all columns that were compared so far."""

    position_T: IntArray
    label_T: IntArray
    """Positions with the same label are still equal; labels are below 2^31."""

    @property
    def repeats(self) -> int:
        """Positions beyond the first of every group."""
        return len(self.position_T) - len(np.unique(self.label_T))


def _split(groups: _Groups, table: RopeTable, words: Callable[[RopeTable, IntArray], Words]) -> _Groups:
    """Splits groups by the columns of a table, and drops positions that are alone in their group.

    The order of the columns decides only how soon that happens: a feature with a period of a hundred tokens or more
    has many values, and two or three such features distinguish nearly all positions.
    """
    position_T, label_T = groups
    for j in np.argsort(table.wavelengths_F < _MANY_VALUES, kind="stable"):
        if len(position_T) == 0:
            break
        for word_T in words(_column(table, j), position_T):
            _, label_T = np.unique(label_T << 32 | word_T, return_inverse=True)
        together_T = np.bincount(label_T)[label_T] > 1
        position_T, label_T = position_T[together_T], label_T[together_T]
    return _Groups(position_T, label_T)


def _column(table: RopeTable, j: np.intp) -> RopeTable:
    """The table of feature j alone."""
    return RopeTable(
        inv_freq_F=table.inv_freq_F[j : j + 1],
        attention_factor=table.attention_factor,
        period_F=None if table.period_F is None else table.period_F[j : j + 1],
    )


def _float32_words(column: RopeTable, position_T: IntArray) -> Words:
    """Cosines, then sines."""
    return tuple(part_TF[:, 0].view(np.uint32) for part_TF in column.cos_sin(position_T))


def _bfloat16_words(column: RopeTable, position_T: IntArray) -> Words:
    """A cosine and a sine side by side in each word."""
    cos_T, sin_T = (bfloat16_bits(part_TF[:, 0]) for part_TF in column.cos_sin(position_T))
    return (cos_T << np.uint32(16) | sin_T,)
