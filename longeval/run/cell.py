"""A cell, the unit of storage and resume, and its id, a digest of everything that determines its result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from longeval.plain import canonical_json
from longeval.rope.build import MethodName
from longeval.store.artefact import Artefact
from longeval.store.plan import PlannedCell
from longeval.store.records import SCHEMA_VERSION, Record, Status, provenance
from longeval.values import format_length

ID_DIGITS = 16
"""Hex digits of a cell id. They are 64 bits, enough to exclude collisions among a study's cells."""

FOR_READERS = (
    "data_origin",
    "without_text",
    "own_native_length",
    "source",
    "limit",
    "same_samples",
    "overlong",
    "adapter_name",
)
"""Parameters that decide nothing by themselves: where texts and tasks were found, how many records had no text, the
native length that --native replaced, what led to a task's samples, which are in its cell's id themselves, and where an
adapter lies, whose digest is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Follows:
    """A setting that follows from the longest length unless it is given: asking for a longer one changes it."""

    setting: str
    """Field of the request; of the cell, or a parameter of it, too."""
    of: str
    """Field of the cell that names what the setting is one of: its method, its data."""
    says: str
    """What has changed, and how to keep it, with places for `{old}`, `{new}` and `{flag}`."""

    def value(self, of: Cell | Record) -> str:
        """The setting as a user gives it: `1k`, `2`."""
        found = getattr(of, self.setting, of.params.get(self.setting))
        return format_length(found) if isinstance(found, int) else f"{found:g}" if found is not None else ""

    def subject(self, cell: Cell) -> str:
        """What the setting is one of."""
        found = getattr(cell, self.of)
        return found.canonical if isinstance(found, MethodName) else str(found)


def cell_id(kind: str, fields: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """A digest of everything that determines a cell's result: fields, and params except those in FOR_READERS."""
    decides = {"kind": kind, "schema": SCHEMA_VERSION, **fields}
    decides |= {key: value for key, value in params.items() if key not in FOR_READERS}
    return hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One combination of model, method, length, data or task, and protocol. Studies add fields in subclasses."""

    told_apart_by: ClassVar[tuple[str, ...]] = ()
    """Parameters in which cells of one table differ; the stored plan holds them."""
    selected_by: ClassVar[tuple[str, ...]] = ()
    """Parameters that select the cell's windows or samples, and change nothing of each: cells that differ in these
    alone share what they have in common (`run.reuse`)."""
    part: ClassVar[str] = ""
    """What the cell consists of: `window`, `sample`."""
    follows: ClassVar[tuple[Follows, ...]] = ()
    """Settings that keep the cell from sharing where a longer length is asked for."""
    artefact: ClassVar[Artefact[Any] | None] = None
    """The kind of artefact that it stores; None: the one that `store.artefact.artefact_of` gives for its records."""

    id: str
    model: str
    pe: MethodName
    factor: float | None
    """None for methods that don't use it."""
    length: int
    """Window length in tokens."""
    data: str | None = None
    task: str | None = None
    protocol: str | None = None
    backend: str
    """Name of the backend."""
    dtype: str
    """The precision, or `unknown`."""
    params: dict[str, Any]
    """Everything else that determines the value, as in the record."""
    metric: str
    """The main metric. The record of a failed cell names it."""
    skipped: int | None = None
    """Number of documents or samples that were left out."""

    def fields(self) -> dict[str, Any]:
        """The fields of the cell's records that are known before it is computed."""
        return {
            "cell": self.id,
            "model": self.model,
            "pe": self.pe.canonical,
            "factor": self.factor,
            "length": self.length,
            "data": self.data,
            "task": self.task,
            "protocol": self.protocol,
            "params": self.params,
            "backend": self.backend,
            "dtype": self.dtype,
            "skipped": self.skipped,
        }

    def without_value(self, status: Status, reason: str, device: str) -> Record:
        """The record of a cell that failed or was skipped."""
        why = {"metric": self.metric, "value": None, "status": status, "error": reason}
        return Record(**self.fields() | why, provenance=provenance(device))

    def planned(self) -> PlannedCell:
        """The cell's entry in the stored plan."""
        kept = self.fields()
        del kept["dtype"], kept["skipped"]
        kept["params"] = {name: self.params[name] for name in self.told_apart_by}
        return PlannedCell(**kept)
