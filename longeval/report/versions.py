"""Cells that only the program's version tells apart: a report shows the newest, and says how many older ones there are.

A run folder outlives versions of longeval. A task whose prompts, samples or scoring have changed gives cells with other
ids, while all that a user set is as before. Side by side they would look like two methods; the newest is what the
request means today, so it alone goes into tables. The others stay in the CSV and JSON.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from longeval.report.rows import canonical
from longeval.store.records import Record

OUTCOMES = frozenset({"ci", "stderr", "primary", "filter", "higher_is_better"})
"""Parameters that say something of a result or of one metric."""

DEFINITION = frozenset({"prompts", "task_digest", "task_version", "own_prompts", "chance"})
"""Parameters that a task's definition and the program's version decide, not the request."""

_NO_SETTINGS = OUTCOMES | DEFINITION | {"own_native_length", "data_origin"}


def older_cells(records: Iterable[Record]) -> frozenset[str]:
    """Ids of the cells for which there is a newer one that nothing but the program's version tells apart.

    A parameter that one of two versions doesn't record can't tell these two apart. The newest is the one finished last,
    even if it failed: its failure is what the request gives today.
    """
    places: dict[tuple[object, ...], dict[str, Record]] = defaultdict(dict)
    for record in records:
        places[_place(record)].setdefault(record.cell, record)
    older: set[str] = set()
    for found in places.values():
        newest_first = sorted(found.values(), key=lambda record: (record.provenance.date, record.cell), reverse=True)
        for number, record in enumerate(newest_first):
            if any(_same_settings(record, newer) for newer in newest_first[:number]):
                older.add(record.cell)
    return frozenset(older)


def code_of(record: Record) -> str:
    """What computed a cell: `code 5b563c5`, or the release where no commit is known."""
    provenance = record.provenance
    if provenance.commit is None:
        return f"longeval {provenance.versions.get('longeval', 'of an unknown version')}"
    return f"code {provenance.commit[:7]}{' with uncommitted changes' if provenance.dirty else ''}"


def older_note(records: Sequence[Record], older: frozenset[str]) -> str:
    """A sentence for the reader about cells that are left out; empty without any.

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
    what = "an older cell is" if len(left_out) == 1 else f"{len(left_out):,} older cells are"
    subjects = ", ".join(dict.fromkeys(record.task or record.data or "" for record in left_out.values()))
    return (
        f"{what[0].upper()}{what[1:]} left out of tables and figures ({subjects}; {codes}, {when}): "
        f"{'a newer one has' if len(left_out) == 1 else 'newer ones have'} the same settings, and only the program's "
        f"version or the task's definition differs. {'It stays' if len(left_out) == 1 else 'They stay'} in the CSV "
        "and JSON files."
    )


def _same_settings(a: Record, b: Record) -> bool:
    names = (a.params.keys() & b.params.keys()) - _NO_SETTINGS
    return all(canonical(a.params[name]) == canonical(b.params[name]) for name in names)


def _place(record: Record) -> tuple[object, ...]:
    subject = (record.model, record.task, record.data, record.protocol, record.backend, record.dtype)
    return *subject, record.pe, record.factor, record.length, canonical(record.params.get("members"))
