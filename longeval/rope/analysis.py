"""What a frequency table is worth beyond the native length, in one dictionary: what `longeval rope` shows of a method.

Feature gaps, pre-critical features and unique positions are ideas of Wang et al. 2024, arXiv 2403.00071; each module
that is called here (gaps, collisions, decay, precision) defines its own number.

Shapes: F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table, parse_method_name
from longeval.rope.collisions import count_collisions, decimal, unique_positions
from longeval.rope.decay import decay_distances, mean_cosines
from longeval.rope.gaps import check_target, feature_gaps
from longeval.rope.precision import ENDS, float_errors
from longeval.rope.resonance import resonate


def pre_critical(table: RopeTable, geometry: Geometry) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which features have a wavelength of at most L tokens, shape (F,); give it the table before rounding."""
    critical_F: np.ndarray[Any, np.dtype[np.bool_]] = table.wavelengths_F <= geometry.native_length
    return critical_F


def describe(name: str, geometry: Geometry, parameters: Any = None, seq_len: int | None = None) -> dict[str, Any]:
    """As `describe_tables`, for a method of plain RoPE by its name.

    Args:
        name: Canonical method name.
        geometry: Rotary geometry, native length and factor.
        parameters: The method's parameters dataclass; its defaults if None.
        seq_len: Current sequence length n in tokens; default s·L.

    Raises:
        LongEvalError: As `build_table` and `feature_gaps`.
    """
    check_target(geometry)
    parsed = parse_method_name(name)
    length = geometry.target_length if seq_len is None else seq_len
    unrounded = build_table(parsed.base, geometry, parameters, length)
    table = resonate(unrounded) if parsed.resonance else unrounded
    return describe_tables(parsed.canonical, geometry, unrounded=unrounded, table=table, length=length)


def describe_tables(
    name: str, geometry: Geometry, *, unrounded: RopeTable, table: RopeTable, length: int
) -> dict[str, Any]:
    """One method's table and what it is worth, as plain JSON types: the contract of `longeval rope --json`.

    Args:
        name: Canonical method name.
        geometry: Rotary geometry, native length and factor.
        unrounded: The method's table before resonance rounded its wavelengths.
        table: The method's table; `unrounded` itself where nothing is rounded.
        length: Sequence length n that the tables were made for, tokens.

    Raises:
        LongEvalError: As `feature_gaps`.
    """
    # Judged before rounding, so that a method and its resonance form count the same features.
    critical_F = pre_critical(unrounded, geometry)
    gaps_F = feature_gaps(table, geometry)
    unique = unique_positions(None if table.period_F is None else table.period_F[critical_F])
    distance_K = decay_distances(geometry)
    return {
        "name": name,
        "head_dim": geometry.head_dim,
        "theta": float(geometry.theta),
        "native_length": geometry.native_length,
        "factor": float(geometry.factor),
        "length": length,
        "inv_freq": table.inv_freq_F.tolist(),
        "wavelengths": table.wavelengths_F.tolist(),
        "attention_factor": float(table.attention_factor),
        "pre_critical": int(np.count_nonzero(critical_F)),
        "unique_positions": None if unique is None else decimal(unique),
        "feature_gap": float(gaps_F[critical_F].max(initial=0.0)),
        "feature_gaps": gaps_F.tolist(),
        "rotations": (geometry.native_length / table.wavelengths_F).tolist(),
        "rounding_errors": _rounding_errors(unrounded, table),
        "interpolation": (geometry.base_inv_freq() / table.inv_freq_F).tolist(),
        "decay": {"distances": distance_K.tolist(), "mean_cos": mean_cosines(table, distance_K).tolist()},
        "collisions": _collisions(table, geometry.target_length, unique),
        "precision": [float_errors(table, end).to_json() for end in ENDS],
    }


def _rounding_errors(unrounded: RopeTable, table: RopeTable) -> list[float]:
    """λ̃_j/λ_j − 1 for every feature; exactly 0 where nothing is rounded."""
    if table.period_F is None:
        return [0.0] * len(table.inv_freq_F)
    errors: list[float] = (table.wavelengths_F / unrounded.wavelengths_F - 1.0).tolist()
    return errors


def _collisions(table: RopeTable, length: int, unique: int | None) -> dict[str, int | None]:
    """Of the positions 0 … length−1, how many are no different from an earlier one, by what tells them apart."""
    counted = count_collisions(table, length)
    return {
        "pre_critical": None if unique is None else max(0, length - unique),
        "float32": None if counted is None else counted.float32,
        "bfloat16": None if counted is None else counted.bfloat16,
    }
