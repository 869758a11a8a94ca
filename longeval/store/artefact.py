"""Artefacts: what a cell stores beside its records (token NLLs, samples, curves). Metrics are computed from them.

Each kind of artefact is declared once, beside the class that it stores. The declaration says in which folder its files
lie, how they are written and read, and how records are checked against them.

A record's counts must equal those of its artefact. Means may differ in the last digits, because libraries and
processors add floats in different orders.
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
"""Fields that must be equal in all records of a cell."""

_CLOSE = 1e-5
"""Largest relative difference between a recorded mean and the one computed again.

The order of additions in float32 changes a mean by less; one wrong value among a thousand changes it by more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact(Generic[T]):
    """How one kind of artefact is stored, read and checked."""

    folder: str
    """Folder of its files inside a run folder, such as `nll`. It also names the kind."""
    suffix: str
    """Suffix of its files, such as `npz`."""
    encode: Callable[[T], bytes]
    """Turns an artefact into the content of its file."""
    decode: Callable[[bytes], T]
    """Inverse of `encode`. Raises ValueError with the reason for any other content."""
    check: Callable[[T, Sequence[Record]], None]
    """Raises ValueError with the reason if the artefact contradicts itself or the counts of its records."""
    by_epoch: Callable[[T], Mapping[str, Mapping[int, float]]] | None = None
    """Returns name → epoch → value, for the plots of experiment trackers. None for kinds without epochs."""
    parts: Callable[[T], Mapping[str, Any]] | None = None
    """Digest of what the model was given → what it gave, for each window or sample of a kind that is made of such."""
    values: dict[str, Callable[[T, Record], float | None]] = field(default_factory=dict)
    """Metric → function that computes the value its record must have. Registering a metric adds an entry."""
    other: Callable[[T, Record], float | None] | None = None
    """The same function for every metric without an entry in `values`; None if there may be no such metric."""

    def __reduce__(self) -> tuple[Callable[[str], Artefact[Any]], tuple[str]]:
        """Pickles the kind by name, because the functions of metrics can't be pickled."""
        return _registered, (self.folder,)

    def path(self, cell: str) -> str:
        """The path of a cell's file inside the run folder."""
        return f"{self.folder}/{cell}.{self.suffix}"


ARTEFACTS: Registry[Artefact[Any]] = Registry("artefact")
"""All kinds of artefacts, by folder."""


def _registered(folder: str) -> Artefact[Any]:
    return ARTEFACTS[folder]


def artefact_of(record: Record) -> Artefact[Any] | None:
    """The kind of artefact that a record was computed from; None for the average of a task group, which has none."""
    if record.backend == "posgen":
        return ARTEFACTS["curves"]
    if record.task is None:
        return ARTEFACTS["nll"]
    return ARTEFACTS["samples"] if record.params.get("members") is None else None


def check_records(records: Sequence[Record], cell: str, status: str) -> None:
    """Checks that a file's records belong to the cell and status that the file states; raises ValueError if not."""
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
    """SHA-256 (hex) of a cell's records and the content of its artefact's file."""
    return hashlib.sha256(canonical_json(records).encode() + content).hexdigest()


def check_artefact(artefact: Artefact[Any], content: bytes, records: Sequence[Record]) -> None:
    """Checks that an artefact can be decoded and that its records follow from it; raises ValueError if not."""
    found = artefact.decode(content)
    artefact.check(found, records)
    for record in records:
        value = artefact.values.get(record.metric, artefact.other)
        if value is None:
            raise ValueError(f"{record.metric} is not one of its metrics")
        check_value(record.value, value(found, record), record.metric)


def check_count(recorded: int | None, found: int | None, what: str) -> None:
    """Raises ValueError if a recorded count differs from the artefact's; a count of None is not compared."""
    if recorded is not None and recorded != found:
        raise ValueError(f"its record counts {recorded} {what}, and there are {found}")


def check_value(recorded: float | None, found: float | None, what: str) -> None:
    """Raises ValueError if a recorded value differs from the artefact's; a value of None is not compared."""
    if recorded is None:
        return
    if found is None or not math.isclose(recorded, found, rel_tol=_CLOSE, abs_tol=1e-9):
        raise ValueError(f"its record says {what} {recorded:.6g}, which does not follow from its artefact")
