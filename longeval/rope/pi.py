"""pi: position interpolation, every frequency divided by s. Source: Chen et al. 2023, arXiv 2306.15595."""

from __future__ import annotations

from longeval.rope.base import Geometry, NoParameters, RopeTable, method


@method("pi", summary="position interpolation, θ_j / s", source="Chen et al. 2023, arXiv 2306.15595")
def pi(geometry: Geometry, parameters: NoParameters, seq_len: int) -> RopeTable:
    """θ_j / s, shape (F,), rad/token; attention factor 1."""
    return RopeTable(inv_freq_F=geometry.base_inv_freq() / geometry.factor, attention_factor=1.0)
