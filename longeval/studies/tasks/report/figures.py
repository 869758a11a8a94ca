"""Figures of downstream tasks: score by context length with error bars, and heat maps of depth by length.

Methods look as in the perplexity figures (see plots.py). Heat maps use cividis (Nuñez, Anderton & Renslow 2018), which
reads alike with and without colour vision deficiency and in print, and say every score as a number with its n.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from longeval.report import plots
from longeval.report.document import Data, Picture
from longeval.report.numbers import format_score
from longeval.report.plots import (
    WIDTH_INCHES,
    length_axis,
    line_style,
    native_line,
    new_figure,
    plain_axes,
    title_and_legend,
    wrapped,
)
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

_MAPS = "cividis"


def score_figure(tasks: TaskSet) -> Picture | None:
    """Score by context length, a panel per task and average; None with scores at fewer than two lengths."""
    tables = [t for t in (*tasks.tasks, *tasks.groups) if len({r.length for r in t.records if r.value is not None}) > 1]
    if not tables:
        return None
    columns = 3 if len(tables) > _MANY_PANELS else min(2, len(tables))
    lines = math.ceil(len(tables) / columns)
    width = _WIDER_INCHES if columns == 3 else WIDTH_INCHES
    figure = new_figure(width, (3.2 if columns == 1 else 2.4) * lines + 1.0)
    every = [row for table in tables for row in table.rows]
    shown: dict[str, dict[str, Any]] = {}
    for place, table in enumerate(tables):
        axes = figure.add_subplot(lines, columns, place + 1)
        shown |= _score_panel(axes, table, every, tasks.native_length)
        average = "average " if table.members is not None else ""
        title = wrapped(f"{table.title}: {average}{table.metric}", width / columns - 0.5, 9)
        axes.set_title(title, fontsize=9, loc="left", pad=14)
    title_and_legend(figure, tasks.title, shown.values())
    return plots.render(figure)


def _score_panel(
    axes: Axes, table: TaskTable, every: Sequence[GridRow], native_length: int | None
) -> dict[str, dict[str, Any]]:
    """Draws one task; returns the style of each line by its label."""
    plain_axes(axes)
    styles = {}
    values: list[float] = []
    for number, row in enumerate(table.rows):
        style = line_style(row, every, with_marker=True)
        lengths = [length for length in table.lengths if length in row.cells]
        records = [row.cells[length] for length in lengths]
        y = [math.nan if r.value is None else r.value for r in records]
        if all(math.isnan(value) for value in y):
            continue
        styles[style["label"]] = style
        x = _beside(lengths, table.lengths, number - (len(table.rows) - 1) / 2)
        axes.plot(x, y, **style)
        axes.vlines(
            x,
            [math.nan if r.ci_low is None else r.ci_low for r in records],
            [math.nan if r.ci_high is None else r.ci_high for r in records],
            color=style["color"],
            linewidth=2.2 if style["alpha"] < 1 else 1.0,
            alpha=style["alpha"],
            zorder=1,
        )
        values += [v for r in records for v in (r.value, r.ci_low, r.ci_high) if v is not None]
    if table.chance is not None and table.chance > 0:
        axes.axhline(table.chance, color="#666666", linewidth=1, linestyle=":", zorder=1)
        transform = axes.get_yaxis_transform()
        axes.text(1.01, table.chance, "guess", transform=transform, fontsize=7, va="center", color="#444444")
    if min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(-0.03, 1.03)
    length_axis(axes, table.lengths)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("Context length (tokens)", fontsize=8)
    native_line(axes, native_length)
    return styles


def _beside(lengths: Sequence[int], every: Sequence[int], place: float) -> list[float]:
    """Lengths moved a little aside, since error bars of methods that score alike would hide one another."""
    if max(every) > 4 * min(every):  # a logarithmic axis
        return [length * (max(every) / min(every)) ** (0.012 * place) for length in lengths]
    return [length + 0.012 * place * (max(every) - min(every)) for length in lengths]


def depth_figure(depths: DepthTable, title: str) -> Picture:
    """Heat maps of depth by length, a panel per method; colour and number are the mean score, small the samples.

    Args:
        depths: The scores.
        title: Names the model; the task and what is shown are added.
    """
    rows = depths.rows
    width = max(0.55 * len(depths.lengths), 1.3) + 0.25
    height = max(0.36 * len(depths.levels), 0.9) + 0.6
    columns, lines = _map_grid(len(rows), width, height)
    figure = new_figure(max(width * columns + 1.4, 4.4), height * lines + 0.7)
    values = [cell.value for cell in depths.cells.values()]
    norm = Normalize(min(0.0, *values), max(1.0, *values))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place >= len(rows):
            axes.set_visible(False)
            continue
        _depth_panel(axes, depths, rows[place], norm)
        axes.set_title(wrapped(depths.name(rows[place]), width, 9), fontsize=9, loc="left")
        axes.tick_params(labelbottom=True)
    for axes in (panels[line][0] for line in range(lines)):
        axes.set_ylabel("Depth in the context", fontsize=8)
    for column in range(columns):
        panels[(len(rows) - 1 - column) // columns][column].set_xlabel("Context length (tokens)", fontsize=8)
    bar = figure.colorbar(ScalarMappable(norm, _MAPS), ax=list(panels.flat), shrink=0.9, aspect=24, pad=0.02)
    bar.set_label(f"Mean {depths.table.metric}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    title_and_legend(figure, f"{title}: {depths.table.title} by depth and length")
    return plots.render(figure)


def _map_grid(num_panels: int, width: float, height: float) -> tuple[int, int]:
    """Columns and lines of panels, such that text is largest where the figure has to fit on a page; sizes in inches."""

    def size(columns: int) -> tuple[float, int]:
        scale = min(4.8 / (width * columns + 1.4), 6.1 / (height * math.ceil(num_panels / columns) + 0.7))
        return min(scale, 0.75), columns

    columns = max(range(1, num_panels + 1), key=size)
    return columns, math.ceil(num_panels / columns)


def _depth_panel(axes: Axes, depths: DepthTable, row: GridRow, norm: Normalize) -> None:
    values = np.full((len(depths.levels), len(depths.lengths)), np.nan)
    for i, level in enumerate(depths.levels):
        for j, length in enumerate(depths.lengths):
            cell = depths.cells.get((depths.name(row), length, level))
            if cell is None:
                continue
            values[i, j] = cell.value
            red, green, blue, _ = mpl.colormaps[_MAPS](norm(cell.value))
            # Relative luminance decides whether black or white reads better (ITU-R BT.709 weights).
            color = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
            axes.text(j, i - 0.1, format_score(cell.value), ha="center", va="center", fontsize=8, color=color)
            axes.text(j, i + 0.3, f"n {cell.n}", ha="center", va="center", fontsize=6, color=color)
    axes.set_facecolor("#eeeeee")
    axes.imshow(values, cmap=_MAPS, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(depths.lengths)), [format_length(length) for length in depths.lengths], fontsize=8)
    axes.set_yticks(range(len(depths.levels)), [depths.label(level) for level in depths.levels], fontsize=8)
    axes.set_xticks(np.arange(len(depths.lengths) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(depths.levels) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
