"""ntk_by_parts: features with many rotations in L tokens keep their frequency, those with few are divided by s.

Source: Peng et al. 2024, arXiv 2309.00071, section 3.2, with the ramp over the feature index of the authors' code.
yarn uses the same blend and adds an attention factor; llama3 uses it with a ramp over rotations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from longeval.errors import LongEvalError
from longeval.rope.base import FloatArray, Geometry, RopeTable, check_positive, method


@dataclass(frozen=True, kw_only=True, slots=True)
class NtkByPartsParameters:
    """Parameters of ntk_by_parts."""

    beta_fast: float = 32.0
    """Rotations in L tokens at and above which a feature keeps its frequency."""
    beta_slow: float = 1.0
    """Rotations in L tokens at and below which a feature is divided by s."""

    def __post_init__(self) -> None:
        check_betas(self.beta_fast, self.beta_slow)


def check_betas(beta_fast: float, beta_slow: float) -> None:
    """Raises LongEvalError unless 0 < beta_slow < beta_fast, both finite."""
    check_positive("beta_fast", beta_fast)
    check_positive("beta_slow", beta_slow)
    if beta_fast <= beta_slow:
        raise LongEvalError(
            f"beta_fast {beta_fast:g}: must be greater than beta_slow, which is {beta_slow:g}",
            "They are rotations in the native length, 32 and 1 by default.",
        )


@method(
    "ntk_by_parts",
    summary="fast features keep θ_j, slow ones get θ_j / s, linear between",
    source="Peng et al. 2024, arXiv 2309.00071",
    parameters=NtkByPartsParameters,
)
def ntk_by_parts(geometry: Geometry, parameters: NtkByPartsParameters, seq_len: int) -> RopeTable:
    """γ_j·θ_j + (1−γ_j)·θ_j/s, shape (F,), rad/token; attention factor 1.

    Raises:
        LongEvalError: The base is at most 1, for which the ramp is undefined.
    """
    ramp_F = interpolated_share(geometry, parameters.beta_fast, parameters.beta_slow)
    return RopeTable(inv_freq_F=blend(geometry.base_inv_freq(), geometry.factor, ramp_F), attention_factor=1.0)


def interpolated_share(geometry: Geometry, beta_fast: float, beta_slow: float) -> FloatArray:
    """1−γ_j, the share by which feature j is interpolated, 0 … 1, shape (F,).

    A feature with r rotations in L tokens has the (real) index d·ln(L/(2πr)) / (2·ln b). The share rises linearly from
    0 at the floor of the index for beta_fast to 1 at the ceiling of the index for beta_slow, both kept within 0 … d−1.
    For frequencies that have no base (`geometry.start`), the index follows from linear interpolation of ln θ_j between
    the features; with a base this is the same formula.

    Raises:
        LongEvalError: The base is at most 1, or the given frequencies don't fall with the index.
    """
    if geometry.theta <= 1:
        raise LongEvalError(
            f"--theta {geometry.theta:g}: ntk_by_parts and yarn need a base above 1", "10000 is the usual base."
        )

    def index_of(rotations: float) -> float:
        turns = geometry.native_length / (2.0 * math.pi * rotations)
        if geometry.start is not None:
            return _index(geometry.base_inv_freq(), -math.log(turns))
        return geometry.head_dim * math.log(turns) / (2.0 * math.log(geometry.theta))

    low = max(math.floor(index_of(beta_fast)), 0)
    high = min(math.ceil(index_of(beta_slow)), geometry.head_dim - 1)
    # With a short native length both bounds may be at or below 0; the smallest span then makes the ramp a step.
    span = max(high - low, 0.001)
    j_F = np.arange(geometry.num_features, dtype=np.float64)
    return np.clip((j_F - low) / span, 0.0, 1.0)


def _index(inv_freq_F: FloatArray, log_frequency: float) -> float:
    """The real index with the given ln θ, by linear interpolation between features and extrapolation at both ends."""
    log_F = np.log(inv_freq_F)
    if len(log_F) < 2 or not np.all(np.diff(log_F) < 0):
        raise LongEvalError(
            "--scale-from shipped: the model's own frequencies don't fall from feature to feature, "
            "so ntk_by_parts and yarn have no ramp over them",
            "Leave it out: the method then replaces the model's own scaling.",
        )
    j = int(np.clip(np.searchsorted(-log_F, -log_frequency) - 1, 0, len(log_F) - 2))
    return j + float((log_frequency - log_F[j]) / (log_F[j + 1] - log_F[j]))


def blend(inv_freq_F: FloatArray, factor: float, interpolated_F: FloatArray) -> FloatArray:
    """(1−x_j)·θ_j + x_j·θ_j/s for shares x_j, shape (F,); exactly θ_j if x=0 or s=1, and exactly θ_j/s if x=1."""
    stretched_F = inv_freq_F / factor
    return np.where(interpolated_F >= 1.0, stretched_F, inv_freq_F - interpolated_F * (inv_freq_F - stretched_F))
