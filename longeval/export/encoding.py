"""The encoding that is exported: one method's table on one model, for all lengths up to the target.

A model's configuration and a GGUF both hold one set of frequencies. Methods whose table depends on the length of the
sequence can't be exported.

An export also states the largest error of a stock engine's cosines and sines, compared with ours, over all positions up
to a length. We compute angles in float64, reduced modulo the exact period if wavelengths are integers. A stock engine
multiplies positions and float32 frequencies in float32 without that reduction, so after thousands of turns few bits
remain for the fraction of a turn. llama.cpp has no table of frequencies, but a running float32 product from feature to
feature (`ggml_rope_cache_init`).

Shapes: T positions, F features.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.files import why_unwritable
from longeval.models.resolve import ModelRef, weights_digest
from longeval.models.scaling import ModelRope
from longeval.rope.base import METHODS, RopeTable
from longeval.rope.build import MethodName, parse_method_name
from longeval.store.records import provenance
from longeval.values import format_length

Float32Array = npt.NDArray[np.float32]
StockAngles = Callable[[Float32Array], Float32Array]
"""Maps positions (T,) to angles (T, F) in radians, both float32, as an engine computes them."""

Progress = Callable[[int, int], None]
"""Is called with the bytes copied so far and the total number of bytes."""

_ROWS = 4096
"""Number of positions that are compared at the same time."""

NOTE_VERSION = 1
"""The version of an export's note. Raise it when the meaning of a key changes."""

_FURTHEST = 2**24
"""Largest position: float32 represents every integer up to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """A position encoding that will be written into a model."""

    rope: ModelRope
    """The model's own position encoding."""
    name: MethodName
    """The method."""
    arguments: dict[str, Any]
    """The method's parameters, defaults included, and those of resonance that are not the default."""
    factor: float
    """s = target length / native length, at least 1."""
    target_length: int
    """L' in tokens, written as `max_position_embeddings`."""
    table: RopeTable
    """The method's table for all lengths up to L'."""

    @property
    def native_length(self) -> int:
        """L in tokens."""
        return self.rope.geometry.native_length

    @property
    def theta(self) -> float:
        """The base in the configuration, which stays. The exported divisors are relative to its frequencies."""
        return self.rope.geometry.theta

    def describe(self) -> str:
        """Method and lengths for a message: `resonance_yarn, s = 2 (8k to 16k)`."""
        lengths = f"{format_length(self.native_length)} to {format_length(self.target_length)}"
        return f"{self.name.canonical}, s = {self.factor:g} ({lengths})"

    def advice(self) -> str | None:
        """Advice where a model gets rounded wavelengths that its configuration doesn't have; None elsewhere.

        Measured in reports/resonance-phases.
        """
        if not self.name.resonance or "max_period" in self.arguments or self.rope.shipped.resonance:
            return None
        return (
            f"rounding moves frequencies by up to a few percent: unless {self.rope.model} was trained with that, "
            "prefer --pe-arg resonance.max_period=native, which repeats as exactly and keeps them (docs/rope.md)"
        )


def encode(rope: ModelRope, pe: str, *, factor: float | None, arguments: Mapping[str, Any]) -> Encoding:
    """Computes the table of a method on a model; `factor` and `arguments` are as the user gave them.

    Raises:
        LongEvalError: The method's table depends on the length, a needed factor is missing, a parameter is impossible,
            or the model already has these frequencies.
    """
    name = parse_method_name(pe)
    _check_static(rope, name)
    encoding = encode_for(rope, name, _target_length(rope, name, factor), factor=factor, arguments=arguments)
    _check_new(rope, name, encoding.table)
    return encoding


def encode_for(
    rope: ModelRope, name: MethodName, target: int, *, factor: float | None, arguments: Mapping[str, Any]
) -> Encoding:
    """The encoding of a method for a target length in tokens; without a factor it is target / native, at least 1.

    Raises:
        LongEvalError: A parameter is impossible.
    """
    native = rope.geometry.native_length
    geometry = dataclasses.replace(rope.geometry, factor=max(1.0, target / native) if factor is None else factor)
    table = rope.tables(name, geometry, arguments)(target)
    return Encoding(
        rope=rope,
        name=name,
        arguments=rope.parameters(name, arguments).to_mapping(),
        factor=geometry.factor,
        target_length=target,
        table=table,
    )


def _check_static(rope: ModelRope, name: MethodName) -> None:
    """Raises LongEvalError for a method whose table depends on the length of the sequence."""
    if not rope.length_dependent(name):
        return
    prefix = "resonance_" if name.resonance else ""
    if name.base == "none":
        remedy = "Stock engines read that scaling from the model as it is." if not name.resonance else ""
        if rope.shipped.base in METHODS:
            remedy += f" --pe {prefix}{rope.shipped.base} --factor S exports one table of it for all lengths."
        raise LongEvalError(
            f"--pe {name.canonical}: the {rope.shipped.rope_type} scaling that {rope.model} comes with depends on the "
            "length of each sequence, but an export holds one table",
            remedy.strip() or "Export another method, such as resonance_yarn --factor S.",
        )
    static = name.base.removeprefix("dynamic_")
    remedy = f"Export {prefix}{static} with --factor S: the same formula for one target length."
    raise LongEvalError(
        f"--pe {name.canonical}: its frequencies depend on the length of each sequence, but an export holds one table",
        remedy if static in METHODS else "Export a method whose table doesn't depend on length.",
    )


