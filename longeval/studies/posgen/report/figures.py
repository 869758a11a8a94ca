"""PosGen's figures: accuracy by position, and validation losses by epoch. Each task has a panel, each method a line.

Lines are means over seeds, and bands reach from the lowest to the highest seed. Methods have the same colours as in all
other figures (see `report.plots`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from longeval.report import plots
from longeval.report.document import Picture
from longeval.report.plots import WIDTH_INCHES, line_style, marked_length, new_figure, plain_axes, title_and_legend
from longeval.stats.bootstrap import FloatArray
from longeval.store.curves import Curves
from longeval.studies.posgen.report.tables import PosGenRow, PosGenTable

_ROW_TITLES = {
    "accuracy": "teacher-forced",
    "generated": "free-running",
    "valid_loss_in_distribution": "in distribution",
    "valid_loss_ood": "OOD",
}

_GUESS: dict[str, Any] = {"color": "#888888", "linewidth": 1, "linestyle": (0, (1, 2))}
"""Style of the line for guessing: accuracy 1/m, loss ln m."""

SMOOTHED = 4
"""Number of neighbouring positions that are averaged to one point, because single positions are noisy."""

BY_POSITION = ("accuracy", "generated", "loss")
"""Fields of `Curves` by position."""

BY_EPOCH = ("valid_loss_in_distribution", "valid_loss_ood")
"""Fields of `Curves` by epoch."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Band:
    """A curve over seeds with K points."""

    x_K: FloatArray
    """Positions or epochs that all seeds have, ascending."""
    mean_K: FloatArray
    low_K: FloatArray
    """Lowest value over seeds."""
    high_K: FloatArray
    """Highest value over seeds."""
    seeds: int
    """Number of seeds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowCurves:
    """The curves of one method on one task, one for each seed."""

    row: PosGenRow
    task: str
    curves: tuple[Curves, ...]

    def band(self, name: str, *, width: int = 1, edge: int = 0) -> Band | None:
        """The mean of a curve over seeds with its range.

        Args:
            name: A field of `Curves`.
            width: Number of neighbouring points that are averaged to one.
            edge: A position that no averaged group of points may cross.

        Returns:
            The band, NaN at points where a seed has no number; None without any numbers.
        """
        along = "epochs" if name in BY_EPOCH else "positions"
        points = [dict(zip(getattr(one, along), getattr(one, name), strict=True)) for one in self.curves]
        if along == "epochs" and any(len(found) > 1 for found in points):
            # Weights that were trained without this table have only a final loss, which is not a curve.
            points = [found for found in points if len(found) > 1]
        x = sorted(set.intersection(*(set(found) for found in points)))
        values_SK = np.array([[found[at] for at in x] for found in points], dtype=np.float64)
        if not values_SK.size or np.isnan(values_SK).all():
            return None
        starts = np.unique([0, *range((edge - x[0]) % width, len(x), width)])
        sizes = np.diff(np.append(starts, len(x)))
        x_K, values_SK = (
            np.add.reduceat(values, starts, axis=-1) / sizes for values in (np.array(x, dtype=np.float64), values_SK)
        )
        return Band(
            x_K=x_K,
            mean_K=values_SK.mean(axis=0),
            low_K=values_SK.min(axis=0),
            high_K=values_SK.max(axis=0),
            seeds=len(points),
        )


def row_curves(table: PosGenTable, curves: Callable[[str], Curves | None]) -> list[RowCurves]:
    """The curves of every method and task that has any, task by task.

    Args:
        table: The table.
        curves: Returns the curves of a cell id.
    """
    found = []
    for task in table.tasks:
        for row in table.rows:
            first = [next(iter(records.values())) for records in row.runs[task].cells.values()]
            ids = [record.cell for record in first if record.status == "ok"]
            read = tuple(one for one in map(curves, ids) if one is not None)
            if read:
                found.append(RowCurves(row=row, task=task, curves=read))
    return found


def position_figure(table: PosGenTable, curves: Sequence[RowCurves]) -> Picture | None:
    """The figure of accuracy in % by position: teacher-forced above, free-running below; None without curves."""
    names = [name for name in ("accuracy", "generated") if any(one.band(name) for one in curves)]
    if not names:
        return None
    figure, panels, tasks = _panels(names, curves, shared_y="all")
    train_length, test_length = table.params["train_length"], table.params["test_length"]
    for line, name in zip(panels, names, strict=True):
        for axes, task in zip(line, tasks, strict=True):
            for one in _of_task(curves, task):
                if (band := one.band(name, width=SMOOTHED, edge=train_length)) is not None:
                    _draw(axes, band, line_style(one.row.row, _rows(curves), with_marker=False), scale=100)
            axes.set_ylim(-3, 103)
            axes.axhline(100 / table.params["modulus"], **_GUESS, zorder=1)
            axes.set_xlim(0, test_length)
            axes.xaxis.set_major_locator(FixedLocator(range(0, test_length + 1, max(train_length, test_length // 4))))
            marked_length(axes, train_length, f"trained to {train_length}" if name == names[0] else "", fontsize=7)
        line[0].set_ylabel(f"Accuracy (%),\n{_ROW_TITLES[name]}", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("Position of the predicted token", fontsize=8)
    return _finish(figure, table, curves, f"Accuracy by position, {table.title}")


def loss_figure(table: PosGenTable, curves: Sequence[RowCurves]) -> Picture | None:
    """The figure of validation loss in nats by epoch: seen positions above, unseen below; None without curves."""
    names = [name for name in BY_EPOCH if any((b := one.band(name)) is not None and len(b.x_K) > 1 for one in curves)]
    if not names:
        return None
    figure, panels, tasks = _panels(names, curves, shared_y="row")
    for line, name in zip(panels, names, strict=True):
        shown: list[float] = []
        for axes, task in zip(line, tasks, strict=True):
            for one in _of_task(curves, task):
                if (band := one.band(name)) is not None:
                    _draw(axes, band, line_style(one.row.row, _rows(curves), with_marker=False))
                    shown += [value for value in band.mean_K.tolist() if math.isfinite(value) and value > 0]
            axes.axhline(math.log(table.params["modulus"]), **_GUESS, zorder=1)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        _loss_axes(line, shown)
        line[0].set_ylabel(f"Loss (nats),\n{_ROW_TITLES[name]}", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("Epoch", fontsize=8)
    return _finish(figure, table, curves, f"Validation loss by epoch, {table.title}")


def _of_task(curves: Sequence[RowCurves], task: str) -> list[RowCurves]:
    return [one for one in curves if one.task == task]


def _panels(names: Sequence[str], curves: Sequence[RowCurves], *, shared_y: Any) -> tuple[Figure, Any, list[str]]:
    """Makes a figure with a grid of panels, one row per curve and one column per task."""
    tasks = list(dict.fromkeys(one.task for one in curves))
    figure = new_figure(max(WIDTH_INCHES, 2.5 * len(tasks)), 2.2 * len(names) + 1.0)
    panels = figure.subplots(len(names), len(tasks), squeeze=False, sharex=True, sharey=shared_y)
    for axes in panels.flat:
        plain_axes(axes).tick_params(labelsize=8)
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set_title(task, fontsize=9, loc="left", pad=14)
    return figure, panels, tasks


def _rows(curves: Sequence[RowCurves]) -> list[Any]:
    return [one.row.row for one in curves]


def _draw(axes: Axes, band: Band, style: dict[str, Any], *, scale: float = 1.0) -> None:
    marker = "o" if len(band.x_K) == 1 else ""
    axes.plot(band.x_K, scale * band.mean_K, **style, marker=marker)
    if band.seeds > 1:
        axes.fill_between(
            band.x_K,
            scale * band.low_K,
            scale * band.high_K,
            color=style["color"],
            alpha=0.13,
            linewidth=0,
            zorder=1,
        )


def _loss_axes(panels: Sequence[Axes], shown: Sequence[float]) -> None:
    """Makes the axes logarithmic if losses span more than a factor of ten."""
    if not shown or max(shown) <= 10 * min(shown):
        panels[0].set_ylim(0, 1.05 * max(axes.dataLim.y1 for axes in panels))
        return
    steps = (1.0, 2.0, 5.0) if max(shown) < 200 * min(shown) else (1.0,)  # more labels if there are few decades
    for axes in panels:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, table: PosGenTable, curves: Sequence[RowCurves], title: str) -> Picture:
    drawn = [row.row for row in table.rows if any(one.row is row for one in curves)]
    styles = [line_style(row, drawn, with_marker=False) for row in drawn]
    title_and_legend(figure, title, [*styles, _GUESS | {"label": "guessing"}])
    return plots.render(figure)
