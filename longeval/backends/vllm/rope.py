"""Our table as vLLM's `rope_parameters`, with rope_type `longeval_table` and the frequencies themselves.

The engine gets frequencies instead of the name of a method, so that `--backend vllm` uses exactly the frequencies that
`longeval rope` prints, for every method and model. JSON numbers written by Python keep every bit of a float64. This
module imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from longeval.rope.base import RopeTable

ROPE_TYPE = "longeval_table"
"""Our own rope type, because vLLM's types have other formulas under the usual names."""

_KEPT = ("partial_rotary_factor", "rope_theta")
"""Settings of the model that stay: the rotated part of a head, and the base, which vLLM requires."""


class EngineTable(NamedTuple):
    """A table, and the number of its positions in an engine."""

    table: RopeTable
    length: int
    """Positions 0 … length−1, tokens."""


def to_parameters(
    table: RopeTable, length: int, own: Mapping[str, Any] | None, *, by_layer_type: bool
) -> dict[str, Any]:
    """`rope_parameters` for `hf_overrides`, which replace the model's own.

    Args:
        table: The table to apply.
        length: Number of positions in the engine.
        own: The model's own `rope_parameters`.
        by_layer_type: Whether these are by layer type. Then `full_attention` gets `table`, and other layer types get
            its local table or, without one, keep their settings.

    Returns:
        A dictionary of JSON values in the form of `own`.
    """
    if not by_layer_type:
        return _one(table, length, own or {})
    by_type: dict[str, Any] = {}
    for layer_type, given in (own or {}).items():
        applied = table if layer_type == "full_attention" else table.local
        by_type[layer_type] = dict(given or {}) if applied is None else _one(applied, length, given or {})
    return by_type


def _one(table: RopeTable, length: int, own: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: own[key] for key in _KEPT if own.get(key) is not None}
    return {
        "rope_type": ROPE_TYPE,
        **kept,
        "inv_freq": [float(value) for value in table.inv_freq_F],
        "periods": None if table.period_F is None else [int(value) for value in table.period_F],
        "turns": None if table.turns_F is None else [int(value) for value in table.turns_F],
        "rope_attention_factor": float(table.attention_factor),
        "table_length": length,
    }


def from_parameters(parameters: Mapping[str, Any]) -> EngineTable:
    """Inverse of `to_parameters` for one layer type; lists may have become tuples."""
    periods, turns = parameters["periods"], parameters.get("turns")
    table = RopeTable(
        inv_freq_F=np.array(parameters["inv_freq"], dtype=np.float64),
        attention_factor=float(parameters["rope_attention_factor"]),
        period_F=None if periods is None else np.array(periods, dtype=np.int64),
        turns_F=None if turns is None else np.array(turns, dtype=np.int64),
    )
    return EngineTable(table, int(parameters["table_length"]))
