"""Floating-point error of cos and sin at long positions: what stock engines compute, and what longeval does.

Stock engines multiply position and frequency in float32. The product keeps 24 bits whatever its size, so that after
thousands of turns few of them are left for the part of a turn; and the frequency itself, rounded to 24 bits (8 once
`model.to(bfloat16)` has cast it), is multiplied by the position with its error. longeval takes angles in float64, or
reduces the position by the exact period first, and casts the cosine last.

Shapes: F features, T positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.rope.base import CosSin, FloatArray, IntArray, RopeTable
from longeval.rope.bfloat16 import round_to_bfloat16

ENDS = (131072, 1048576)
"""Errors are told for the positions just before these, tokens."""

_NUM_POSITIONS = 4096
# Positions below 2^20 times the upper 33 of 53 bits, or the lower 20, is exact in float64.
_LOWER_BITS = 20
# Positions whose angles exist at once.
_ROWS = 512


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FloatErrors:
    """Largest absolute errors of cos or sin, attention factor left out, over all features and some positions."""

    positions: int
    """N: the last 4,096 positions before it are looked at."""
    float32_product: float
    """Angle as float32(m)·float32(θ̃), as stock engines do."""
    bfloat16_inv_freq: float
    """The same after θ̃ was cast to bfloat16, which `model.to(bfloat16)` does to the buffer."""
    longeval: float
    """longeval's own float32 table."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)


def float_errors(table: RopeTable, end: int) -> FloatErrors:
    """The errors at the last positions before `end`.

    Args:
        table: A method's table; its float64 frequencies, or exact periods, are taken for the truth.
        end: N, tokens, at least 1 and at most 2^20.
    """
    assert 1 <= end <= 2**_LOWER_BITS
    ours = dataclasses.replace(table, attention_factor=1.0)
    inv_freq_F = table.inv_freq_F.astype(np.float32)
    cast_F = round_to_bfloat16(inv_freq_F)
    product = cast = own = 0.0
    for first in range(max(0, end - _NUM_POSITIONS), end, _ROWS):
        position_T = np.arange(first, min(first + _ROWS, end), dtype=np.int64)
        truth = exact_cos_sin(table, position_T)
        product = max(product, _largest_error(_stock(inv_freq_F, position_T), truth))
        cast = max(cast, _largest_error(_stock(cast_F, position_T), truth))
        own = max(own, _largest_error(ours.cos_sin(position_T), truth))
    return FloatErrors(positions=end, float32_product=product, bfloat16_inv_freq=cast, longeval=own)


def exact_cos_sin(table: RopeTable, position_T: IntArray) -> tuple[FloatArray, FloatArray]:
    """Exact cos(m·θ̃) and sin(m·θ̃), each (T, F), right to about 1e-16; m below 2^20; no attention factor.

    A float64 product m·θ̃ alone would be off by up to m·θ̃·1.1e-16 (1e-10 at a million tokens). θ̃ is split into an upper
    part whose product with m is exact and a small lower part, and the two are put together by the addition theorem.
    """
    if table.period_F is not None:
        # The angle of less than one turn has no product to lose bits in.
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


def _largest_error(table: CosSin, truth: tuple[FloatArray, FloatArray]) -> float:
    """The largest absolute difference."""
    return max(float(np.abs(part_TF - true_TF).max()) for part_TF, true_TF in zip(table, truth, strict=True))
