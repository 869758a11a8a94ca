"""none: the model's own frequencies, unchanged. Source: Su et al. 2021, arXiv 2104.09864."""

from __future__ import annotations

from longeval.rope.base import Geometry, NoParameters, RopeTable, method


@method(
    "none",
    summary="the model's own frequencies θ_j = b^(−2j/d)",
    source="Su et al. 2021, arXiv 2104.09864",
    uses_factor=False,
)
def none(geometry: Geometry, parameters: NoParameters, seq_len: int) -> RopeTable:
    """θ_j = b^(−2j/d), shape (F,), rad/token; attention factor 1."""
    return RopeTable(inv_freq_F=geometry.base_inv_freq(), attention_factor=1.0)
