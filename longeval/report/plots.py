"""Charts as still pictures, drawn with matplotlib; equal charts give equal bytes.

Only matplotlib's object interface is used, under its own default style, so that neither a `matplotlibrc` in the current
folder changes a picture nor a picture the plots of a program that uses longeval. Heat maps have the colours of cividis
(Nuñez, Anderton & Renslow 2018), which reads alike with and without colour vision deficiency and in print.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal

import fontTools.subset
import matplotlib as mpl
import matplotlib.style
import numpy as np
from fontTools.ttLib import TTFont
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from longeval.printable import printable
from longeval.report.charts import Axis, Chart, HeatMap, Line, LineStyle, Mark, Panel, Picture
from longeval.report.numbers import format_perplexity

_DOTS_PER_INCH = 160
_TITLE_SIZE, _LEGEND_SIZE, _PANEL_TITLE_SIZE = 10, 8.5, 9
_EM_PER_CHARACTER = 0.6
"""Width of characters, roughly; most are narrower."""

_LEGEND_INCHES = 1.0
"""Height of the title and the legend, beside the panels."""
_MAP_INCHES = (1.4, 0.7)
"""Width of labels and scale, and height of the title, beside heat maps."""
_LEAST_MAP_WIDTH = 4.4

_MAP_COLOURS = "cividis"
_DASHES = {"solid": "-", "dashed": (0, (4, 2)), "dotted": ":"}
_MARK: dict[str, Any] = {"color": "#666666", "linewidth": 1, "linestyle": ":"}


def draw(chart: Chart) -> Picture:
    """Draws a chart in all formats."""
    with mpl.style.context("default"):  # not that of a matplotlibrc in the current folder
        return _render(make_figure(chart))


def make_figure(chart: Chart) -> Figure:
    """The chart as matplotlib's figure, which knows its size but not yet where its parts lie."""
    lines = math.ceil(len(chart.panels) / chart.columns)
    is_map = any(panel.heat_map for panel in chart.panels)
    more_width, more_height = _MAP_INCHES if is_map else (0.0, _LEGEND_INCHES)
    width = max(chart.panel_width * chart.columns + more_width, _LEAST_MAP_WIDTH if is_map else 0.0)
    figure = Figure(figsize=(width, chart.panel_height * lines + more_height), layout="constrained")
    shared_y: Any = chart.share_y or False
    grid = figure.subplots(lines, chart.columns, squeeze=False, sharex=chart.share_x, sharey=shared_y)
    for place, (axes, panel) in enumerate(zip_longest(grid.flat, chart.panels)):
        if panel is None:
            axes.set_visible(False)
            continue
        if panel.heat_map is None:
            _draw_panel(axes, panel, chart)
        else:
            _draw_map(axes, panel.heat_map)
        _draw_titles(axes, panel, chart, place)
    if is_map:
        _draw_scale(figure, grid, next(panel.heat_map for panel in chart.panels if panel.heat_map))
    _draw_legend(figure, chart)
    figure.suptitle(wrapped(chart.title, width, _TITLE_SIZE), fontsize=_TITLE_SIZE, x=0.01, ha="left")
    return figure


def wrapped(text: str, inches: float, fontsize: float) -> str:
    """A text in lines of so many inches, at most four; names of models may be long paths."""
    width = max(8, int(72 * inches / (_EM_PER_CHARACTER * fontsize)))
    return textwrap.fill(text, width, max_lines=4, placeholder=" …")


def _text_size(chart: Chart) -> float:
    """Size of what stands along axes, in points."""
    return 8 if len(chart.panels) > 1 or chart.panels[0].heat_map else 10


def _draw_titles(axes: Axes, panel: Panel, chart: Chart, place: int) -> None:
    """The titles of a panel and of its axes; panels that share an axis have its title once in a row or column."""
    is_map = panel.heat_map is not None
    # A panel of lines is narrower than its place by the labels of its axis.
    title = wrapped(panel.title, chart.panel_width - (0.0 if is_map else 0.5), _PANEL_TITLE_SIZE)
    is_marked = any(mark.axis == "x" and mark.label for panel in chart.panels for mark in panel.marks)
    axes.set_title(title, fontsize=_PANEL_TITLE_SIZE, loc="left", pad=14 if is_marked else None)
    size = _text_size(chart)
    if not chart.share_x or place + chart.columns >= len(chart.panels):
        axes.set_xlabel(panel.x.title, fontsize=size)
    if not chart.share_y or place % chart.columns == 0:
        axes.set_ylabel(panel.y.title, fontsize=size)


