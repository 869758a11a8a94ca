"""Settings that decide which records may stand in one table, and how tables that differ in them are told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from longeval.records import Record
from longeval.report.rows import canonical, method_of

_DIGESTS = frozenset({"weights", "tokenizer", "data_digest", "task_digest"})
"""Parameters whose values tell a reader nothing; named only where nothing else tells two tables apart."""


class Part(NamedTuple):
    """Records that may stand in one table."""

    differs: str
    """In what they differ from the other parts; empty if they are the only one."""
    records: list[Record]


def split(records: Sequence[Record], params: Sequence[str], per_cell: frozenset[str] | None) -> list[Part]:
    """Splits records by backend, dtype and parameters.

    Args:
        records: Of one metric of one subject (data and protocol, or a task).
        params: Parameters that split wherever they differ.
        per_cell: Parameters that never split, since they belong to a row or a cell; all others split where cells of
            one method, factor and length differ in them. None: no others split.
    """
    keys = ["backend", "dtype", *params]
    if per_cell is not None:
        keys += _colliding(records, keys, per_cell)
    parts: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        parts[_values(record, keys)].append(record)
    differing = _telling(keys, list(parts))
    return [
        Part(", ".join(_shown(key, _setting(part[0], key)) for key in differing), part)
        for _, part in sorted(parts.items())
    ]


def _telling(keys: Sequence[str], parts: Sequence[tuple[str, ...]]) -> list[str]:
    """Keys in which parts differ, without digests if the others tell all of them apart."""
    places = [place for place in range(len(keys)) if len({values[place] for values in parts}) > 1]
    plain = [place for place in places if keys[place] not in _DIGESTS]
    if len({tuple(values[place] for place in plain) for values in parts}) == len(parts):
        places = plain
    return [keys[place] for place in places]


def _setting(record: Record, key: str) -> Any:
    return getattr(record, key) if key in ("backend", "dtype") else record.params.get(key)


def _values(record: Record, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(canonical(_setting(record, key)) for key in keys)


def _shown(key: str, value: Any) -> str:
    """`stride 128`, `float32`, `weights 0a1b2c3d`."""
    if key in ("backend", "dtype"):
        return str(value)
    text = value if isinstance(value, str) else canonical(value)
    return f"{key} {text[:8] if key in _DIGESTS else text}"


def _colliding(records: Sequence[Record], keys: Sequence[str], per_cell: frozenset[str]) -> list[str]:
    """Names of other parameters in which cells of one method, factor and length differ."""
    others = sorted({key for record in records for key in record.params} - {*keys, *per_cell})
    colliding = []
    for key in others:
        values: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        for record in records:
            place = (record.pe, record.factor, method_of(record), record.length, *_values(record, keys))
            values[place].add(canonical(record.params.get(key)))
        if any(len(found) > 1 for found in values.values()):
            colliding.append(key)
    return colliding
