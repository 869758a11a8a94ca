"""A picture of one or more methods: wavelength and feature gap of every feature.

It answers at a glance which features a method stretches, which stay below the native length, and what rounding does to
the gaps of those. matplotlib is imported inside, and its object API is used, so that no global state is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.spec import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too; a method and its resonance form share one.
_COLOURS = (
    "#000000",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#7F7F7F",
    "#8C510A",
    "#5E3C99",
)
# Below this the gap axis is linear, so that an exact 0 has a place.
_LINEAR_BELOW = 1e-4
_FORMATS = ("png", "svg")


def plot_format(path: str) -> str:
    """The format that a file name asks for, `png` or `svg`; another suffix raises LongEvalError."""
    suffix = path.rpartition(".")[2].lower()
    if suffix not in _FORMATS:
        raise LongEvalError(f"--plot {path}: neither .png nor .svg", "Name the file tables.png or tables.svg.")
    return suffix


def draw(descriptions: Sequence[Mapping[str, Any]], image_format: str) -> bytes:
    """Draws methods of one geometry.

    Args:
        descriptions: What `analysis.describe` returns, at least one, all with the same native length and factor.
        image_format: `png` or `svg`.

    Returns:
        The content of the image file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    first = descriptions[0]
    native, target = first["native_length"], round(first["factor"] * first["native_length"])
    figure = Figure(figsize=(8, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    figure.suptitle(
        f"RoPE features: head_dim {first['head_dim']}, base {first['theta']:g}, "
        f"native {format_length(native)}, target {format_length(target)} (s = {first['factor']:g})",
        fontsize=11,
    )
    colours: dict[str, str] = {}
    for index, description in enumerate(descriptions):
        # Thinner and thinner, so that methods with the same table are seen to lie on each other.
        style = _style(description["name"], colours) | {"linewidth": 1.2 + 1.6 * (1 - (index + 1) / len(descriptions))}
        top.plot(description["wavelengths"], label=description["name"], **style)
        bottom.plot(description["feature_gaps"], **style)
    _finish_wavelengths(top, native, target)
    _finish_gaps(bottom, largest=max(max(description["feature_gaps"]) for description in descriptions))
    buffer = io.BytesIO()
    # Text stays text in SVG, and the same request gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "longeval"}):
        figure.savefig(buffer, format=image_format, dpi=150, metadata={"Date": None} if image_format == "svg" else None)
    return buffer.getvalue()


def _style(name: str, colours: dict[str, str]) -> dict[str, Any]:
    """Line style of a method; `colours` remembers what each base method got."""
    resonance = name.startswith("resonance")
    base = name.removeprefix("resonance").removeprefix("_") or "none"
    colour = colours.setdefault(base, _COLOURS[len(colours) % len(_COLOURS)])
    return {
        "color": colour,
        "linestyle": "--" if resonance else "-." if base.startswith("dynamic_") else "-",
        "marker": "o" if resonance else None,
        "markersize": 3,
        "markerfacecolor": "white",
    }


def _finish_wavelengths(axes: Axes, native: int, target: int) -> None:
    """Scale, length lines and legend of the upper panel."""
    axes.set_yscale("log")
    axes.set_ylabel("wavelength λ (tokens)")
    lengths = [(native, "native")] + ([(target, "target")] if target > native else [])
    for length, what in lengths:
        axes.axhline(length, color="#888888", linewidth=0.9, linestyle=":" if what == "native" else "-.")
        axes.annotate(
            f"{what} {format_length(length)}",
            (0.01, length),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=8,
            color="#555555",
        )
    axes.legend(loc="lower right", framealpha=0.95, edgecolor="none", fontsize=9, ncols=2)
    axes.grid(alpha=0.25)


def _finish_gaps(axes: Axes, *, largest: float) -> None:
    """Scale and labels of the lower panel."""
    axes.set_xlabel("feature j")
    axes.set_ylabel("feature gap")
    axes.grid(alpha=0.25)
    axes.margins(x=0.02)
    if largest == 0:
        axes.set_ylim(-0.05, 1)
        axes.set_yticks([0, 1])
        return
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    axes.set_ylim(-_LINEAR_BELOW / 4, 4)
    axes.set_yticks([0, 1e-4, 1e-3, 1e-2, 1e-1, 1])