def _draw_panel(axes: Axes, panel: Panel, chart: Chart) -> None:
    """Lines and marks on a pale grid, with two sides left open."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_text_size(chart))
    for line in panel.lines:
        _draw_line(axes, line)
    _scale_axis(axes, "x", panel.x, chart.panel_width)
    _scale_axis(axes, "y", panel.y, chart.panel_width)
    for mark in panel.marks:
        _draw_mark(axes, mark, fontsize=8 if len(chart.panels) == 1 else 7)


def _line_properties(style: LineStyle) -> dict[str, Any]:
    """How matplotlib draws a line of this style."""
    return {
        "color": style.colour,
        "alpha": style.opacity,
        "linestyle": _DASHES[style.dash],
        "linewidth": style.width,
        "zorder": 3 if style.is_above else 2,
        "marker": style.marker,
        "markersize": style.marker_size,
        "markerfacecolor": "white" if style.is_hollow else style.colour,
        "markeredgewidth": 0 if style.opacity < 1 else 1,
    }


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _draw_line(axes: Axes, line: Line) -> None:
    style = line.style
    axes.plot(line.x, _numbers(line.y), label=line.label, **_line_properties(style))
    if not line.low or line.interval == "hover":
        return
    low, high = _numbers(line.low), _numbers(line.high)
    if line.interval == "band":
        axes.fill_between(line.x, low, high, color=style.colour, alpha=0.15, linewidth=0, zorder=1)
        return
    width = 2.2 if style.opacity < 1 else 1.0
    axes.vlines(line.x, low, high, color=style.colour, linewidth=width, alpha=style.opacity, zorder=1)


def _scale_axis(axes: Axes, name: Literal["x", "y"], axis: Axis, inches: float) -> None:
    """Scale, range and ticks; numbers that matplotlib chooses are written out, not as an offset."""
    drawn: Any = getattr(axes, f"{name}axis")
    if axis.scale == "log":
        axes.set(**{f"{name}scale": "log"})
        drawn.set_minor_formatter(NullFormatter())
    if axis.span is not None:
        axes.set(**{f"{name}lim": axis.span})
    if axis.ticks:
        labels = dict(axis.ticks)
        drawn.set_major_locator(FixedLocator(list(labels)))
        drawn.set_major_formatter(FuncFormatter(lambda at, _: labels.get(at, "")))
    elif axis.scale == "linear":
        large = max(map(abs, getattr(axes, f"get_{name}lim")())) >= 1e5
        plain = ScalarFormatter(useOffset=False)
        plain.set_scientific(False)
        drawn.set_major_formatter(FuncFormatter(lambda at, _: format_perplexity(at)) if large else plain)
        if axis.is_whole:
            drawn.set_major_locator(MaxNLocator(integer=True, nbins=int(inches) + 4))
    if name == "x":
        drawn.set_minor_locator(NullLocator())


def _draw_mark(axes: Axes, mark: Mark, *, fontsize: float) -> None:
    """A dotted line; the label of a vertical one stands above the panel, that of a horizontal one beside it."""
    text: dict[str, Any] = {"color": "#444444", "fontsize": fontsize}
    if mark.axis == "x":
        axes.axvline(mark.at, **_MARK, zorder=1)
        text |= {"x": mark.at, "y": 1.0, "ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
    else:
        axes.axhline(mark.at, **_MARK, zorder=1)
        text |= {"x": 1.01, "y": mark.at, "va": "center", "transform": axes.get_yaxis_transform()}
    if mark.label and not mark.in_legend:
        axes.text(s=mark.label, **text)


def _draw_legend(figure: Figure, chart: Chart) -> None:
    """One entry for each label below all panels, first lines, then marks."""
    entries: dict[str, Line2D] = {}
    for line in (line for panel in chart.panels for line in panel.lines):
        if line.label not in entries:
            entries[line.label] = Line2D([], [], **_line_properties(line.style))
    for mark in (mark for panel in chart.panels for mark in panel.marks if mark.in_legend):
        entries.setdefault(mark.label, Line2D([], [], **_MARK))
    if not entries:
        return
    width = figure.get_figwidth()
    labels = [wrapped(label, width - 0.8, _LEGEND_SIZE) for label in entries]
    longest = max(len(line) for label in labels for line in label.splitlines())
    inches = (_EM_PER_CHARACTER * longest + 5.5) * _LEGEND_SIZE / 72
    rows = math.ceil(len(entries) / max(1, int(width / inches)))
    figure.legend(
        [*entries.values()],
        labels,
        loc="outside lower center",
        ncols=math.ceil(len(entries) / rows),
        frameon=False,
        fontsize=_LEGEND_SIZE,
        handlelength=3.2,
    )


def _draw_map(axes: Axes, heat_map: HeatMap) -> None:
    """Fields with their numbers, and white lines between them; where nothing is known the ground shows."""
    norm = Normalize(heat_map.low, heat_map.high)
    values = np.array([_numbers(row) for row in heat_map.values])
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            red, green, blue, _ = mpl.colormaps[_MAP_COLOURS](norm(value))
            # Relative luminance decides whether black or white reads better (ITU-R BT.709 weights).
            colour = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
            axes.text(j, i - 0.1, heat_map.texts[i][j], ha="center", va="center", fontsize=8, color=colour)
            axes.text(j, i + 0.3, heat_map.notes[i][j], ha="center", va="center", fontsize=6, color=colour)
    axes.set_facecolor("#eeeeee")
    axes.imshow(values, cmap=_MAP_COLOURS, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(heat_map.columns)), heat_map.columns, fontsize=8)
    axes.set_yticks(range(len(heat_map.rows)), heat_map.rows, fontsize=8)
    axes.set_xticks(np.arange(len(heat_map.columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(heat_map.rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.tick_params(labelbottom=True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_scale(figure: Figure, grid: Any, heat_map: HeatMap) -> None:
    """The scale of colours beside all heat maps, which share it."""
    colours = ScalarMappable(Normalize(heat_map.low, heat_map.high), _MAP_COLOURS)
    bar = figure.colorbar(colours, ax=list(grid.flat), shrink=0.9, aspect=24, pad=0.02)
    bar.set_label(heat_map.quantity, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _render(figure: Figure) -> Picture:
    """Renders all formats; equal data give equal bytes. Texts are shown as they are: no mathematics, no escapes."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().startswith("$\\mathdefault"):  # matplotlib's own numbers on logarithmic axes
            text.set(text=printable(text.get_text(), keep="\n"), parse_math=False)
    png, svg, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
    # The canvases' own functions, since savefig draws everything twice. Journals refuse PDF with Type 3 fonts.
    with mpl.rc_context({"svg.hashsalt": "longeval", "pdf.fonttype": 42}), _small_fonts():
        figure.set_dpi(_DOTS_PER_INCH)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(png)
        figure.set_layout_engine("none")  # the same places in all formats; finding them takes long
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(svg, metadata={"Date": None})
        canvas = FigureCanvasPdf(figure)
        canvas.print_pdf(pdf, metadata={"CreationDate": None})
    return Picture(png=png.getvalue(), svg=svg.getvalue(), pdf=pdf.getvalue())


@contextlib.contextmanager
def _small_fonts() -> Iterator[None]:
    """Lets matplotlib cut the fonts of PDF files from fonts without tables for setting text.

    Texts are set already, no reader of a PDF needs these tables, and to cut them takes as long as to draw a figure.
    """
    load = fontTools.subset.load_font
    fontTools.subset.load_font = lambda path, options: load(io.BytesIO(_small_font(path, options.font_number)), options)
    try:
        yield
    finally:
        fontTools.subset.load_font = load


@functools.cache
def _small_font(path: str, number: int) -> bytes:
    """The bytes of a font file without its tables for setting text."""
    with TTFont(path, fontNumber=number, lazy=True, recalcTimestamp=False) as font, io.BytesIO() as file:
        for table in {"GDEF", "GPOS", "GSUB"} & {*font.keys()}:
            del font[table]
        font.save(file, reorderTables=False)
        return file.getvalue()
