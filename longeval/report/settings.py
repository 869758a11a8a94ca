"""Settings that decide which records may stand in one table, and how tables that differ in them are told apart.

What a reader compares must differ in the method alone: cells of one column that were asked with other settings got
other samples, so they go into a table of their own that is named by the setting (`limit 10`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from longeval.report.rows import canonical, method_of
from longeval.report.versions import OUTCOMES
from longeval.store.records import Record

_DIGESTS = frozenset({"weights", "tokenizer", "data_digest", "task_digest"})
"""Parameters whose values tell a reader nothing; named only where nothing else tells two tables apart."""


LED_TO_SAMPLES = frozenset({"limit", "same_samples", "overlong"})
"""Settings that decide nothing beside the samples that they led to."""

OF_SERVER = frozenset({"base_url", "served_model"})
"""Which server answered: each computes with one method, so that methods that are compared come from several."""

OF_METHOD = frozenset({"method", "pin_length", "own_native_length", "source"})
"""Parameters that belong to a method, or say where something was found."""


class Part(NamedTuple):
    """Records that may stand in one table."""

    differs: str
    """In what they differ from the other parts; empty if they are the only one."""
    records: list[Record]


def split(
    records: Sequence[Record], params: Sequence[str], per_cell: frozenset[str] | None, *, columns: bool = False
) -> list[Part]:
    """Splits records by backend, dtype and parameters.

    Args:
        records: Of one metric of one subject (data and protocol, or a task).
        params: Parameters that split wherever they differ.
        per_cell: Parameters that never split, since they belong to a row or a cell; all others that every record has
            split where cells of one method, factor and length differ in them. None: no others split.
        columns: They split where cells of one length differ in them, whatever their methods.

    Returns:
        The parts in the order of their first records.
    """
    keys = ["backend", "dtype", *params]
    if per_cell is not None:
        keys += _colliding(records, keys, per_cell, columns=columns)
    parts: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        parts[_values(record, keys)].append(record)
    differing = _telling(keys, list(parts))
    return [Part(", ".join(_shown(key, _setting(part[0], key)) for key in differing), part) for part in parts.values()]


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
    """`stride 128`, `float32`, `weights 0a1b2c3d`, `no limit`."""
    if key == "dtype":
        return precision_text(str(value))
    if key == "backend":
        return str(value)
    if value is None:
        return f"no {key}"
    text = value if isinstance(value, str) else canonical(value)
    return f"{key} {text[:8] if key in _DIGESTS else text}"


def precision_text(dtype: str) -> str:
    """`float32`; `precision unknown` where a server doesn't tell."""
    return "precision unknown" if dtype == "unknown" else dtype


def _colliding(records: Sequence[Record], keys: Sequence[str], per_cell: frozenset[str], *, columns: bool) -> list[str]:
    """Names of other parameters in which cells of one place differ."""
    if not records:
        return []
    # What an older version didn't record tells nothing.
    others = sorted(set.intersection(*(set(record.params) for record in records)) - {*keys, *per_cell})
    colliding = []
    for key in others:
        values: dict[tuple[Any, ...], set[tuple[str, str]]] = defaultdict(set)
        for record in records:
            row = () if columns and key not in OF_SERVER else (record.pe, record.factor, method_of(record))
            # What led to samples makes no difference where the samples are the same after all.
            prompts = canonical(record.params.get("prompts")) if key in LED_TO_SAMPLES else ""
            values[*row, record.length, *_values(record, keys)].add((canonical(record.params[key]), prompts))
        if any(_several(found) for found in values.values()):
            colliding.append(key)
    return colliding


def _several(found: set[tuple[str, str]]) -> bool:
    """Whether values differ, and the prompts that they led to."""
    values, prompts = ({pair[place] for pair in found} for place in (0, 1))
    return len(values) > 1 and (prompts <= {"", "null"} or len(prompts) > 1)


def comparable(a: Record, b: Record) -> bool:
    """Whether two cells of a task differ in the method alone: the same settings and definition of the task.

    Prompts may differ (`paired_score` takes the samples that have the same one); equal ones show that settings that
    only led to them made no difference.
    """
    same_prompts = a.params.get("prompts") is not None and a.params["prompts"] == b.params.get("prompts")
    ignored = OF_METHOD | OF_SERVER | OUTCOMES | {"prompts"} | (LED_TO_SAMPLES if same_prompts else frozenset())
    names = (a.params.keys() & b.params.keys()) - ignored
    same = (a.task, a.length, a.backend, a.dtype) == (b.task, b.length, b.backend, b.dtype)
    return same and all(canonical(a.params[name]) == canonical(b.params[name]) for name in names)
