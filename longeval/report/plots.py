"""How figures of all reports look: colours and markers of methods, axes of lengths, and how a figure is rendered.

A colour and a marker belong to a base method, in every figure; its resonance form has the same colour, dashed and with
hollow markers. The two often coincide, so the base of a pair is a wide pale line that the dashes can be seen on. The
colours are those of Okabe & Ito (2008) without the yellow, which white paper swallows, and three more (two of Tol 2021
and a grey), so that they can be told apart with any colour vision; the markers tell them apart in print.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from longeval.printable import printable
from longeval.report.document import Picture
from longeval.report.tables import GridRow, base_method, factor_text, is_resonance
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


def new_figure(width: float = 7.2, height: float = 4.2) -> Figure:
    """An empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes) -> Axes:
    """Leaves two sides of a panel open and puts a pale grid behind it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def title_and_legend(figure: Figure, title: str, styles: Iterable[dict[str, Any]] = ()) -> None:
    """A title above all panels, and a legend of lines in these styles beside them."""
    handles = [Line2D([], [], **style) for style in styles]
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8, handlelength=3.2)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")


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
    """Renders both formats; equal data give equal bytes. Texts are shown as they are: no mathematics, no escapes."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().startswith("$\\mathdefault"):  # matplotlib's own numbers on logarithmic axes
            text.set(text=printable(text.get_text(), keep="\n"), parse_math=False)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    figure.set_layout_engine("none")  # the same places in both; finding them takes long
    with mpl.rc_context({"svg.hashsalt": "longeval"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return Picture(png=png.getvalue(), svg=svg.getvalue())
