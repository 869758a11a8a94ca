"""What was asked of run folders, as their plan.json says: which cells have no record, and in which order cells stand.

Folders of earlier versions have no plan. The names in their spec.yaml then give the order, as far as they are names of
methods, data, tasks and groups; which of their cells are unfinished is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

from longeval.errors import LongEvalError
from longeval.report.rows import base_method, is_group, is_resonance, method_of, method_sort_key
from longeval.request import requests_from_yaml
from longeval.store.plan import PlannedCell
from longeval.store.records import Record
from longeval.values import format_length

MAX_NAMED = 6
"""More items than this are counted and not named."""


class Names(NamedTuple):
    """Names in the order in which they were asked for."""

    models: Sequence[str] = ()
    methods: Sequence[str] = ()
    subjects: Sequence[tuple[str, str]] = ()
    """`("data", name)` or `("tasks", name)`."""


def subject_of(cell: Record | PlannedCell) -> tuple[str, str]:
    """What a cell is about: a task (or group), or data."""
    return ("data", cell.data or "") if cell.task is None else ("tasks", cell.task)


def planned_names(cells: Sequence[PlannedCell]) -> Names | None:
    """Names in a stored plan; None where it asks for nothing."""
    if not cells:
        return None
    return Names([cell.model for cell in cells], [cell.pe for cell in cells], [*map(subject_of, cells)])


def written_names(spec: str) -> Names:
    """Names in a spec.yaml; none where it can't be read."""
    try:
        requests = requests_from_yaml(spec, origin="spec.yaml") if spec else []
    except LongEvalError:
        return Names()
    models = [name for request in requests for name in _texts(request.get("model"))]
    methods = [name for request in requests for name in _texts(request.get("pe"))]
    kinds = ("data", "tasks")
    subjects = [(kind, name) for request in requests for kind in kinds for name in _texts(request.get(kind))]
    return Names(models, methods, subjects)


def _texts(value: Any) -> list[str]:
    """A name, names with commas between them, or a list of names."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


class ReadingOrder:
    """Sorts cells as they were asked for: by model, data before tasks, subject, protocol, method, factor and length.

    What nobody asked for by name comes after what was: models and subjects as they were finished, methods in the order
    of their publication. Resonance forms stand below their base.
    """

    def __init__(self, asked: Iterable[Names], records: Sequence[Record]) -> None:
        names = list(asked)
        by_date = sorted(records, key=lambda r: (is_group(r), r.provenance.date, r.model, subject_of(r)[1]))
        models = [name for one in names for name in one.models]
        members = {subject_of(record): record.params["members"] for record in records if is_group(record)}
        subjects: list[tuple[str, str]] = []
        for subject in (subject for one in names for subject in one.subjects):
            subjects += [*(("tasks", name) for name in members.get(subject, ())), subject]
        self._models = _places([*models, *(record.model for record in by_date)])
        self._methods = _places(base_method(name) for one in names for name in one.methods)
        self._subjects = _places([*subjects, *map(subject_of, by_date)])

    def key(self, record: Record) -> tuple[object, ...]:
        """What to sort by."""
        base = base_method(record.pe)
        unnamed, name, _ = method_sort_key(base)
        asked = (self._methods[base], 0, "") if base in self._methods else (len(self._methods), unnamed, name)
        setting = (record.protocol or "", record.backend, record.dtype)
        method = (*asked, method_of(record), record.factor or 0.0, is_resonance(record.pe))
        return (
            self._models[record.model],
            record.task is not None,
            self._subjects[subject_of(record)],
            *setting,
            *method,
            record.length,
            record.provenance.date,
            record.cell,
        )


def _places(names: Iterable[Any]) -> dict[Any, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def unfinished_note(planned: Sequence[PlannedCell], present: Container[str]) -> str:
    """A sentence that counts and names the cells without a record; empty where all have one.

    Averages of groups are not counted: they follow their members.

    Args:
        planned: All cells that were asked for.
        present: Ids of the cells that have a record.
    """
    asked = [cell for cell in planned if cell.params.get("members") is None]
    missing = [cell for cell in asked if cell.cell not in present]
    if not missing:
        return ""
    have = "has" if len(missing) == 1 else "have"
    several = len({cell.protocol for cell in asked if cell.protocol is not None}) > 1
    return (
        f"Not finished: {len(missing):,} of {len(asked):,} cells {have} no record yet: "
        f"{_named(missing, with_protocol=several)}. The same command goes on where it stopped."
    )


def _named(cells: Sequence[PlannedCell], *, with_protocol: bool) -> str:
    """`yarn, resonance_yarn at 8k, 16k (passkey, niah_single); …`, what is missing alike together."""
    lengths: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for cell in cells:
        subject = subject_of(cell)[1]
        subject += f", {cell.protocol}" if with_protocol and cell.protocol is not None else ""
        lengths[cell.model, cell.pe, subject].append(cell.length)
    subjects: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (model, pe, subject), found in lengths.items():
        subjects[model, pe, tuple(dict.fromkeys(found))].append(subject)
    methods: dict[tuple[str, tuple[int, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for (model, pe, at), about in subjects.items():
        methods[model, at, tuple(about)].append(pe)
    several = len({cell.model for cell in cells}) > 1
    items = [
        f"{f'{model} ' if several else ''}{', '.join(pes)} at {', '.join(map(format_length, at))} ({', '.join(about)})"
        for (model, at, about), pes in methods.items()
    ]
    more = f"; and {len(items) - MAX_NAMED} more such" if len(items) > MAX_NAMED else ""
    return "; ".join(items[:MAX_NAMED]) + more
