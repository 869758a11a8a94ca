"""One page of plots that shows how methods change the features of RoPE, and what rounding of wavelengths achieves.

Equal descriptions give equal bytes. matplotlib is imported inside the functions, and only its object interface is used,
so that a program that makes its own plots is not disturbed. Colours and markers are those of a report's figures
(`longeval.looks`). The line of a resonance form is dashed; where its base is drawn too, that is a wide pale line on
which the dashes can be seen.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.looks import base_method, is_resonance, look_of
from longeval.rope.plot import panels
from longeval.rope.plot.panels import Page
from longeval.rope.plot.phases import draw_phases
from longeval.values import format_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Formats, and what of their metadata is left out so that the same request gives the same file."""

_DPI = 150
_WIDTH_INCHES = 10.5


def plot_format(path: str) -> str:
    """The format that a file name asks for: `png`, `svg` or `pdf`; another suffix raises LongEvalError."""
    suffix = path.rpartition(".")[2].lower()
    if suffix not in _FORMATS:
        raise LongEvalError(
            f"--plot {path}: not .png, .svg or .pdf", "Name the file tables.png, tables.svg or tables.pdf."
        )
    return suffix


def draw(descriptions: Sequence[Mapping[str, Any]], image_format: str) -> bytes:
    """Draws methods of one geometry.

    Args:
        descriptions: What `describe` returns, at least one, all with the same native length and factor.
        image_format: `png`, `svg` or `pdf`.

    Returns:
        The content of the image file.
    """
    import matplotlib as mpl
    import matplotlib.style

    buffer = io.BytesIO()
    # Not the user's own settings. Text stays text in SVG and PDF, and the same request gives the same file.
    with (
        matplotlib.style.context("default"),
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "longeval", "pdf.fonttype": 42}),
    ):
        figure = make_figure(descriptions)
        figure.savefig(buffer, format=image_format, dpi=_DPI, metadata=_FORMATS[image_format])
    return buffer.getvalue()


def make_figure(descriptions: Sequence[Mapping[str, Any]]) -> Figure:
    """The page as matplotlib's figure: title, legend, and six panels in reading order."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    page = Page(descriptions=descriptions, styles=_styles([description["name"] for description in descriptions]))
    columns, rows = _legend_grid([description["name"] for description in descriptions])
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, hspace=0.05, wspace=0.02)
    figure = Figure(figsize=(_WIDTH_INCHES, 11.4 + 0.19 * rows), layout=layout)
    grid = figure.add_gridspec(3, 2)
    panels.draw_wavelengths(figure.add_subplot(grid[0, 0]), page)
    panels.draw_interpolation(figure.add_subplot(grid[0, 1]), page)
    panels.draw_gaps(figure.add_subplot(grid[1, 0]), page)
    halves = grid[1, 1].subgridspec(2, 1, hspace=0)
    above = figure.add_subplot(halves[0])
    below = figure.add_subplot(halves[1], sharex=above)
    draw_phases(above, below, page)
    panels.draw_decay(figure.add_subplot(grid[2, 0]), page)
    panels.draw_precision(figure.add_subplot(grid[2, 1]), page)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        title=_title(descriptions[0]),
        title_fontproperties={"size": 13, "weight": "bold"},
        fontsize=9.5,
        frameon=False,
        handlelength=3.2,
    )
    return figure


def _title(description: Mapping[str, Any]) -> str:
    """The title: the geometry that all methods share."""
    native, factor = description["native_length"], description["factor"]
    target = round(factor * native)
    text = (
        f"RoPE features: head_dim {description['head_dim']}, base {description['theta']:g}, "
        f"native {format_length(native)}, target {format_length(target)} (s = {factor:g})"
    )
    return text if description["length"] == target else f"{text}, n = {format_length(description['length'])}"


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Line properties of every method, for matplotlib."""
    bases = [base_method(name) for name in names]
    styles = []
    for index, (name, base) in enumerate(zip(names, bases, strict=True)):
        rounded = is_resonance(name)
        look = look_of(name, names)
        pale = not rounded and bases.count(base) > 1
        styles.append(
            {
                "color": look.colour,
                "alpha": 0.35 if pale else 1.0,
                "linestyle": (0, (4, 2)) if rounded else "-",
                # Each line is thinner than the one before, so that lines on top of each other are visible.
                "linewidth": 4.5 if pale else 1.3 if rounded else 1.4 + 1.4 * (1 - (index + 1) / len(names)),
                "zorder": 3 if rounded else 2,
                "marker": look.marker,
                "markersize": 4.5 if rounded else 0,
                "markerfacecolor": "white",
                "markeredgewidth": 0.9,
            }
        )
    return styles


def _legend_grid(names: Sequence[str]) -> tuple[int, int]:
    """Columns and rows that the names fit into; two rows put a method above its resonance form."""
    inches = 0.75 + 0.09 * max(map(len, names))
    columns = max(1, min(len(names), int((_WIDTH_INCHES - 0.5) / inches)))
    rows = -(-len(names) // columns)
    return -(-len(names) // rows), rows
