"""One page of plots that shows how methods change the features of RoPE, and what rounding of wavelengths achieves.

Equal descriptions give equal bytes. matplotlib is imported inside the functions, and only its object interface is used,
so that programs with plots of their own are not affected. Each base method has a colour and a marker, the same as in
the figures of a report. Its resonance form is a dashed line with the same colour and marker. If both are drawn, the
base method is a wide pale line, so that the dashes on it are visible.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.rope.plot import panels
from longeval.rope.plot.panels import Page
from longeval.rope.plot.phases import draw_phases
from longeval.values import format_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours without the yellow, and three more; colour-blind readers can distinguish them too.
_LOOKS = {
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
_SPARE_LOOKS = (("#332288", "h"), ("#44AA99", "p"), ("#AA4499", "d"), ("#661100", "8"))
_FORMATS = ("png", "svg")
_DPI = 150
_WIDTH_INCHES = 10.5


def plot_format(path: str) -> str:
    """The image format by a file's suffix, `png` or `svg`; raises LongEvalError for another suffix."""
    suffix = path.rpartition(".")[2].lower()
    if suffix not in _FORMATS:
        raise LongEvalError(f"--plot {path}: neither .png nor .svg", "Name the file tables.png or tables.svg.")
    return suffix


def draw(descriptions: Sequence[Mapping[str, Any]], image_format: str) -> bytes:
    """Draws methods of one geometry.

    Args:
        descriptions: What `describe` returns, at least one, all with the same native length and factor.
        image_format: `png` or `svg`.

    Returns:
        The content of the image file.
    """
    import matplotlib as mpl
    import matplotlib.style

    buffer = io.BytesIO()
    # Ignores the user's matplotlib settings. Text stays text in SVG, and equal requests give equal files.
    with matplotlib.style.context("default"), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "longeval"}):
        figure = make_figure(descriptions)
        metadata = {"Date": None} if image_format == "svg" else None
        figure.savefig(buffer, format=image_format, dpi=_DPI, metadata=metadata)
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
    bases = [_base(name) for name in names]
    unknown = sorted(set(bases) - set(_LOOKS))
    styles = []
    for index, (name, base) in enumerate(zip(names, bases, strict=True)):
        rounded = name != base
        colour, marker = _LOOKS[base] if base in _LOOKS else _SPARE_LOOKS[unknown.index(base) % len(_SPARE_LOOKS)]
        pale = not rounded and bases.count(base) > 1
        styles.append(
            {
                "color": colour,
                "alpha": 0.35 if pale else 1.0,
                "linestyle": (0, (4, 2)) if rounded else "-",
                # Each line is thinner than the one before, so that lines on top of each other are visible.
                "linewidth": 4.5 if pale else 1.3 if rounded else 1.4 + 1.4 * (1 - (index + 1) / len(names)),
                "zorder": 3 if rounded else 2,
                "marker": marker,
                "markersize": 4.5 if rounded else 0,
                "markerfacecolor": "white",
                "markeredgewidth": 0.9,
            }
        )
    return styles


def _base(name: str) -> str:
    """The method that a resonance method rounds, or a base method itself."""
    return "none" if name == "resonance" else name.removeprefix("resonance_")


def _legend_grid(names: Sequence[str]) -> tuple[int, int]:
    """Columns and rows that the names fit into; two rows put a method above its resonance form."""
    inches = 0.75 + 0.09 * max(map(len, names))
    columns = max(1, min(len(names), int((_WIDTH_INCHES - 0.5) / inches)))
    rows = -(-len(names) // columns)
    return -(-len(names) // rows), rows
