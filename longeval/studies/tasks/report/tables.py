"""Tables of downstream tasks: which cells stand in one table, with rows of methods and columns of lengths.

A section (a `TaskSet`) holds what was asked of one model in one way: the same backend, dtype, chat template, way with
long samples and seed. Its tables are tasks by their main metric, then averages of groups, then further metrics.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from longeval.report.settings import DEFINITION, split
from longeval.report.tables import MODEL_PARAMS, GridRow, is_group, method_rows, native_length, records_of
from longeval.store.records import OUTCOMES, Record

_SET_PARAMS = (*MODEL_PARAMS, "chat_template", "overlong")
"""Parameters that make sections of their own wherever they differ."""

_ASKED_PARAMS = ("chat_template", "overlong")
"""Of these, what a group's average may not carry: it goes where its members are."""

_CELL_PARAMS = frozenset({"method", "pin_length", "own_native_length"}) | OUTCOMES | DEFINITION
"""Parameters that belong to a row, a cell or the task's definition; any other splits a task's tables where cells of one
length differ in it."""

CountField = Literal["n", "documents", "truncated", "skipped"]
"""Fields of a record that count samples or documents."""

FEW_SAMPLES = 30
"""Below this, a report says that a score is rough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskTable:
    """One metric of one task."""

    task: str
    metric: str
    differs: str
    """In what it differs from other tables of the same task and metric; empty if it is the only one."""
    lengths: tuple[int, ...]
    """Columns, ascending, tokens."""
    rows: tuple[GridRow, ...]
    members: tuple[str, ...] | None
    """Tasks of which this is the average; null for a task itself."""

    @property
    def title(self) -> str:
        """Plain-text name of the task, with what tells it apart."""
        return f"{self.task} ({self.differs})" if self.differs else self.task

    @property
    def records(self) -> list[Record]:
        """All records, row by row, lengths ascending."""
        return records_of(self.rows, self.lengths)

    @property
    def chance(self) -> float | None:
        """Score of guessing, where the records tell; of the main metric only."""
        values = {value for record in self.records if (value := record.params.get("chance")) is not None}
        return float(values.pop()) if len(values) == 1 else None

    def counts(self, field: CountField, length: int) -> list[int]:
        """A count of each method at one length, as far as records have it."""
        records = [record for record in records_of(self.rows, [length]) if record.status == "ok"]
        return [count for record in records if (count := getattr(record, field)) is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSet:
    """All tasks of one model, asked in one way."""

    model: str
    differs: str
    """In what it differs from other sets of the same model; empty if it is the only one."""
    tasks: tuple[TaskTable, ...]
    """Main metric of each task."""
    groups: tuple[TaskTable, ...]
    """Averages."""
    further: tuple[TaskTable, ...]
    """Other metrics of the tasks."""

    @property
    def title(self) -> str:
        """Plain-text name."""
        tail = f" ({self.differs})" if self.differs else ""
        return f"{self.model}, downstream tasks{tail}"

    @property
    def records(self) -> list[Record]:
        """Records of tasks and groups."""
        return [record for table in (*self.tasks, *self.groups) for record in table.records]

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths of all its tables, ascending."""
        return tuple(sorted({length for table in (*self.tasks, *self.groups) for length in table.lengths}))

    @property
    def native_length(self) -> int | None:
        """L in tokens, where the records tell."""
        return native_length(self.records)


def build_task_sets(records: Iterable[Record]) -> list[TaskSet]:
    """Sorts the records of downstream tasks into sections and tables; left out: perplexities.

    Sections, tables and rows are in the order of their first records.
    """
    tasks: dict[str, list[Record]] = defaultdict(list)
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.task is not None:
            (groups if is_group(record) else tasks)[record.model].append(record)
    sets = []
    for model in dict.fromkeys([*tasks, *groups]):
        parts = split(tasks[model], _SET_PARAMS, None)
        averages = _placed(groups[model], [part.records for part in parts])
        sets += [
            _task_set(model, part.differs, part.records, mine) for part, mine in zip(parts, averages, strict=False)
        ]
        if not parts:
            sets.append(_task_set(model, "", [], groups[model]))
    return sets


def _placed(groups: Sequence[Record], parts: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """The averages of each part: an average goes where the settings that it carries agree and most members are."""
    placed: list[list[Record]] = [[] for _ in parts]
    for record in groups:
        if not placed:
            break
        agreeing = [sum(_is_member(record, other) for other in part) for part in parts]
        placed[agreeing.index(max(agreeing))].append(record)
    return placed


def _is_member(group: Record, record: Record) -> bool:
    keys = [key for key in _SET_PARAMS if key not in _ASKED_PARAMS or key in group.params]
    same = (group.backend, group.dtype, group.pe, group.factor, group.length)
    return (
        record.task in group.params["members"]
        and same == (record.backend, record.dtype, record.pe, record.factor, record.length)
        and all(group.params.get(key) == record.params.get(key) for key in keys)
    )


def _task_set(model: str, differs: str, records: Sequence[Record], groups: Sequence[Record]) -> TaskSet:
    main = _main_records(records)
    chosen = {id(record) for record in main}
    further = [record for record in records if id(record) not in chosen and record.status == "ok"]
    return TaskSet(
        model=model,
        differs=differs,
        tasks=_tables(main),
        groups=_tables(groups),
        further=_tables(further),
    )


def _main_records(records: Sequence[Record]) -> list[Record]:
    """The main record of each cell; of a failed one, which may not know its metric, its only one."""
    cells: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        cells[record.cell].append(record)
    return [next((r for r in found if r.params.get("primary")), found[0]) for found in cells.values()]


def _tables(records: Sequence[Record]) -> tuple[TaskTable, ...]:
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.task or ""].append(record)
    tables: list[TaskTable] = []
    for task, found in by_task.items():
        done = Counter(record.metric for record in found if record.status == "ok")
        metrics = sorted(done or Counter(record.metric for record in found), key=lambda metric: -done[metric])
        for metric in metrics:
            # A failed cell stands with the metric that the others have: it may be named for want of a better one.
            mine = [r for r in found if (r.metric if r.status == "ok" else metrics[0]) == metric]
            parts = split(mine, (), _CELL_PARAMS, columns=True)
            tables += [_table(task, metric, part.differs, part.records) for part in parts]
    return tuple(tables)


def _table(task: str, metric: str, differs: str, records: Sequence[Record]) -> TaskTable:
    members = records[0].params.get("members")
    return TaskTable(
        task=task,
        metric=metric,
        differs=differs,
        lengths=tuple(sorted({record.length for record in records})),
        rows=method_rows(records),
        members=None if members is None else tuple(members),
    )
