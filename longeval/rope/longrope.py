"""longrope: each frequency divided by its own searched factor. Source: Ding et al. 2024, arXiv 2402.13753.

The factors are specific to a model, whose configuration holds them, so there are no defaults. The long list applies if
the target length is longer than the native length. It does not depend on the current sequence: a run has one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import Geometry, RopeTable, check_positive, method, refuse_start


@dataclass(frozen=True, kw_only=True, slots=True)
class LongropeParameters:
    """Parameters of longrope."""

    short_factor: tuple[float, ...]
    """Divisors of θ_j for target length ≤ L, F numbers."""
    long_factor: tuple[float, ...]
    """Divisors of θ_j for target length > L, F numbers."""
    attention_factor: float | None = None
    """Replaces sqrt(1 + ln(s)/ln(L))."""

    def __post_init__(self) -> None:
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            for index, factor in enumerate(factors):
                check_positive(f"{name}[{index}]", factor)
        if self.attention_factor is not None:
            check_positive("attention_factor", self.attention_factor)


@method(
    "longrope",
    summary="θ_j / (factor list)_j, short or long list by the target length",
    source="Ding et al. 2024, arXiv 2402.13753",
    parameters=LongropeParameters,
)
def longrope(geometry: Geometry, parameters: LongropeParameters, seq_len: int) -> RopeTable:
    """θ_j / factor_j, shape (F,), rad/token; attention factor sqrt(1 + ln(s)/ln(L)).

    Raises:
        LongEvalError: A list doesn't have F numbers, or `geometry.start` is given: the factors are for plain RoPE.
    """
    refuse_start(geometry, "longrope's factors are for plain RoPE, not for the scaling that the model comes with")
    for name, factors in (("short_factor", parameters.short_factor), ("long_factor", parameters.long_factor)):
        if len(factors) != geometry.num_features:
            raise LongEvalError(
                f"--pe-arg longrope.{name}: {len(factors)} numbers, but {geometry.head_dim} rotary dimensions "
                f"need {geometry.num_features}",
                "Take both lists from the configuration of this model.",
            )
    attention_factor = parameters.attention_factor
    if attention_factor is None:
        growth = 0.0 if geometry.factor == 1 else math.log(geometry.factor) / math.log(geometry.native_length)
        attention_factor = math.sqrt(1.0 + growth)
    stretched = geometry.target_length > geometry.native_length
    factor_F = np.array(parameters.long_factor if stretched else parameters.short_factor, dtype=np.float64)
    return RopeTable(inv_freq_F=geometry.base_inv_freq() / factor_F, attention_factor=float(attention_factor))
