"""The interface of a RoPE scaling method: a pure function from geometry, parameters and length to a RopeTable.

Shapes: F features (rotary dimensions / 2), T positions. All arrays are float64 numpy; the backends convert them to
torch. Sources: Su et al. 2021 (arXiv 2104.09864) for RoPE, Wang et al. 2024 (arXiv 2403.00071) for wavelengths,
pre-critical features and the periodic form.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.registry import Registry

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LARGEST_HEAD = 8192
"""Most rotary dimensions. No model comes near it, and an analysis of more would take hours."""

_LONGEST = 2.0**53
"""Largest position in tokens, and largest angle in radians: above it float64 can't represent every integer."""

_ROWS = 8192
"""Positions whose float64 angles are in memory at the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """The rotary geometry of a model and the length it is set up for."""

    head_dim: int
    """d: rotated dimensions of a head (fewer than all if the model rotates only a part of each head)."""
    theta: float
    """b: the base, `rope_theta`."""
    native_length: int
    """L: the context length the model was trained for, tokens."""
    factor: float = 1.0
    """s = target length / native length, at least 1."""
    start: tuple[float, ...] | None = None
    """Frequencies that methods scale instead of b^(−2j/d), rad/token, for a model that already comes with a scaling."""
    start_attention_factor: float = 1.0
    """The attention factor that belongs to `start`; a method's own factor multiplies it."""

    def __post_init__(self) -> None:
        assert self.start is None or len(self.start) * 2 == self.head_dim
        if self.head_dim % 2 or not 0 < self.head_dim <= _LARGEST_HEAD:
            raise LongEvalError(
                f"--head-dim {self.head_dim}: must be an even number from 2 to {_LARGEST_HEAD}",
                "RoPE rotates pairs; 64 or 128 are usual.",
            )
        if not 1e-300 < self.theta < 1e300:
            raise LongEvalError(
                f"--theta {self.theta}: must be a positive number below 1e300", "10000 is the usual base."
            )
        if self.native_length <= 0:
            raise LongEvalError(
                f"--native {self.native_length}: must be a positive number of tokens", "Llama 2 has 4096."
            )
        if not 1 <= self.factor < math.inf:
            raise LongEvalError(
                f"--factor {self.factor:g}: must be a finite number of at least 1",
                "It is target length / native length: 4 stretches 4k to 16k.",
            )
        if self.factor * self.native_length > _LONGEST:
            raise LongEvalError(
                f"--factor {self.factor:g}: a target length of {self.factor:g} times {self.native_length} tokens "
                "is beyond any sequence",
                "Use a smaller factor or native length.",
            )

    @property
    def num_features(self) -> int:
        """F = d/2."""
        return self.head_dim // 2

    @property
    def target_length(self) -> int:
        """L' = s·L, tokens."""
        return round(self.factor * self.native_length)

    def base_inv_freq(self) -> FloatArray:
        """The frequencies that methods scale, rad/token, shape (F,): `start`, or θ_j = b^(−2j/d) for j = 0 … F−1."""
        if self.start is not None:
            return np.array(self.start, dtype=np.float64)
        return self.plain_inv_freq(self.theta)

    def plain_inv_freq(self, theta: float) -> FloatArray:
        """`theta`^(−2j/d) for j = 0 … F−1, rad/token, shape (F,)."""
        j_F = np.arange(self.num_features, dtype=np.float64)
        return np.power(theta, -2.0 * j_F / self.head_dim)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RopeTable:
    """The result of a method: frequencies, attention factor and, if resonance made them so, exact periods."""

    inv_freq_F: FloatArray
    """θ̃_j in rad/token, shape (F,)."""
    attention_factor: float
    """Factor of both cos and sin, so attention logits are multiplied by its square."""
    period_F: IntArray | None = None
    """p_j, whole tokens after which each feature repeats exactly, shape (F,); None: features don't repeat."""
    turns_F: IntArray | None = None
    """q_j, whole turns in each period, shape (F,); None: one turn each. θ̃_j is 2π·q_j/p_j."""
    local: RopeTable | None = None
    """The table for layers with a sliding window, in models with a RoPE per layer type; None leaves them unchanged."""

    @property
    def wavelengths_F(self) -> FloatArray:
        """λ_j = 2π/θ_j in tokens, shape (F,); p_j/q_j where features repeat exactly."""
        if self.period_F is not None:
            return self.period_F / (1.0 if self.turns_F is None else self.turns_F)
        return 2.0 * np.pi / self.inv_freq_F

    def fractions(self) -> list[Fraction] | None:
        """q_j/p_j, the exact fraction of a turn that each feature makes in a token; None if features don't repeat."""
        if self.period_F is None:
            return None
        turns_F = np.ones_like(self.period_F) if self.turns_F is None else self.turns_F
        return [Fraction(q, p) for q, p in zip(turns_F.tolist(), self.period_F.tolist(), strict=True)]

    def angles(self, positions_T: IntArray) -> FloatArray:
        """Angles in radians, float64, shape (T, F).

        Features with a period reduce the position modulo it first, in integers, so that the angle repeats exactly:
        2π·(m·q mod p)/p. Others are m·θ.
        """
        if self.period_F is not None:
            phase_TF = positions_T[:, None] % self.period_F[None, :]
            if self.turns_F is not None:
                phase_TF = phase_TF * self.turns_F[None, :] % self.period_F[None, :]
            return 2.0 * np.pi * phase_TF / self.period_F[None, :]
        return positions_T.astype(np.float64)[:, None] * self.inv_freq_F[None, :]

    def cos_sin(self, positions_T: IntArray) -> CosSin:
        """Cosines and sines times the attention factor, shape (T, F) each, computed in float64 and cast to float32."""
        shape = (len(positions_T), len(self.inv_freq_F))
        table = CosSin(np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32))
        for first in range(0, len(positions_T), _ROWS):
            rows = slice(first, first + _ROWS)
            angles_TF = self.angles(positions_T[rows])
            table.cos_TF[rows] = np.cos(angles_TF) * self.attention_factor
            table.sin_TF[rows] = np.sin(angles_TF) * self.attention_factor
        return table

    def same_as(self, other: RopeTable) -> bool:
        """Whether both tables have exactly the same angles and attention factor in all layers."""
        if self.local is not None and other.local is not None and not self.local.same_as(other.local):
            return False
        return (
            (self.local is None) == (other.local is None)
            and self.attention_factor == other.attention_factor
            and np.array_equal(self.inv_freq_F, other.inv_freq_F)
            and (self.period_F is None) == (other.period_F is None)  # equal frequencies have equal periods
        )

    def digest(self, length: int) -> str:
        """The `rope_digest` of a model that holds this table for positions 0 … length−1."""
        positions_T = np.arange(length, dtype=np.int64)
        tables = [self] if self.local is None else [self, self.local]
        return table_digest(*(table.cos_sin(positions_T) for table in tables))


