"""ntk and dynamic_ntk: a larger base, so that high frequencies hardly change and the lowest one is divided by s.

Sources: bloc97 2023 for ntk ("NTK-aware scaled RoPE"); Peng et al. 2024, arXiv 2309.00071, for the dynamic form. Its
s depends only on the current sequence, while transformers remembers the longest sequence so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longeval.errors import LongEvalError
from longeval.rope.base import Geometry, RopeTable, method


@dataclass(frozen=True, kw_only=True, slots=True)
class NtkParameters:
    """Parameters of ntk and dynamic_ntk."""

    base_rule: Literal["power", "linear"] = "power"
    """How s enlarges the base: `power` is b·s^(d/(d−2)), `linear` is b·s (the Resonance paper's runs)."""


@method("ntk", summary="NTK-aware, base b·s^(d/(d−2)) (or b·s)", source="bloc97 2023", parameters=NtkParameters)
def ntk(geometry: Geometry, parameters: NtkParameters, seq_len: int) -> RopeTable:
    """b'^(−2j/d) with b' from the base rule and s, shape (F,), rad/token; attention factor 1.

    Raises:
        LongEvalError: head_dim 2 with the power rule, whose exponent is then undefined.
    """
    return _table(geometry, parameters, geometry.factor)


@method(
    "dynamic_ntk",
    summary="ntk with s = max(1, n/L), n the current sequence length",
    source="Peng et al. 2024, arXiv 2309.00071",
    parameters=NtkParameters,
    uses_factor=False,
    length_dependent=True,
)
def dynamic_ntk(geometry: Geometry, parameters: NtkParameters, seq_len: int) -> RopeTable:
    """Computes `ntk` with s = max(1, seq_len/L); `geometry.factor` is not used."""
    return _table(geometry, parameters, max(1.0, seq_len / geometry.native_length))


def _table(geometry: Geometry, parameters: NtkParameters, factor: float) -> RopeTable:
    """The table for the base that belongs to `factor`."""
    exponent = 1.0
    if parameters.base_rule == "power":
        if geometry.head_dim == 2:
            raise LongEvalError(
                "--head-dim 2: ntk's base b·s^(d/(d−2)) is undefined for 2 rotary dimensions",
                "Use a larger head, or base_rule=linear.",
            )
        exponent = geometry.head_dim / (geometry.head_dim - 2)
    growth = factor**exponent
    if geometry.start is not None:
        # A base k times as large divides θ_j by k^(2j/d). Frequencies without a base get the same divisors.
        inv_freq_F = geometry.base_inv_freq() * geometry.plain_inv_freq(growth)
    else:
        inv_freq_F = geometry.plain_inv_freq(geometry.theta * growth)
    return RopeTable(inv_freq_F=inv_freq_F, attention_factor=1.0)
