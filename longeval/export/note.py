"""`longeval.json`: what an export holds and how it was made, kept in the export itself.

A folder has it as a file, a GGUF as the field `longeval.export`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from longeval.export.encoding import Encoding
from longeval.export.error import StockError
from longeval.export.stock import Stock
from longeval.models.files import weights_digest
from longeval.models.resolve import ModelRef
from longeval.rope.base import RopeTable, table_digest
from longeval.store.provenance import provenance

VERSION = 1
"""Of the note; raised when a key changes its meaning."""


def export_note(ref: ModelRef, encoding: Encoding, stock: Stock) -> dict[str, Any]:
    """The note of a folder: `common_note`, and what stock transformers makes of it."""
    engine = {"name": "transformers", "version": stock.transformers, **error_note(stock.error)}
    return common_note(ref, encoding) | {"engine": engine}


def error_note(error: StockError) -> dict[str, Any]:
    """A stock engine's largest error as plain JSON."""
    return {"largest_error": error.largest, "position": error.position, "feature": error.feature}


def common_note(ref: ModelRef, encoding: Encoding) -> dict[str, Any]:
    """Method, parameters, lengths, frequencies and provenance, as plain JSON.

    `rope_digest` is that of our own exact table at the target length, as `longeval ppl` records it.
    """
    origin = provenance("none")
    return {
        "schema_version": VERSION,
        "model": ref.name,
        "weights": weights_digest(ref),
        "pe": encoding.name.canonical,
        "params": encoding.arguments,
        "factor": encoding.factor,
        "native_length": encoding.native_length,
        "target_length": encoding.target_length,
        "scale_from": encoding.rope.scale_from,
        "layers": encoding.rope.layers,
        "theta": encoding.theta,
        **_table_note(encoding.table),
        "local": None if encoding.table.local is None else _table_note(encoding.table.local),
        "rope_digest": _digest(encoding.table, encoding.target_length),
        "versions": origin.versions,
        "commit": origin.commit,
        "dirty": origin.dirty,
        "command": origin.command,
        "date": origin.date,
    }


def _table_note(table: RopeTable) -> dict[str, Any]:
    """A table as numbers; wavelengths that are whole are so here."""
    return {
        "inv_freq": table.inv_freq_F.tolist(),
        "periods": None if table.period_F is None else table.period_F.tolist(),
        "attention_factor": float(table.attention_factor),
    }


def _digest(table: RopeTable, length: int) -> str:
    """Digest of the exact table for positions 0 … length−1, then of that of the local layers where they are scaled."""
    positions_T = np.arange(length, dtype=np.int64)
    tables = [table] if table.local is None else [table, table.local]
    return table_digest(*(part.cos_sin(positions_T) for part in tables))
