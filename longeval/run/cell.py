"""Ids of cells: a digest of everything that decides a cell's result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from longeval.plain import canonical_json
from longeval.store.records import SCHEMA_VERSION

ID_DIGITS = 16
"""Hex digits of a cell id: 64 bits, no collision to fear among a study's cells."""

FOR_READERS = ("data_origin", "own_native_length", "source", "limit", "same_samples", "overlong")
"""Parameters that decide nothing by themselves: where texts and tasks were found, the native length that --native
replaced, and what led to a task's samples, which are in its cell's id themselves."""


def cell_id(kind: str, fields: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """A digest of everything that decides a cell's result."""
    decides = {"kind": kind, "schema": SCHEMA_VERSION, **fields}
    decides |= {key: value for key, value in params.items() if key not in FOR_READERS}
    return hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS]
