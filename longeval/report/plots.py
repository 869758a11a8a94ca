"""The two figures of a report: perplexity by context length, and perplexity by position in the window.

A colour and a marker belong to a base method, in every figure; its resonance form has the same colour, dashed and with
hollow markers. The two often coincide, so the base of a pair is a wide pale line that the dashes can be seen on. The
colours are those of Okabe & Ito (2008) without the yellow, which white paper swallows, and three more (two of Tol 2021
and a grey), so that they can be told apart with any colour vision; the markers tell them apart in print.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from longeval.printable import printable
from longeval.report.grid import Grid
from longeval.report.numbers import format_perplexity
from longeval.report.rows import GridRow, base_method, factor_text, is_resonance
from longeval.stats.bootstrap import PositionCurve
from longeval.values import format_length

_STYLES = {
    "none": ("#000000", "o"),
    "pi": ("#E69F00", "s"),
    "ntk": ("#56B4E9", "^"),
    "dynamic_ntk": ("#0072B2", "v"),
    "ntk_by_parts": ("#CC79A7", "D"),
    "yarn": ("#D55E00", "P"),
    "dynamic_yarn": ("#882255", "X"),
    "llama3": ("#009E73", "<"),
    "longrope": ("#999933", ">"),
    "abf": ("#888888", "*"),
}
_SPARE_STYLES = (("#332288", "h"), ("#44AA99", "p"), ("#AA4499", "d"), ("#661100", "8"))

_LOG_FROM_RANGE = 10.0
"""A perplexity axis is logarithmic where the largest value is more than this times the smallest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure in both formats."""

    png: bytes
    svg: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCurve:
    """A row's perplexity by position."""

    row: GridRow
    curve: PositionCurve


def length_curve(grid: Grid) -> Picture | None:
    """Perplexity by context length, one line per row; None with values at fewer than two lengths."""
    values = [record.value for record in grid.records if record.value is not None]
    if len({record.length for record in grid.records if record.value is not None}) < 2:
        return None
    figure, axes = _figure()
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
    return render(figure)


def position_curve(grid: Grid, length: int, curves: Sequence[RowCurve]) -> Picture:
    """Perplexity of the tokens at each position of a window of `length` tokens, one line per row."""
    figure, axes = _figure()
    shown = []
    for item in curves:
        perplexity_K = np.exp(np.minimum(item.curve.mean_nll_K, 700.0))
        centre_K = (item.curve.edges_K1[:-1] + item.curve.edges_K1[1:]) / 2
        held_K = np.isfinite(perplexity_K)
        style = line_style(item.row, grid.rows, with_marker=False)
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
    return render(figure)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def line_style(row: GridRow, rows: Sequence[GridRow], *, with_marker: bool) -> dict[str, Any]:
    """Colour and marker by base method; the resonance form is dashed, hollow and drawn on top."""
    base = base_method(row.pe)
    unknown = sorted({base_method(other.pe) for other in rows} - set(_STYLES))
    color, marker = _STYLES[base] if base in _STYLES else _SPARE_STYLES[unknown.index(base) % len(_SPARE_STYLES)]
    resonance = is_resonance(row.pe)
    paired = any(base_method(other.pe) == base and is_resonance(other.pe) != resonance for other in rows)
    pale = paired and not resonance
    several = len({other.factor for other in rows if other.pe == row.pe}) > 1
    style: dict[str, Any] = {
        "color": color,
        "alpha": 0.4 if pale else 1.0,
        "linestyle": (0, (4, 2)) if resonance else "-",
        "linewidth": 4.0 if pale else 1.4 if resonance else 1.8,
        "zorder": 3 if resonance else 2,
        "label": f"{row.label} s={factor_text(row)}" if several else row.label,
    }
    if with_marker:
        style |= {"marker": marker, "markersize": 9 if pale else 5.5}
        style |= {"markerfacecolor": "white" if resonance else color, "markeredgewidth": 0 if pale else 1}
    return style


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Ticks at the lengths that there are; logarithmic where they span more than two octaves."""
    if max(lengths) > 4 * min(lengths):
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_length(round(x))))
    axes.xaxis.set_minor_locator(NullLocator())


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


def native_line(axes: Axes, native_length: int | None) -> None:
    """Marks the native length where the axis shows it, without widening the axis."""
    low, high = axes.get_xlim()
    if native_length is None or not low <= native_length <= high:
        return
    axes.axvline(native_length, color="#666666", linewidth=1, linestyle=":", zorder=1)
    label = f" native {format_length(native_length)}"
    transform = axes.get_xaxis_transform()
    axes.text(native_length, 1.0, label, transform=transform, va="bottom", ha="center", fontsize=8, color="#444444")


def _legend(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", pad=18)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, handlelength=3.2)


def render(figure: Figure) -> Picture:
    """Renders both formats; equal data give equal bytes. Texts are shown as they are: no mathematics, no escapes."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().startswith("$\\mathdefault"):  # matplotlib's own numbers on logarithmic axes
            text.set(text=printable(text.get_text(), keep="\n"), parse_math=False)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    with mpl.rc_context({"svg.hashsalt": "longeval"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return Picture(png=png.getvalue(), svg=svg.getvalue())
