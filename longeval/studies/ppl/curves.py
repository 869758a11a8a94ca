"""The two figures of perplexity: by context length, and by position in the window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from longeval.report import plots
from longeval.report.document import Picture
from longeval.report.numbers import format_perplexity
from longeval.report.plots import length_axis, line_style, native_line, new_figure
from longeval.report.rows import GridRow
from longeval.report.tables import Grid
from longeval.stats.bootstrap import PositionCurve
from longeval.values import format_length

_LOG_FROM_RANGE = 10.0
"""A perplexity axis is logarithmic where the largest value is more than this times the smallest."""


def length_curve(grid: Grid) -> Picture | None:
    """Perplexity by context length, one line per row; None with values at fewer than two lengths."""
    values = [record.value for record in grid.records if record.value is not None]
    if len({record.length for record in grid.records if record.value is not None}) < 2:
        return None
    figure, axes = new_figure()
    for row in grid.rows:
        points = [(length, row.cells[length].value) for length in grid.lengths if length in row.cells]
        # A failed cell breaks the line: what lies between its neighbours is not known.
        y = [math.nan if value is None else value for _, value in points]
        axes.plot([length for length, _ in points], y, **line_style(row, grid.rows, with_marker=True))
    axes.set_xlabel("Context length (tokens)")
    length_axis(axes, grid.lengths)
    _perplexity_axis(axes, values)
    native_line(axes, grid.native_length)
    _legend(axes, grid.title)
    return plots.render(figure)


def position_curve(grid: Grid, length: int, curves: Sequence[tuple[GridRow, PositionCurve]]) -> Picture:
    """Perplexity of the tokens at each position of a window of `length` tokens, one line per row."""
    figure, axes = new_figure()
    shown = []
    for row, curve in curves:
        perplexity_K = np.exp(np.minimum(curve.mean_nll_K, 700.0))
        centre_K = (curve.edges_K1[:-1] + curve.edges_K1[1:]) / 2
        held_K = np.isfinite(perplexity_K)
        style = line_style(row, grid.rows, with_marker=False)
        axes.plot(centre_K[held_K], perplexity_K[held_K], **style)
        shown.extend(perplexity_K[held_K].tolist())
    axes.set_xlabel(f"Position in a window of {format_length(length)} tokens")
    axes.set_xlim(0, length)
    step = max(1, 2 ** math.ceil(math.log2(length / 8)))
    axes.xaxis.set_major_locator(FixedLocator(range(0, length + 1, step)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_length(round(x)) if x else "0"))
    _perplexity_axis(axes, shown)
    native_line(axes, grid.native_length)
    _legend(axes, grid.title)
    return plots.render(figure)


def _perplexity_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_ylabel("Perplexity")
    low, high = min(values), max(values)
    if high <= _LOG_FROM_RANGE * low:
        return
    axes.set_yscale("log")
    # Decades alone would leave the range where working methods lie without a label.
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= top]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if y < 1e4 else format_perplexity(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", pad=18)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, handlelength=3.2)
