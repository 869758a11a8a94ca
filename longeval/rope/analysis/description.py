"""The analysis of one method as a dictionary, which `longeval rope` prints, draws, and writes as JSON.

Feature gaps, pre-critical features and unique positions are from Wang et al. 2024, arXiv 2403.00071. Decay is the mean
over features of cos(Δ·θ̃_j). This is the logit of a query and an equal key that are Δ tokens apart, if all their
features have the same norm (Su et al. 2021, arXiv 2104.09864, section 3.4.3). It leaves out the attention factor, whose
square multiplies the logits at every distance.

Under resonance, a feature has as many phases as its period has tokens, and the pre-critical features together repeat
after the least common multiple of their periods. This is the number of unique positions.

Shapes: F features, K distances.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.rope.analysis.gaps import feature_gaps
from longeval.rope.analysis.precision import ENDS, count_collisions, float_errors
from longeval.rope.base import FloatArray, Geometry, IntArray, RopeTable
from longeval.rope.build import build_table, parse_method_name
from longeval.rope.resonance import ResonanceParameters, resonate

_NUM_SPACED = 370
"""Number of log-spaced distances of a decay curve; with the round distances there are about 400 in all."""


def describe(
    name: str,
    geometry: Geometry,
    parameters: Any = None,
    seq_len: int | None = None,
    *,
    resonance: ResonanceParameters | None = None,
) -> dict[str, Any]:
    """Describes a method on a geometry; for arguments and errors see `build_table` and `describe_tables`."""
    parsed = parse_method_name(name)
    length = geometry.target_length if seq_len is None else seq_len
    unrounded = build_table(parsed.base, geometry, parameters, length)
    max_period = (resonance or ResonanceParameters()).longest_period(geometry.native_length)
    table = resonate(unrounded, max_period) if parsed.resonance else unrounded
    return describe_tables(parsed.canonical, geometry, unrounded=unrounded, table=table, length=length)


def describe_tables(
    name: str, geometry: Geometry, *, unrounded: RopeTable, table: RopeTable, length: int
) -> dict[str, Any]:
    """Describes one method's table as plain JSON types.

    Args:
        name: Canonical method name.
        geometry: Rotary geometry, native length and factor.
        unrounded: The method's table before resonance rounded its wavelengths.
        table: The method's table; `unrounded` itself for methods without resonance.
        length: Sequence length n of the tables, tokens.

    Raises:
        LongEvalError: See `feature_gaps`.
    """
    critical_F = pre_critical(unrounded, geometry)
    gaps_F = feature_gaps(table, geometry)
    unique = None if table.period_F is None else math.lcm(*table.period_F[critical_F].tolist())
    fractions = table.fractions()
    counted = count_collisions(table, geometry.target_length)
    distance_K = decay_distances(geometry)
    rounding_errors_F = np.zeros(geometry.num_features)
    if table.period_F is not None:
        rounding_errors_F = table.wavelengths_F / unrounded.wavelengths_F - 1.0
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
        # `str` of an int refuses more than 4,300 digits, which products of many periods exceed.
        "unique_positions": None if unique is None else str(Decimal(unique)),
        "feature_gap": float(gaps_F[critical_F].max(initial=0.0)),
        "feature_gaps": gaps_F.tolist(),
        "rotations": (geometry.native_length / table.wavelengths_F).tolist(),
        "rounding_errors": rounding_errors_F.tolist(),
        "periods": None if table.period_F is None else table.period_F.tolist(),
        "turns": None if fractions is None else [fraction.numerator for fraction in fractions],
        "interpolation": (geometry.base_inv_freq() / table.inv_freq_F).tolist(),
        "decay": {"distances": distance_K.tolist(), "mean_cos": mean_cosines(table, distance_K).tolist()},
        "collisions": {
            "pre_critical": None if unique is None else max(0, geometry.target_length - unique),
            "float32": None if counted is None else counted.float32,
            "bfloat16": None if counted is None else counted.bfloat16,
        },
        "precision": [float_errors(table, end) for end in ENDS],
    }


def pre_critical(unrounded: RopeTable, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Whether each feature's wavelength is at most L tokens, shape (F,).

    It uses the wavelengths before rounding, so that a method and its resonance form count the same features.
    """
    return np.less_equal(unrounded.wavelengths_F, geometry.native_length)


def decay_distances(geometry: Geometry) -> IntArray:
    """Distances of a decay curve in tokens, ascending, shape (K,).

    They are 0, roughly log-spaced distances up to L'−1, all powers of two, and the native length L.
    """
    last = geometry.target_length - 1
    if last < 1:
        return np.zeros(1, dtype=np.int64)
    spaced_K = np.rint(np.geomspace(1, last, _NUM_SPACED)).astype(np.int64)
    round_K = 2 ** np.arange(last.bit_length(), dtype=np.int64)
    distance_K = np.unique(np.concatenate(([0, geometry.native_length, last], round_K, spaced_K)))
    return distance_K[distance_K <= last]


def mean_cosines(table: RopeTable, distance_K: IntArray) -> FloatArray:
    """Mean over features of cos(Δ·θ̃_j) for each distance Δ, shape (K,)."""
    mean_K: FloatArray = np.cos(table.angles(distance_K)).mean(axis=1)
    return mean_K