def check_table(table: RopeTable, length: int, settings: str) -> None:
    """Raises LongEvalError if a table's frequencies or attention factor can't be used for sequences of `length` tokens.

    `settings` are the flags of the table, for the message.
    """
    inv_freq_F = table.inv_freq_F
    with np.errstate(all="ignore"):
        factor = np.float32(table.attention_factor)
        good_F = np.isfinite(2.0 * np.pi / inv_freq_F) & (inv_freq_F > 0) & (inv_freq_F * float(length) < _LONGEST)
    if not good_F.all():
        worst = int(np.argmin(good_F))
        what = f"a frequency of {inv_freq_F[worst]:g} rad/token (feature {worst})"
    elif not 0 < factor < np.inf:
        what = f"an attention factor of {table.attention_factor:g}"
    else:
        return
    raise LongEvalError(f"{settings}: gives {what}, which is not usable", "Use a less extreme value.")


class CosSin(NamedTuple):
    """A float32 table: cosines and sines, each (T, F), attention factor included."""

    cos_TF: npt.NDArray[np.float32]
    sin_TF: npt.NDArray[np.float32]


def table_digest(*tables: CosSin) -> str:
    """SHA-256 (hex) of one or more float32 tables: all cosines, then all sines, row-major, little-endian.

    If the local layers are scaled too, their table follows the table of the global layers.
    """
    digest = hashlib.sha256()
    for table in tables:
        for part_TF in table:
            digest.update(np.ascontiguousarray(part_TF, dtype="<f4").tobytes())
    return digest.hexdigest()


MethodFunction = Callable[[Geometry, Any, int], RopeTable]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A registered method."""

    name: str
    summary: str
    """Description in one line, for `longeval rope --list` and the docs."""
    source: str
    """Paper or author."""
    parameters: type
    """The method's dataclass; its fields are the names after the dot in `--pe-arg yarn.beta_fast=32`."""
    compute: MethodFunction
    """(geometry, parameters, seq_len) → RopeTable."""
    uses_factor: bool = True
    """Whether the table depends on s."""
    length_dependent: bool = False
    """Whether the table depends on the length of the window (and then not on s)."""


METHODS: Registry[Method] = Registry("--pe")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoParameters:
    """The parameters of a method that has none."""


def method(
    name: str,
    *,
    summary: str,
    source: str,
    parameters: type = NoParameters,
    uses_factor: bool = True,
    length_dependent: bool = False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Decorator that registers a method function under `name` in METHODS."""

    def register(compute: MethodFunction) -> MethodFunction:
        METHODS.register(
            name,
            Method(
                name=name,
                summary=summary,
                source=source,
                parameters=parameters,
                compute=compute,
                uses_factor=uses_factor,
                length_dependent=length_dependent,
            ),
        )
        return compute

    return register


def check_positive(name: str, value: float) -> None:
    """Raises LongEvalError, naming the parameter, unless `value` is finite and greater than 0."""
    if not 0 < value < math.inf:
        raise LongEvalError(
            f"{name} {value:g}: must be a finite number greater than 0", "Correct this setting or leave it out."
        )


def refuse_start(geometry: Geometry, reason: str) -> None:
    """Raises LongEvalError with `reason` if a method is to be applied on top of the model's own scaling."""
    if geometry.start is not None:
        raise LongEvalError(f"--scale-from shipped: {reason}", "Leave it out: the method then replaces that scaling.")
