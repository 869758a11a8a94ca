"""Floating-point effects at long positions: errors of cos and sin, and positions with equal values.

Stock engines multiply position and frequency in float32. The product has 24 bits, so after thousands of turns few bits
remain for the fraction of a turn. In addition, the rounding error of the frequency (24 bits, or 8 after
`model.to(bfloat16)`) is multiplied by the position. longeval computes angles in float64, or reduces the position modulo
the exact period first, and casts the cosine last.

Two positions collide if all their cosines and sines are rounded to the same numbers.

Shapes: F features, T positions.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.rope.base import CosSin, FloatArray, IntArray, RopeTable

ENDS = (131072, 1048576)
"""Errors are computed for the positions just before these, tokens."""

_NUM_POSITIONS = 4096
_LOWER_BITS = 20
"""A position below 2^20 times the upper 33 of a float64's 53 bits, or times the lower 20, is exact in float64."""
_ROWS = 512
"""Positions whose angles are in memory at the same time."""
_HALF_WORD = np.uint32(16)
_MOST_VALUES = 2**26
"""The largest L'·F whose collisions are counted (1m positions of 64 features). It takes about half a second."""
_MANY_VALUES = 128
"""Wavelength in tokens from which on a feature has about as many values as bfloat16 can distinguish."""


def float_errors(table: RopeTable, end: int) -> dict[str, float]:
    """The largest absolute errors of cos and sin over all features and the last 4,096 positions before `end`.

    The attention factor is left out.

    Args:
        table: A method's table. Errors are relative to its float64 frequencies or exact periods.
        end: N, tokens, at least 1 and at most 2^20.

    Returns:
        `positions` is N. The other keys are errors: `float32_product` of angles float32(m)·float32(θ̃), as in stock
        engines; `bfloat16_inv_freq` of the same after θ̃ was cast to bfloat16, as `model.to(bfloat16)` casts the
        buffer; `longeval` of our float32 table.
    """
    assert 1 <= end <= 2**_LOWER_BITS
    ours = dataclasses.replace(table, attention_factor=1.0)
    inv_freq_F = table.inv_freq_F.astype(np.float32)
    cast_F = round_to_bfloat16(inv_freq_F)
    errors = {"float32_product": 0.0, "bfloat16_inv_freq": 0.0, "longeval": 0.0}
    for first in range(max(0, end - _NUM_POSITIONS), end, _ROWS):
        position_T = np.arange(first, min(first + _ROWS, end), dtype=np.int64)
        truth = exact_cos_sin(table, position_T)
        computed = (_stock(inv_freq_F, position_T), _stock(cast_F, position_T), ours.cos_sin(position_T))
        for way, found in zip(errors, computed, strict=True):
            largest = max(float(np.abs(part_TF - true_TF).max()) for part_TF, true_TF in zip(found, truth, strict=True))
            errors[way] = max(errors[way], largest)
    return {"positions": end, **errors}


def exact_cos_sin(table: RopeTable, position_T: IntArray) -> tuple[FloatArray, FloatArray]:
    """cos(m·θ̃) and sin(m·θ̃) without the attention factor, each (T, F), exact to about 1e-16 for m below 2^20.

    A float64 product m·θ̃ has an error of up to m·θ̃·1.1e-16 (1e-10 at a million tokens). So θ̃ is split into an upper
    part, whose product with m is exact, and a small lower part; the addition theorem joins their cosines and sines.
    """
    if table.period_F is not None:
        # The angle is below one turn, so no large product loses bits.
        angle_TF = table.angles(position_T)
        return np.cos(angle_TF), np.sin(angle_TF)
    upper_F = (table.inv_freq_F.view(np.uint64) >> _LOWER_BITS << _LOWER_BITS).view(np.float64)
    m_T1 = position_T.astype(np.float64)[:, None]
    upper_TF, lower_TF = m_T1 * upper_F, m_T1 * (table.inv_freq_F - upper_F)
    cos_TF, sin_TF = np.cos(upper_TF), np.sin(upper_TF)
    cos_lower_TF, sin_lower_TF = np.cos(lower_TF), np.sin(lower_TF)
    return cos_TF * cos_lower_TF - sin_TF * sin_lower_TF, sin_TF * cos_lower_TF + cos_TF * sin_lower_TF


