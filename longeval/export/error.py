"""How far a stock engine's cosines and sines are from ours, over every position up to a length.

Ours: float64 angles, reduced by the exact period where wavelengths are whole. A stock engine has float32 frequencies
and multiplies positions with them in float32, without that reduction: after thousands of turns few bits are left for
the part of a turn. llama.cpp goes from feature to feature by a running float32 product instead of a table of
frequencies (`ggml_rope_cache_init`).

Shapes: T positions, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.rope.base import RopeTable

Float32Array = npt.NDArray[np.float32]
StockAngles = Callable[[Float32Array], Float32Array]
"""Positions (T,) to angles (T, F) in radians, both float32, as an engine computes them."""

_ROWS = 4096
"""Positions compared at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StockError:
    """The largest absolute error of a stock engine's cos or sin, attention factor included."""

    largest: float
    """The error."""
    position: int
    """The position where it occurs, tokens."""
    feature: int
    """The feature j where it occurs."""

    def to_json(self) -> dict[str, Any]:
        """The keys of an export's note."""
        return {"largest_error": self.largest, "position": self.position, "feature": self.feature}


def multiplied(inv_freq_F: Float32Array) -> StockAngles:
    """Angles as transformers and vLLM compute them: float32 position times float32 frequency."""
    return lambda positions_T: positions_T[:, None] * inv_freq_F[None, :]


def running(theta: float, divisor_F: Float32Array) -> StockAngles:
    """Angles as llama.cpp computes them: m times one more factor b^(−2/d) for each feature, divided at the end."""
    ratio = np.power(np.float32(theta), np.float32(-1.0 / len(divisor_F)), dtype=np.float32)

    def angles(positions_T: Float32Array) -> Float32Array:
        angle_TF = np.empty((len(positions_T), len(divisor_F)), dtype=np.float32)
        running_T = positions_T.copy()
        for j in range(len(divisor_F)):
            angle_TF[:, j] = running_T
            running_T *= ratio
        return angle_TF / divisor_F[None, :]

    return angles


def stock_error(stock: StockAngles, attention_factor: float, table: RopeTable, length: int) -> StockError:
    """Compares a stock engine's float32 cosines and sines with ours at positions 0 … length−1.

    Args:
        stock: The engine's angles.
        attention_factor: The engine's attention factor.
        table: Our table.
        length: Number of positions, at least 1.
    """
    worst = StockError(largest=0.0, position=0, feature=0)
    factor = np.float32(attention_factor)
    for first in range(0, length, _ROWS):
        positions_T = np.arange(first, min(first + _ROWS, length), dtype=np.int64)
        ours_TF = table.angles(positions_T)
        theirs_TF = stock(positions_T.astype(np.float32))
        for function in (np.cos, np.sin):
            off_TF = np.abs(function(theirs_TF) * factor - function(ours_TF) * table.attention_factor)
            at = int(off_TF.argmax())
            if off_TF.flat[at] > worst.largest:
                row, feature = divmod(at, off_TF.shape[1])
                worst = StockError(largest=float(off_TF.flat[at]), position=first + row, feature=feature)
    return worst
