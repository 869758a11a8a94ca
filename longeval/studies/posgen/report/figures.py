"""PosGen's figures: accuracy by position, and validation losses by epoch. Each task has a panel, each method a line.

Lines are means over seeds, and bands reach from the lowest to the highest seed. Methods have the same colours as in all
other figures (see `report.lines`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from longeval.report.charts import WIDTH_INCHES, Axis, Chart, Line, Mark, Panel
from longeval.report.lines import decades, is_log_range, line_label, line_style, padded, seed_line
from longeval.stats.bootstrap import FloatArray
from longeval.store.curves import Curves
from longeval.studies.posgen.report.tables import PosGenRow, PosGenTable

_ROW_TITLES = {
    "accuracy": "teacher-forced",
    "generated": "free-running",
    "valid_loss_in_distribution": "in distribution",
    "valid_loss_ood": "OOD",
}

SMOOTHED = 4
"""Number of neighbouring positions that are averaged to one point, because single positions are noisy."""

_MOST_BANDS = 4
"""With more methods, bands would hide one another: values stay in `positions.csv` and under a page's pointer."""

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


def position_figure(table: PosGenTable, curves: Sequence[RowCurves]) -> Chart | None:
    """The figure of accuracy in % by position: teacher-forced above, free-running below; None without curves."""
    names = [name for name in ("accuracy", "generated") if any(one.band(name) for one in curves)]
    if not names:
        return None
    train_length, test_length = table.params["train_length"], table.params["test_length"]
    places = range(0, test_length + 1, max(train_length, test_length // 4))
    x = Axis(
        title="Position of the predicted token", span=(0, test_length), ticks=tuple((at, str(at)) for at in places)
    )
    panels = []
    for name in names:
        y = Axis(title=f"Accuracy (%),\n{_ROW_TITLES[name]}", span=(-3, 103))
        label = f"trained to {train_length}" if name == names[0] else ""
        marks = _guess(100 / table.params["modulus"]), Mark(axis="x", at=train_length, label=label)
        for task in _tasks(curves):
            lines = [
                _line(one, band, curves, scale=100)
                for one in curves
                if one.task == task and (band := one.band(name, width=SMOOTHED, edge=train_length)) is not None
            ]
            title = task if name == names[0] else ""
            panels.append(Panel(title=title, x=x, y=y, lines=tuple(lines), marks=marks))
    return _chart(f"Accuracy by position, {table.title}", panels, curves, share_y="all")


def loss_figure(table: PosGenTable, curves: Sequence[RowCurves]) -> Chart | None:
    """The figure of validation loss in nats by epoch: seen positions above, unseen below; None without curves."""
    names = [name for name in BY_EPOCH if any((b := one.band(name)) is not None and len(b.x_K) > 1 for one in curves)]
    if not names:
        return None
    guess = _guess(math.log(table.params["modulus"]))
    panels = []
    for name in names:
        lines = {
            task: [
                _line(one, band, curves) for one in curves if one.task == task and (band := one.band(name)) is not None
            ]
            for task in _tasks(curves)
        }
        y = _loss_axis(f"Loss (nats),\n{_ROW_TITLES[name]}", [line for own in lines.values() for line in own], guess.at)
        for task, own in lines.items():
            title = task if name == names[0] else ""
            x = Axis(title="Epoch", is_whole=True)
            panels.append(Panel(title=title, x=x, y=y, lines=tuple(own), marks=(guess,)))
    return _chart(f"Validation loss by epoch, {table.title}", panels, curves, share_y="row")


def _tasks(curves: Sequence[RowCurves]) -> list[str]:
    return list(dict.fromkeys(one.task for one in curves))


def _guess(at: float) -> Mark:
    """The line for guessing: accuracy 1/m, loss ln m."""
    return Mark(axis="y", at=at, label="guessing", in_legend=True)


def _line(one: RowCurves, band: Band, curves: Sequence[RowCurves], *, scale: float = 1.0) -> Line:
    """The mean over seeds with a band, or a point where there is no curve."""
    rows = [other.row.row for other in curves]
    style = line_style(one.row.row, rows, with_marker=False)
    if len(band.x_K) == 1:
        style = replace(style, marker="o", is_hollow=False)
    ends_3K = [scale * values_K for values_K in (band.mean_K, band.low_K, band.high_K)]
    line = seed_line(line_label(one.row.row, rows), style, band.x_K.tolist(), ends_3K, [band.seeds] * len(band.x_K))
    return line if has_bands(curves) else replace(line, interval="hover")


def has_bands(curves: Sequence[RowCurves]) -> bool:
    """Whether the figures show how far seeds reach."""
    return len({one.row.name for one in curves}) <= _MOST_BANDS and any(len(one.curves) > 1 for one in curves)


def _loss_axis(title: str, lines: Sequence[Line], guess: float) -> Axis:
    """From 0 if losses are near one another, else logarithmic; it shows the loss of guessing too."""
    shown = [value for line in lines for value in line.y if value is not None and value > 0]
    if not shown or not is_log_range(shown):
        highest = max([guess, *(value for line in lines for value in (*line.y, *line.high) if value is not None)])
        return Axis(title=title, span=(0, 1.05 * highest))
    ticks = tuple((at, f"{at:g}") for at in decades(min(shown), max(shown)))
    everything = [value for line in lines for value in (*line.y, *line.low, *line.high) if value is not None]
    span = padded([guess, *(value for value in everything if value > 0)], is_log=True)
    return Axis(title=title, scale="log", span=span, ticks=ticks)


def _chart(
    title: str, panels: Sequence[Panel], curves: Sequence[RowCurves], *, share_y: Literal["all", "row"]
) -> Chart:
    """A grid of panels, one row per curve and one column per task."""
    columns = len(_tasks(curves))
    return Chart(
        title=title,
        panels=tuple(panels),
        columns=columns,
        panel_width=max(WIDTH_INCHES / columns, 2.5),
        panel_height=2.2,
        share_x=True,
        share_y=share_y,
    )