def _stock(inv_freq_F: npt.NDArray[np.float32], position_T: IntArray) -> CosSin:
    """Cosines and sines of a float32 product, in float32."""
    angle_TF = position_T.astype(np.float32)[:, None] * inv_freq_F
    return CosSin(np.cos(angle_TF), np.sin(angle_TF))


class Collisions(NamedTuple):
    """Number of positions in 0 … n−1 that have the same cosines and sines as an earlier one, in two dtypes."""

    float32: int
    bfloat16: int


def count_collisions(table: RopeTable, length: int) -> Collisions | None:
    """Counts the positions below `length` whose cosines and sines all equal those of an earlier position.

    The values are those that models get: attention factor included, in float32, and cast to bfloat16 last. Returns None
    if length·F is too large to count quickly.
    """
    if length * len(table.inv_freq_F) > _MOST_VALUES:
        return None
    everything = _Groups(np.arange(length, dtype=np.int64), np.zeros(length, dtype=np.int64))
    bfloat16 = _split(everything, table, to_bfloat16=True)
    # Rows that are equal in float32 are also equal in bfloat16, so only these groups need to be compared.
    float32 = _split(bfloat16, table, to_bfloat16=False)
    return Collisions(float32=float32.num_repeats, bfloat16=bfloat16.num_repeats)


class _Groups(NamedTuple):
    """Positions that are equal to another position in all columns compared so far."""

    position_T: IntArray
    label_T: IntArray
    """Positions with the same label are still equal; labels are below 2^31."""

    @property
    def num_repeats(self) -> int:
        """Positions beyond the first of every group."""
        return len(self.position_T) - len(np.unique(self.label_T))


def _split(groups: _Groups, table: RopeTable, *, to_bfloat16: bool) -> _Groups:
    """Splits groups by the columns of a table, and drops positions that are alone in their group.

    Columns with many values come first, because two or three of them already distinguish nearly all positions. The
    order does not change the result.
    """
    position_T, label_T = groups
    for j in np.argsort(table.wavelengths_F < _MANY_VALUES, kind="stable"):
        if len(position_T) == 0:
            break
        column = dataclasses.replace(
            table,
            inv_freq_F=table.inv_freq_F[j : j + 1],
            period_F=None if table.period_F is None else table.period_F[j : j + 1],
            turns_F=None if table.turns_F is None else table.turns_F[j : j + 1],
        )
        for part_TF in column.cos_sin(position_T):
            values_T = part_TF[:, 0]
            bits_T = bfloat16_bits(values_T) if to_bfloat16 else values_T.view(np.uint32)
            _, label_T = np.unique(label_T << 32 | bits_T, return_inverse=True)
        together_T = np.bincount(label_T)[label_T] > 1
        position_T, label_T = position_T[together_T], label_T[together_T]
    return _Groups(position_T, label_T)


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Bit patterns of the nearest bfloat16 numbers, 0 … 65535, in the shape of `values`, which must be finite.

    numpy has no bfloat16. It is the upper 16 bits of a float32; this rounds as torch's `.to(torch.bfloat16)` does.
    """
    bits = values.view(np.uint32)
    # Adds just under half of the last kept bit, or exactly half if that bit is odd: ties round to even.
    return (bits + np.uint32(0x7FFF) + ((bits >> _HALF_WORD) & np.uint32(1))) >> _HALF_WORD


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 numbers, held as float32, in the shape of `values`, which must be finite."""
    return (bfloat16_bits(values) << _HALF_WORD).view(np.float32)
