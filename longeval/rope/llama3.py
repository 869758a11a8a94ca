"""llama3: features with short wavelengths keep their frequency, long ones are divided by s, others are blended.

Source: Llama 3.1 (Meta 2024), its model card and configuration: low_freq_factor 1, high_freq_factor 4, factor 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import Geometry, RopeTable, check_positive, method
from longeval.rope.ntk_by_parts import blend


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Parameters:
    """Parameters of llama3."""

    low_freq_factor: float = 1.0
    """Rotations in L tokens below which a feature is divided by s."""
    high_freq_factor: float = 4.0
    """Rotations in L tokens above which a feature keeps its frequency."""

    def __post_init__(self) -> None:
        check_positive("low_freq_factor", self.low_freq_factor)
        check_positive("high_freq_factor", self.high_freq_factor)
        if self.high_freq_factor <= self.low_freq_factor:
            raise LongEvalError(
                f"high_freq_factor {self.high_freq_factor:g}: must be greater than low_freq_factor, "
                f"which is {self.low_freq_factor:g}",
                "They are rotations in the native length, 4 and 1 by default.",
            )


@method(
    "llama3",
    summary="λ_j < L/4 keeps θ_j, λ_j > L gets θ_j / s, a blend between",
    source="Llama 3.1, Meta 2024",
    parameters=Llama3Parameters,
)
def llama3(geometry: Geometry, parameters: Llama3Parameters, seq_len: int) -> RopeTable:
    """x_j·θ_j + (1−x_j)·θ_j/s with x_j = (L/λ_j − low)/(high − low) within 0 … 1, shape (F,); attention factor 1."""
    inv_freq_F = geometry.base_inv_freq()
    rotations_F = geometry.native_length * inv_freq_F / (2.0 * np.pi)
    span = parameters.high_freq_factor - parameters.low_freq_factor
    interpolated_F = np.clip((parameters.high_freq_factor - rotations_F) / span, 0.0, 1.0)
    return RopeTable(inv_freq_F=blend(inv_freq_F, geometry.factor, interpolated_F), attention_factor=1.0)
