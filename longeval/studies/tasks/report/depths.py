"""Scores by where in the context the needle lies: from the samples of tasks that have a depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longeval.report.document import Data
from longeval.report.rows import GridRow, row_name
from longeval.store.samples import Sample
from longeval.studies.tasks.report.tables import TaskSet, TaskTable

MAX_LEVELS = 11
"""As many distinct depths are shown each by itself; more are put into ten bins of equal width."""

_BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthCell:
    """Samples of one method at one length and depth."""

    value: float
    """Mean score."""
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthTable:
    """A task's scores by method, length and depth."""

    table: TaskTable
    rows: tuple[GridRow, ...]
    """Methods with samples that have a depth."""
    lengths: tuple[int, ...]
    """Lengths of these, ascending."""
    levels: tuple[float, ...]
    """Lower ends of the depth bins, or the depths themselves, ascending, 0 (start) to 1 (end)."""
    binned: bool
    """Whether `levels` are bins."""
    cells: dict[tuple[str, int, float], DepthCell]
    """(row name, length, level) → score; of a row's name see `name`."""

    def name(self, row: GridRow) -> str:
        """A row's label, with its factor where the task has several rows of that label."""
        return row_name(row, self.table.rows)

    def label(self, level: float) -> str:
        """`25%`, or `20–30%` for a bin."""
        shown = f"{100 * level:.0f}"
        return f"{shown}–{100 * (level + 1 / _BINS):.0f}%" if self.binned else f"{shown}%"


def depth_table(table: TaskTable, samples: Callable[[str], Sequence[Sample] | None]) -> DepthTable | None:
    """Scores of a task by depth; None where no sample has a depth.

    Args:
        table: The task, by a metric that samples have.
        samples: Cell id → samples, or None.
    """
    found: dict[tuple[str, int], list[Sample]] = {}
    for row in table.rows:
        for length, record in row.cells.items():
            stored = samples(record.cell) if record.status == "ok" else None
            having = [s for s in stored or () if s.depth is not None and table.metric in s.scores]
            if having:
                found[row_name(row, table.rows), length] = having
    if not found:
        return None
    levels, binned = _levels(s.depth for having in found.values() for s in having if s.depth is not None)
    cells: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for (name, length), having in found.items():
        for sample in having:
            if sample.depth is not None:
                cells[name, length, _level(sample.depth, binned)].append(sample.scores[table.metric])
    return DepthTable(
        table=table,
        rows=tuple(row for row in table.rows if any(name == row_name(row, table.rows) for name, _ in found)),
        lengths=tuple(sorted({length for _, length in found})),
        levels=levels,
        binned=binned,
        cells={key: DepthCell(value=math.fsum(values) / len(values), n=len(values)) for key, values in cells.items()},
    )


def _levels(depths: Iterable[float]) -> tuple[tuple[float, ...], bool]:
    """Levels of depths, and whether they are bins: then all ten, since an empty one says something too."""
    exact = {_level(depth, binned=False) for depth in depths}
    if len(exact) <= MAX_LEVELS:
        return tuple(sorted(exact)), False
    return tuple(k / _BINS for k in range(_BINS)), True


def _level(depth: float, binned: bool) -> float:
    """The level of a depth: itself in whole percent, or the lower end of its bin; 1 is in the last bin."""
    return min(int(depth * _BINS), _BINS - 1) / _BINS if binned else round(depth, 2)


def depth_data(tasks: TaskSet, every: Iterable[DepthTable]) -> Data:
    """One row per method, length and depth: mean score and number of samples; of a bin, its lower end."""
    columns = ("model", "differs", "task", "metric", "pe", "factor", "length", "depth", "binned", "value", "n")
    rows = []
    for depths in every:
        place: dict[str, Any] = {"model": tasks.model, "differs": tasks.differs, "task": depths.table.title}
        place["metric"] = depths.table.metric
        for row in depths.rows:
            for (name, length, level), cell in sorted(depths.cells.items(), key=lambda item: item[0]):
                if name == depths.name(row):
                    method = {"pe": row.label, "factor": row.cells[length].factor, "length": length}
                    score = {"depth": level, "binned": depths.binned, "value": cell.value, "n": cell.n}
                    rows.append(place | method | score)
    return Data(name="depths", columns=columns, rows=tuple(rows))
