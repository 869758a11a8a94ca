"""What a cell leaves beside its record: token NLLs, samples, curves. Every metric is derived from it.

Each kind of artefact is declared once, beside the class that it stores: the folder and suffix of its files, how it is
written and read, and how records are compared with it. A run folder knows no more of it than this declaration.

Counts must be what records say; means may differ in the last digits, since libraries and processors add up in another
order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from longeval.plain import canonical_json
from longeval.registry import Registry
from longeval.store.records import Record

T = TypeVar("T")

_OF_CELL = ("cell", "model", "pe", "factor", "length", "data", "task", "backend", "dtype", "status")
"""Fields that all records of a cell share."""

_CLOSE = 1e-5
"""Relative difference that the order of additions in float32 may make; one wrong value in a thousand makes more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact(Generic[T]):
    """A kind of artefact."""

    folder: str
    """Folder of a run folder, and the kind's name: `nll`."""
    suffix: str
    """What its files end in: `npz`."""
    encode: Callable[[T], bytes]
    """Content of its file."""
    decode: Callable[[bytes], T]
    """Inverse of `encode`; ValueError, saying what is wrong, for anything else."""
    check: Callable[[T, Sequence[Record]], None]
    """Raises ValueError, saying what is wrong, where the artefact contradicts itself or the counts of its records."""
    by_epoch: Callable[[T], Mapping[str, Mapping[int, float]]] | None = None
    """Name → epoch → value, of a kind that says how a training went: what experiment trackers draw."""
    parts: Callable[[T], Mapping[str, Any]] | None = None
    """Digest of what the model was given → what it gave, for each window or sample of a kind that is made of such."""
    values: dict[str, Callable[[T, Record], float | None]] = field(default_factory=dict)
    """Metric → the value that its record must have. Every further metric that is registered adds its own."""
    other: Callable[[T, Record], float | None] | None = None
    """The same for all metrics that are not among `values`; None where there are no others."""

    def __reduce__(self) -> tuple[Callable[[str], Artefact[Any]], tuple[str]]:
        """An outcome that goes to another process names its kind of artefact: functions of metrics can't be pickled."""
        return _registered, (self.folder,)

    def path(self, cell: str) -> str:
        """Name of a cell's file, with its folder."""
        return f"{self.folder}/{cell}.{self.suffix}"


ARTEFACTS: Registry[Artefact[Any]] = Registry("artefact")
"""Kinds of artefacts by folder."""


def _registered(folder: str) -> Artefact[Any]:
    """The kind of artefact with this folder."""
    return ARTEFACTS[folder]


def artefact_of(record: Record) -> Artefact[Any] | None:
    """What a cell's records are made from, as its record tells; None for averages of groups, which have none."""
    if record.backend == "posgen":
        return ARTEFACTS["curves"]
    if record.task is None:
        return ARTEFACTS["nll"]
    return ARTEFACTS["samples"] if record.params.get("members") is None else None


def check_records(records: Sequence[Record], cell: str, status: str) -> None:
    """Raises ValueError, saying what, where the records of a file aren't all of the cell and status that it states."""
    if not records:
        raise ValueError("has no record")
    first = records[0]
    if (first.cell, first.status) != (cell, status):
        raise ValueError("its records are of another cell or status than the file")
    for name in _OF_CELL:
        if any(getattr(record, name) != getattr(first, name) for record in records):
            raise ValueError(f"its records differ in {name}")
    if len({record.metric for record in records}) < len(records):
        raise ValueError("a metric is there twice")


def digest(records: Sequence[Mapping[str, Any]], content: bytes) -> str:
    """SHA-256 of what a cell's file and its artefact hold."""
    return hashlib.sha256(canonical_json(records).encode() + content).hexdigest()


def check_artefact(artefact: Artefact[Any], content: bytes, records: Sequence[Record]) -> None:
    """Raises ValueError, saying what, unless a cell's artefact is whole and its records are made from it."""
    found = artefact.decode(content)
    artefact.check(found, records)
    for record in records:
        value = artefact.values.get(record.metric, artefact.other)
        if value is None:
            raise ValueError(f"{record.metric} is not one of its metrics")
        check_value(record.value, value(found, record), record.metric)


def check_count(recorded: int | None, found: int | None, what: str) -> None:
    """Raises ValueError unless a record counts what is there; what it doesn't count is not compared."""
    if recorded is not None and recorded != found:
        raise ValueError(f"its record counts {recorded} {what}, and there are {found}")


def check_value(recorded: float | None, found: float | None, what: str) -> None:
    """Raises ValueError unless a record has the value that follows from what is there."""
    if recorded is None:
        return
    if found is None or not math.isclose(recorded, found, rel_tol=_CLOSE, abs_tol=1e-9):
        raise ValueError(f"its record says {what} {recorded:.6g}, which is not what it is made of")
