"""yarn and dynamic_yarn: ntk_by_parts with an attention factor of 0.1·ln(s) + 1.

Source: Peng et al. 2024, arXiv 2309.00071. The attention factor multiplies both cos and sin, so attention logits are
multiplied by its square, which is the paper's 1/t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longeval.rope.base import Geometry, RopeTable, check_positive, method
from longeval.rope.ntk_by_parts import blend, check_betas, interpolated_share


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnParameters:
    """Parameters of yarn and dynamic_yarn."""

    beta_fast: float = 32.0
    """Rotations in L tokens at and above which a feature keeps its frequency."""
    beta_slow: float = 1.0
    """Rotations in L tokens at and below which a feature is divided by s."""
    attention_factor: float | None = None
    """Replaces 0.1·ln(s) + 1."""

    def __post_init__(self) -> None:
        check_betas(self.beta_fast, self.beta_slow)
        if self.attention_factor is not None:
            check_positive("attention_factor", self.attention_factor)


@method(
    "yarn",
    summary="ntk_by_parts with attention factor 0.1·ln(s) + 1",
    source="Peng et al. 2024, arXiv 2309.00071",
    parameters=YarnParameters,
)
def yarn(geometry: Geometry, parameters: YarnParameters, seq_len: int) -> RopeTable:
    """γ_j·θ_j + (1−γ_j)·θ_j/s, shape (F,), rad/token; attention factor 0.1·ln(s) + 1.

    Raises:
        LongEvalError: The base is at most 1, for which the ramp is undefined.
    """
    return _table(geometry, parameters, geometry.factor)


@method(
    "dynamic_yarn",
    summary="yarn with s = max(1, n/L), n the current sequence length",
    source="Peng et al. 2024, arXiv 2309.00071",
    parameters=YarnParameters,
    uses_factor=False,
    length_dependent=True,
)
def dynamic_yarn(geometry: Geometry, parameters: YarnParameters, seq_len: int) -> RopeTable:
    """Computes `yarn` with s = max(1, seq_len/L); `geometry.factor` is not used."""
    return _table(geometry, parameters, max(1.0, seq_len / geometry.native_length))


def _table(geometry: Geometry, parameters: YarnParameters, factor: float) -> RopeTable:
    """Frequencies and attention factor for `factor`."""
    ramp_F = interpolated_share(geometry, parameters.beta_fast, parameters.beta_slow)
    attention_factor = parameters.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1.0
    return RopeTable(
        inv_freq_F=blend(geometry.base_inv_freq(), factor, ramp_F), attention_factor=float(attention_factor)
    )
