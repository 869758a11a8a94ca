"""Settings that decide which records may stand in one table, and how tables that differ in them are told apart.

What a reader compares must differ in the method alone. Cells of one column that were asked with other settings got
other samples, so they go into a table of their own, named by the setting (`limit 10`).

A run folder outlives versions of longeval. A task whose prompts, samples or scoring have changed gives cells with other
ids, while all that a user set is as before. The newest is what the request means today, so it alone goes into tables;
older cells stay in the CSV and JSON, and a note counts them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from longeval.report.numbers import counted
from longeval.store.records import OUTCOMES, Record

DEFINITION = frozenset({"prompts", "task_digest", "task_version", "own_prompts", "chance"})
"""Parameters that a task's definition and the program's version decide, not the request."""

LED_TO_SAMPLES = frozenset({"limit", "same_samples", "overlong"})
"""Settings that decide nothing beside the samples that they led to."""

OF_SERVER = frozenset({"base_url", "served_model"})
"""Which server answered. Each computes with one method, so methods that are compared come from several."""

OF_METHOD = frozenset({"method", "pin_length", "own_native_length", "source"})
"""Parameters that belong to a method, or say where something was found."""

_DIGESTS = frozenset({"weights", "tokenizer", "data_digest", "task_digest"})
"""Parameters whose values tell a reader nothing. They are named only where nothing else tells two tables apart."""

_FOLLOWS = _DIGESTS | {"end_tokens", "clean_up_spaces", "quantization"}
"""Parameters that follow from model, data and task. Earlier versions recorded fewer of them."""

_DEFAULTS = {"haystack": "noise"}
"""Defaults of settings that are something else than nothing, off or zero, and that earlier versions did not record."""


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal texts for equal values."""
    plain = value is None or isinstance(value, str | int | float)
    return _canonical_plain(value) if plain else json.dumps(value, sort_keys=True)


@lru_cache(maxsize=1 << 14, typed=True)
def _canonical_plain(value: Any) -> str:
    """The same for a value that isn't nested. Reports ask for few of them, each very often."""
    return json.dumps(value)


def method_of(record: Record) -> str:
    """Parameters of a record's method as canonical JSON, with the length that its one table is pinned to, if it is."""
    pinned = record.params.get("pin_length")
    return canonical((record.params.get("method") or {}) | ({} if pinned is None else {"pin_length": pinned}))


def agree(a: Record, b: Record, ignored: Collection[str]) -> bool:
    """Whether two records have the same parameters.

    New settings are recorded only where they aren't the default, so one that a record lacks has its default. Nothing
    can be told of a parameter that follows from model, data and task where an earlier version didn't record it.

    Args:
        a: One record.
        b: The other.
        ignored: Names of parameters that may differ.
    """
    names = (a.params.keys() | b.params.keys()) - set(ignored)
    return all(_agree_in(name, a, b) for name in names)


def _agree_in(name: str, a: Record, b: Record) -> bool:
    if name in a.params and name in b.params:
        return canonical(a.params[name]) == canonical(b.params[name])
    recorded = a.params.get(name, b.params.get(name))
    return name in _FOLLOWS or not recorded or recorded == _DEFAULTS.get(name)


def comparable(a: Record, b: Record) -> bool:
    """Whether two cells of a task differ in the method alone: the same settings and definition of the task.

    Prompts may differ (`paired_score` takes the samples that have the same one). Equal ones show that settings that
    only led to them made no difference.
    """
    if (a.task, a.length, a.backend, a.dtype) != (b.task, b.length, b.backend, b.dtype):
        return False
    same_prompts = a.params.get("prompts") is not None and a.params["prompts"] == b.params.get("prompts")
    ignored = OF_METHOD | OF_SERVER | OUTCOMES | {"prompts"} | (LED_TO_SAMPLES if same_prompts else frozenset())
    return agree(a, b, ignored)


def older_cells(records: Iterable[Record]) -> frozenset[str]:
    """Ids of the cells for which there is a newer one that nothing but the program's version tells apart.

    The newest is the one finished last, even if it failed: its failure is what the request gives today.
    """
    ignored = OUTCOMES | DEFINITION | {"own_native_length", "data_origin"}
    places: dict[tuple[object, ...], dict[str, Record]] = defaultdict(dict)
    for record in records:
        places[_place(record)].setdefault(record.cell, record)
    older: set[str] = set()
    for found in places.values():
        newest_first = sorted(found.values(), key=lambda record: (record.provenance.date, record.cell), reverse=True)
        for number, record in enumerate(newest_first):
            if any(agree(record, newer, ignored) for newer in newest_first[:number]):
                older.add(record.cell)
    return frozenset(older)