def _target_length(rope: ModelRope, name: MethodName, factor: float | None) -> int:
    """L' = s·L. For methods that don't use s, the length that the model already reaches."""
    native = rope.geometry.native_length
    if factor is not None:
        if factor * native > _FURTHEST:
            raise LongEvalError(
                f"--factor {factor:g}: a target of {factor * native:.4g} tokens is beyond what stock engines can count",
                f"They hold positions in float32, which has every integer only up to {_FURTHEST}.",
            )
        return round(factor * native)
    if name.method.uses_factor:
        raise LongEvalError(
            f"--factor: missing, {name.canonical} needs it",
            f"It is target length / native length: --factor 4 stretches {format_length(native)} to "
            f"{format_length(4 * native)}.",
        )
    return max(native, rope.shipped.reach) if name.base == "none" else native


def _check_new(rope: ModelRope, name: MethodName, table: RopeTable) -> None:
    """Raises LongEvalError if a model with plain RoPE would get the frequencies that it already has."""
    plain_F = rope.geometry.plain_inv_freq(rope.geometry.theta)
    same = rope.shipped.base == "none" and table.period_F is None and table.attention_factor == 1.0
    if same and table.local is None and np.allclose(table.inv_freq_F, plain_F, rtol=1e-12, atol=0.0):
        raise LongEvalError(
            f"--pe {name.canonical}: nothing to export, {rope.model} has these frequencies already",
            "Name a method that changes them, such as --pe resonance_yarn --factor 4.",
        )


def export_note(ref: ModelRef, encoding: Encoding, engine: dict[str, Any]) -> dict[str, Any]:
    """The note in an export as JSON: the encoding and its origin. It is `longeval.json` in a folder, a field in a GGUF.

    `engine` has the name and the largest error of the engine that the export is for. `rope_digest` is that of our exact
    table at the target length, as `longeval ppl` records it; if local layers are scaled, it covers their table too.
    """
    origin = provenance("none")
    table = encoding.table
    return {
        "schema_version": NOTE_VERSION,
        "model": ref.name,
        "weights": weights_digest(ref),
        **({} if ref.adapter is None else ref.adapter.params),
        "pe": encoding.name.canonical,
        "params": encoding.arguments,
        "factor": encoding.factor,
        "native_length": encoding.native_length,
        "target_length": encoding.target_length,
        "scale_from": encoding.rope.scale_from,
        "layers": encoding.rope.layers,
        "theta": encoding.theta,
        **_table_note(table),
        "local": None if table.local is None else _table_note(table.local),
        "rope_digest": table.digest(encoding.target_length),
        "versions": origin.versions,
        "commit": origin.commit,
        "dirty": origin.dirty,
        "command": origin.command,
        "date": origin.date,
        "engine": engine,
    }


def _table_note(table: RopeTable) -> dict[str, Any]:
    """A table as plain JSON."""
    return {
        "inv_freq": table.inv_freq_F.tolist(),
        "periods": None if table.period_F is None else table.period_F.tolist(),
        **({} if table.turns_F is None else {"turns": table.turns_F.tolist()}),
        "attention_factor": float(table.attention_factor),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class StockError:
    """The largest absolute error of a stock engine's cos or sin, attention factor included."""

    largest: float
    position: int
    """Position of the largest error, tokens."""
    feature: int
    """Feature j of the largest error."""

    def to_json(self) -> dict[str, Any]:
        """The error as keys of an export's note."""
        return {"largest_error": self.largest, "position": self.position, "feature": self.feature}


def multiplied(inv_freq_F: Float32Array) -> StockAngles:
    """Angles as transformers and vLLM compute them: float32 position times float32 frequency."""
    return lambda positions_T: positions_T[:, None] * inv_freq_F[None, :]


def running(theta: float, divisor_F: Float32Array) -> StockAngles:
    """Angles as llama.cpp computes them: m times b^(−2/d) once more for each feature, divided at the end."""
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
    """Compares an engine's float32 cosines and sines with ours at positions 0 … length−1."""
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


def check_parent(path: str) -> None:
    """Raises LongEvalError if the folder that will contain `--out` can't be written or made."""
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise LongEvalError(f"--out {path}: {parent} is not a folder", "Choose another path.")
    if (why := why_unwritable(parent)) is not None:
        raise LongEvalError(f"--out {path}: can't write there ({why})", "Choose a folder you may write to.")
