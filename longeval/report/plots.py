"""How figures of all reports look: colours and markers of methods, axes of lengths, and how a figure is rendered.

A colour and a marker belong to a base method, in every figure; its resonance form has the same colour, dashed and with
hollow markers. The two often coincide, so the base of a pair is a wide pale line that the dashes can be seen on.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from longeval.looks import MARKERS, base_method, is_resonance, look_of, shade
from longeval.printable import printable
from longeval.report.document import Picture
from longeval.report.numbers import format_perplexity
from longeval.report.tables import GridRow, factor_text
from longeval.values import format_length

WIDTH_INCHES = 6.4
"""Width of figures: on a page of LaTeX's `article`, whose lines are 4.8 inches long, text of 9 points is 6.7 points."""

_DOTS_PER_INCH = 160
_LEGEND_SIZE = 8.5
_EM_PER_CHARACTER = 0.6
"""Width of characters, roughly; most are narrower."""

_LOG_FROM_RANGE = 10.0
"""A perplexity axis is logarithmic where the largest value is more than this times the smallest."""
_LEAST_RANGE = 0.01
"""A perplexity axis spans at least this share of its largest value, so that nearly equal values look so."""


def new_figure(width: float = WIDTH_INCHES, height: float = 4.4) -> Figure:
    """An empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def wrapped(text: str, inches: float, fontsize: float) -> str:
    """A text in lines of so many inches, at most four; names of models may be long paths."""
    width = max(8, int(72 * inches / (_EM_PER_CHARACTER * fontsize)))
    return textwrap.fill(text, width, max_lines=4, placeholder=" …")


def plain_axes(axes: Axes) -> Axes:
    """Leaves two sides of a panel open, puts a pale grid behind it, and writes ticks as whole numbers, not as +1e1."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False, style="plain")
    return axes


def title_and_legend(figure: Figure, title: str, styles: Iterable[dict[str, Any]] = ()) -> None:
    """A title above all panels, and a legend of lines in these styles below them."""
    width = figure.get_figwidth()
    handles = [Line2D([], [], **style) for style in styles]
    if handles:
        labels = [wrapped(str(handle.get_label()), width - 0.8, _LEGEND_SIZE) for handle in handles]
        longest = max(len(line) for label in labels for line in label.splitlines())
        inches = (_EM_PER_CHARACTER * longest + 5.5) * _LEGEND_SIZE / 72
        rows = math.ceil(len(handles) / max(1, int(width / inches)))
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=math.ceil(len(handles) / rows),
            frameon=False,
            fontsize=_LEGEND_SIZE,
            handlelength=3.2,
        )
    figure.suptitle(wrapped(title, width, 10), fontsize=10, x=0.01, ha="left")


def line_style(row: GridRow, rows: Sequence[GridRow], *, with_marker: bool) -> dict[str, Any]:
    """Colour and marker by base method; the resonance form is dashed, hollow and drawn on top.

    Rows of one method with several factors or parameters have shades of its colour and markers of their own.
    """
    look = look_of(row.pe, [other.pe for other in rows])
    setting = row.method, row.factor
    same = [other for other in rows if base_method(other.pe) == base_method(row.pe)]
    settings = list(dict.fromkeys((other.method, other.factor) for other in same))
    place = settings.index(setting)
    color = shade(look.colour, place, len(settings))
    resonance = is_resonance(row.pe)
    pale = not resonance and any(is_resonance(other.pe) and (other.method, other.factor) == setting for other in same)
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
        style |= {"marker": look.marker if len(settings) == 1 else MARKERS[place % len(MARKERS)]}
        style |= {"markersize": 9 if pale else 5.5}
        style |= {"markerfacecolor": "white" if resonance else color, "markeredgewidth": 0 if pale else 1}
    return style


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Ticks at the lengths that there are; logarithmic where they span more than two octaves."""
    if max(lengths) > 4 * min(lengths):
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_length(round(x))))
    axes.xaxis.set_minor_locator(NullLocator())


def perplexity_axis(axes: Axes, values: Sequence[float]) -> None:
    """Names the axis of perplexities; logarithmic where `values`, all that is drawn, span more than a decade."""
    axes.set_ylabel("Perplexity")
    low, high = min(values), max(values)
    plain = FuncFormatter(lambda y, _: f"{y:g}" if y < 1e4 else format_perplexity(y))
    if high <= _LOG_FROM_RANGE * low:
        if high - low < _LEAST_RANGE * high:
            middle = (low + high) / 2
            axes.set_ylim(middle - 0.6 * _LEAST_RANGE * high, middle + 0.6 * _LEAST_RANGE * high)
        if high >= 1e5:
            axes.yaxis.set_major_formatter(plain)
        return
    axes.set_yscale("log")
    # Decades alone would leave the range where working methods lie without a label.
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= top]))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())


def native_line(axes: Axes, native_length: int | None) -> None:
    """Marks the native length where the axis shows it, without widening the axis."""
    low, high = axes.get_xlim()
    if native_length is None or not low <= native_length <= high:
        return
    marked_length(axes, native_length, f" native {format_length(native_length)}", fontsize=8)


def marked_length(axes: Axes, length: int, label: str, *, fontsize: int) -> None:
    """A dotted line at a length, with a label above the panel."""
    axes.axvline(length, color="#666666", linewidth=1, linestyle=":", zorder=1)
    transform = axes.get_xaxis_transform()
    axes.text(length, 1.0, label, transform=transform, va="bottom", ha="center", fontsize=fontsize, color="#444444")


def render(figure: Figure) -> Picture:
    """Renders all formats; equal data give equal bytes. Texts are shown as they are: no mathematics, no escapes."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().startswith("$\\mathdefault"):  # matplotlib's own numbers on logarithmic axes
            text.set(text=printable(text.get_text(), keep="\n"), parse_math=False)
    png, svg, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
    # The canvases' own functions, since savefig draws everything twice. Journals refuse PDF with Type 3 fonts.
    with mpl.rc_context({"svg.hashsalt": "longeval", "pdf.fonttype": 42}):
        figure.set_dpi(_DOTS_PER_INCH)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(png)
        figure.set_layout_engine("none")  # the same places in all formats; finding them takes long
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(svg, metadata={"Date": None})
        canvas = FigureCanvasPdf(figure)
        canvas.print_pdf(pdf, metadata={"CreationDate": None})
    return Picture(png=png.getvalue(), svg=svg.getvalue(), pdf=pdf.getvalue())