def _place(record: Record) -> tuple[object, ...]:
    subject = (record.model, record.task, record.data, record.protocol, record.backend, record.dtype)
    return *subject, record.pe, record.factor, record.length, canonical(record.params.get("members"))


def older_note(records: Sequence[Record], older: frozenset[str]) -> str:
    """A sentence on cells that are left out since newer ones differ in the version alone; empty without any.

    Args:
        records: All records.
        older: Ids of the older cells.
    """
    left_out = {record.cell: record for record in records if record.cell in older}
    if not left_out:
        return ""
    codes = ", ".join(sorted({code_of(record) for record in left_out.values()}))
    dates = sorted(record.provenance.date[:10] for record in left_out.values())
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    subjects = ", ".join(dict.fromkeys(record.task or record.data or "" for record in left_out.values()))
    one = len(left_out) == 1
    return (
        f"{'An older cell is' if one else f'{len(left_out):,} older cells are'} left out of tables and figures "
        f"({subjects}; {codes}, {when}): {'a newer one has' if one else 'newer ones have'} the same settings, and only "
        f"the program's version or the task's definition differs. {'It stays' if one else 'They stay'} in the CSV and "
        "JSON files."
    )


def code_of(record: Record) -> str:
    """What computed a cell: `code 5b563c5`, or the release where no commit is known."""
    provenance = record.provenance
    if provenance.commit is None:
        return f"longeval {provenance.versions.get('longeval', 'of an unknown version')}"
    return f"code {provenance.commit[:7]}{' with uncommitted changes' if provenance.dirty else ''}"


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
        per_cell: Parameters that never split, since they belong to a row or a cell. All others split where cells of one
            method, factor and length differ in them. None: no others split.
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
    counts = [{"data_digest": _documents(part)} for part in parts.values()]
    labels = [
        ", ".join(count.get(key) or _shown(key, part[0]) for key in differing)
        for count, part in zip(counts, parts.values(), strict=True)
    ]
    if len(set(labels)) < len(parts):  # other documents, and as many
        labels = [", ".join(_shown(key, part[0]) for key in differing) for part in parts.values()]
    return [Part(label, part) for label, part in zip(labels, parts.values(), strict=True)]


def _documents(records: Sequence[Record]) -> str:
    """`4 documents`: the most that a cell scored; empty where no record counts them."""
    most = max((record.documents or 0 for record in records), default=0)
    return counted(most, "document") if most else ""


def _colliding(records: Sequence[Record], keys: Sequence[str], per_cell: frozenset[str], *, columns: bool) -> list[str]:
    """Names of other parameters in which cells of one place differ."""
    names = {name for record in records for name in record.params} - {*keys, *per_cell}
    colliding = []
    places = [(record.length, *_values(record, keys)) for record in records]
    for key in sorted(names):
        if key in _FOLLOWS and not all(key in record.params for record in records):
            continue
        values: dict[tuple[Any, ...], set[tuple[str, str]]] = defaultdict(set)
        for record, place in zip(records, places, strict=True):
            row = () if columns and key not in OF_SERVER else (record.pe, record.factor, method_of(record))
            # What led to samples makes no difference where the samples are the same after all.
            prompts = canonical(record.params.get("prompts")) if key in LED_TO_SAMPLES else ""
            # A record that lacks a setting has its default.
            value = canonical(record.params.get(key) or _DEFAULTS.get(key))
            values[*row, *place].add((value, prompts))
        if any(_several(found) for found in values.values()):
            colliding.append(key)
    return colliding


def _several(found: set[tuple[str, str]]) -> bool:
    """Whether values differ, and the prompts that they led to."""
    values, prompts = ({pair[place] for pair in found} for place in (0, 1))
    return len(values) > 1 and (prompts <= {"", "null"} or len(prompts) > 1)


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


def _shown(key: str, record: Record) -> str:
    """`stride 128`, `float32`, `weights 0a1b2c3d`, `no limit`, `documents of at least 1,024 tokens`."""
    value = _setting(record, key)
    if key == "min_tokens" and value is not None:
        return f"documents of at least {value:,} tokens"
    if key == "dtype":
        return precision_text(str(value))
    if key == "backend":
        return str(value)
    if key == "adapter" and value is not None:
        return f"adapter {adapter_text(record)}"
    if value is None:
        return f"no {key}"
    text = value if isinstance(value, str) else canonical(value)
    return f"{key} {text[:8] if key in _DIGESTS else text}"


def adapter_text(record: Record) -> str:
    """The adapter of a record: its name, and the start of its digest, since another may bear the same name."""
    digest = str(record.params["adapter"]).removeprefix("sha256:")
    return f"{record.params.get('adapter_name') or 'without a name'} ({digest[:8]})"


def precision_text(dtype: str) -> str:
    """`float32`; `precision unknown` where a server doesn't tell."""
    return "precision unknown" if dtype == "unknown" else dtype
