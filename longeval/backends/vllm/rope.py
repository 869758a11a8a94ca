"""Our table as vLLM's `rope_parameters`: rope_type `longeval_table`, with the frequencies themselves.

The engine gets numbers, not the name of a method: what `--backend vllm` computes is then what `longeval rope` prints,
for every method, model and starting point. Python writes a float64 so that it reads back bit for bit.
This module knows neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from longeval.rope.base import RopeTable

ROPE_TYPE = "longeval_table"
"""Ours alone: vLLM's own types mean other formulas under the names that the field uses."""

_KEPT = ("partial_rotary_factor", "rope_theta")
"""The model's own settings that stay: which part of a head rotates, and the base, which vLLM wants to see."""


class EngineTable(NamedTuple):
    """A table, and how many positions of it an engine holds."""

    table: RopeTable
    length: int
    """Positions 0 … length−1, tokens."""


def to_parameters(
    table: RopeTable, length: int, own: Mapping[str, Any] | None, *, by_layer_type: bool
) -> dict[str, Any]:
    """`rope_parameters` for `hf_overrides`, which take the place of the model's own.

    Args:
        table: What is to be applied.
        length: Positions that the engine is to hold.
        own: The model's own `rope_parameters`.
        by_layer_type: Whether these are by layer type: `full_attention` gets `table`, others its local one, or keep
            their own settings where it has none.

    Returns:
        A dictionary of JSON values, of the same form as `own`.
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
        "rope_attention_factor": float(table.attention_factor),
        "table_length": length,
    }


def from_parameters(parameters: Mapping[str, Any]) -> EngineTable:
    """Reads what `to_parameters` wrote for one kind of layer; lists may have become tuples."""
    periods = parameters["periods"]
    table = RopeTable(
        inv_freq_F=np.array(parameters["inv_freq"], dtype=np.float64),
        attention_factor=float(parameters["rope_attention_factor"]),
        period_F=None if periods is None else np.array(periods, dtype=np.int64),
    )
    return EngineTable(table, int(parameters["table_length"]))
