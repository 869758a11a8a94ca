"""abf: adjusted base frequency, the base replaced by a given one. Source: Xiong et al. 2023, arXiv 2309.16039."""

from __future__ import annotations

from dataclasses import dataclass

from longeval.rope.base import Geometry, RopeTable, check_positive, method, refuse_start


@dataclass(frozen=True, kw_only=True, slots=True)
class AbfParameters:
    """Parameters of abf."""

    base: float = 500000.0
    """The base that replaces the model's own."""

    def __post_init__(self) -> None:
        check_positive("base", self.base)


@method(
    "abf",
    summary="adjusted base frequency, b replaced by a given base",
    source="Xiong et al. 2023, arXiv 2309.16039",
    parameters=AbfParameters,
    uses_factor=False,
)
def abf(geometry: Geometry, parameters: AbfParameters, seq_len: int) -> RopeTable:
    """base^(−2j/d), shape (F,), rad/token; attention factor 1.

    Raises:
        LongEvalError: `geometry.start` is given; abf can't be applied on top of another scaling.
    """
    refuse_start(geometry, "abf replaces the base, and the scaling that the model comes with has none")
    return RopeTable(inv_freq_F=geometry.plain_inv_freq(parameters.base), attention_factor=1.0)
