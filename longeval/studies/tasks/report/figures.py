"""Figures of downstream tasks: score by context length with error bars, and heat maps of depth by length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longeval.report.charts import WIDTH_INCHES, Axis, Chart, HeatMap, Line, Mark, Panel
from longeval.report.document import Data
from longeval.report.lines import (
    beside,
    length_axis,
    line_label,
    line_style,
    native_mark,
    padded,
    record_line,
)
from longeval.report.numbers import format_score
from longeval.report.tables import GridRow, row_name
from longeval.store.samples import Sample
from longeval.studies.tasks.report.tables import TaskSet, TaskTable
from longeval.values import format_length

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
    found: list[tuple[str, int, float, float]] = []
    for row in table.rows:
        for length, record in row.cells.items():
            stored = samples(record.cell) if record.status == "ok" else None
            name = row_name(row, table.rows)
            found += [
                (name, length, sample.depth, sample.scores[table.metric])
                for sample in stored or ()
                if sample.depth is not None and table.metric in sample.scores
            ]
    if not found:
        return None
    levels = tuple(sorted({round(depth, 2) for _, _, depth, _ in found}))
    binned = len(levels) > MAX_LEVELS
    if binned:
        levels = tuple(k / _BINS for k in range(_BINS))  # all of them: an empty one says something too
    values: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for name, length, depth, value in found:
        level = min(int(depth * _BINS), _BINS - 1) / _BINS if binned else round(depth, 2)
        values[name, length, level].append(value)
    names = {name for name, _, _, _ in found}
    return DepthTable(
        table=table,
        rows=tuple(row for row in table.rows if row_name(row, table.rows) in names),
        lengths=tuple(sorted({length for _, length, _, _ in found})),
        levels=levels,
        binned=binned,
        cells={key: DepthCell(value=math.fsum(having) / len(having), n=len(having)) for key, having in values.items()},
    )


def depth_data(tasks: TaskSet, every: Iterable[DepthTable]) -> Data:
    """One row per method, length and depth: mean score and number of samples; of a bin, its lower end."""
    rows = [
        {
            "model": tasks.model,
            "differs": tasks.differs,
            "task": depths.table.title,
            "metric": depths.table.metric,
            "pe": row.label,
            "factor": row.cells[length].factor,
            "length": length,
            "depth": level,
            "binned": depths.binned,
            "value": cell.value,
            "n": cell.n,
        }
        for depths in every
        for row in depths.rows
        for (name, length, level), cell in sorted(depths.cells.items(), key=lambda item: item[0])
        if name == depths.name(row)
    ]
    return Data(name="depths", rows=tuple(rows))


_MANY_PANELS = 6
"""Figures of more panels than these are wider than others, so that they are less high."""

_WIDER_INCHES = 7.6


def score_figure(tasks: TaskSet) -> Chart | None:
    """Score by context length, a panel per task and average; None with scores at fewer than two lengths."""
    tables = [t for t in (*tasks.tasks, *tasks.groups) if len({r.length for r in t.records if r.value is not None}) > 1]
    if not tables:
        return None
    columns = 3 if len(tables) > _MANY_PANELS else min(2, len(tables))
    every = [row for table in tables for row in table.rows]
    return Chart(
        title=tasks.title,
        panels=tuple(_score_panel(table, every, tasks.native_length) for table in tables),
        columns=columns,
        panel_width=(_WIDER_INCHES if columns == 3 else WIDTH_INCHES) / columns,
        panel_height=3.2 if columns == 1 else 2.4,
    )


def _score_panel(table: TaskTable, every: Sequence[GridRow], native_length: int | None) -> Panel:
    """One task; lines have the looks that they have among `every` row of the figure."""
    lines = [
        _score_line(table, row, number - (len(table.rows) - 1) / 2, every)
        for number, row in enumerate(table.rows)
        if any(record.value is not None for record in row.cells.values())
    ]
    shown = [value for line in lines for value in (*line.y, *line.low, *line.high) if value is not None]
    is_share = min(shown) >= 0 and max(shown) <= 1
    guess = [table.chance] if table.chance else []
    x = length_axis(table.lengths, [at for line in lines for at in line.x])
    average = "average " if table.members is not None else ""
    return Panel(
        title=f"{table.title}: {average}{table.metric}",
        x=x,
        y=Axis(title="", span=(-0.03, 1.03) if is_share else padded([*shown, *guess])),
        lines=tuple(lines),
        marks=(*(Mark(axis="y", at=at, label="guess") for at in guess), *native_mark(x, native_length)),
    )


def _score_line(table: TaskTable, row: GridRow, place: float, every: Sequence[GridRow]) -> Line:
    """A row's scores with their intervals, drawn aside by its place."""
    lengths = [length for length in table.lengths if length in row.cells]
    aside = beside(lengths, table.lengths, place)
    records = [row.cells[length] for length in lengths]
    return record_line(line_label(row, every), line_style(row, every, with_marker=True), records, aside)


def depth_figure(depths: DepthTable, title: str) -> Chart:
    """Heat maps of depth by length, a panel per method; colour and number are the mean score, small the samples.

    Args:
        depths: The scores.
        title: Names the model; the task and what is shown are added.
    """
    width = max(0.55 * len(depths.lengths), 1.3) + 0.25
    height = max(0.36 * len(depths.levels), 0.9) + 0.6
    return Chart(
        title=f"{title}: {depths.table.title} by depth and length",
        panels=tuple(_depth_panel(depths, row) for row in depths.rows),
        columns=_map_columns(len(depths.rows), width, height),
        panel_width=width,
        panel_height=height,
        share_x=True,
        share_y="all",
    )


def _map_columns(num_panels: int, width: float, height: float) -> int:
    """Panels in a row, such that text is largest where the figure has to fit on a page; sizes in inches."""

    def size(columns: int) -> tuple[float, int]:
        scale = min(4.8 / (width * columns + 1.4), 6.1 / (height * math.ceil(num_panels / columns) + 0.7))
        return min(scale, 0.75), columns

    return max(range(1, num_panels + 1), key=size)


def _depth_panel(depths: DepthTable, row: GridRow) -> Panel:
    """The scores of one method; the scale of colours is that of all methods."""
    values = [cell.value for cell in depths.cells.values()]
    cells = [[depths.cells.get((depths.name(row), n, level)) for n in depths.lengths] for level in depths.levels]
    heat_map = HeatMap(
        columns=tuple(map(format_length, depths.lengths)),
        rows=tuple(map(depths.label, depths.levels)),
        values=tuple(tuple(cell.value if cell else None for cell in line) for line in cells),
        texts=tuple(tuple(format_score(cell.value) if cell else "" for cell in line) for line in cells),
        notes=tuple(tuple(f"n {cell.n}" if cell else "" for cell in line) for line in cells),
        low=min(0.0, *values),
        high=max(1.0, *values),
        quantity=f"Mean {depths.table.metric}",
    )
    x, y = Axis(title="Context length (tokens)"), Axis(title="Depth in the context")
    return Panel(title=depths.name(row), x=x, y=y, heat_map=heat_map)
