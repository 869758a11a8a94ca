"""Five panels of the page: wavelength, interpolation, feature gap, attention decay, floating-point error.

Each panel draws values of `describe` unchanged, and its headline states the main result. The sixth panel, in `phases`,
also uses `Page`, `headline` and `finish`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longeval.values import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL_TEXT: dict[str, Any] = {"fontsize": 8.5, "color": "#555555"}
_SHADE = "#EEF3F8"
"""Background of pre-critical features."""
_GUIDE = "#777777"
"""Colour of lines that mark a length or a factor."""
_HEADLINE_CHARACTERS = 58
_WAYS = {"float32_product": "float32 product", "bfloat16_inv_freq": "bfloat16 inv_freq", "longeval": "longeval"}
_LEAST_POWER = -12
"""The lowest power of ten on the axis of errors; smaller errors and an exact 0 are on a linear part below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The methods of one page."""

    descriptions: Sequence[Mapping[str, Any]]
    """What `describe` returned for each method, all on one geometry."""
    styles: Sequence[Mapping[str, Any]]
    """matplotlib's line properties for each method."""

    @property
    def native(self) -> int:
        """L, tokens."""
        return int(self.descriptions[0]["native_length"])

    @property
    def factor(self) -> float:
        """The factor s = L'/L."""
        return float(self.descriptions[0]["factor"])

    @property
    def target(self) -> int:
        """L', tokens."""
        return round(self.factor * self.native)

    def pre_critical_in_all(self) -> list[bool]:
        """Whether a feature's wavelength before rounding is at most L in every method, one value per feature."""
        fits_F = np.ones(len(self.descriptions[0]["wavelengths"]), dtype=bool)
        for item in self.descriptions:
            fits_F &= np.array(item["wavelengths"]) / (1 + np.array(item["rounding_errors"])) <= self.native
        return [bool(fits) for fits in fits_F]

    def curves(self, key: str) -> Iterator[tuple[Sequence[float], dict[str, Any]]]:
        """Yields a per-feature key of every method with its style; at most about 20 features have markers."""
        for index, (description, style) in enumerate(zip(self.descriptions, self.styles, strict=True)):
            step = max(1, len(description[key]) // 20)
            # A single feature makes no line, so its marker must be visible.
            size = style["markersize"] if len(description[key]) > 1 else 6
            changes = {"label": description["name"], "markevery": (index % step, step), "markersize": size}
            yield description[key], dict(style) | changes

    def values(self, key: str) -> list[float]:
        """A per-feature key of all methods in one list."""
        return [value for description in self.descriptions for value in description[key]]


def headline(axes: Axes, number: int, text: str, *, room: float = 0) -> None:
    """Writes a panel's number and headline above it, with `room` points between."""
    axes.set_title(textwrap.fill(f"{number}. {text}", _HEADLINE_CHARACTERS), loc="left", fontsize=10, pad=7 + room)


def finish(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels the axes and gives them the look of all panels."""
    axes.set_xlabel(x_label, fontsize=9.5)
    axes.set_ylabel(y_label, fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _short(number: float) -> str:
    """A number with two digits, as 3e-8 rather than 3e-08."""
    return f"{number:.2g}".replace("e-0", "e-")


def draw_wavelengths(axes: Axes, page: Page) -> None:
    """λ̃ by feature, with the native and the target length; wavelengths up to the native length are shaded.

    Crosses are the periods of features that turn several times in them.
    """
    for wavelengths_F, style in page.curves("wavelengths"):
        axes.plot(wavelengths_F, **style)
    values = page.values("wavelengths")
    crosses = False
    for description, look in zip(page.descriptions, page.styles, strict=True):
        pairs = zip(description["periods"] or (), description["turns"] or (), strict=True)
        several = [(j, period) for j, (period, turns) in enumerate(pairs) if turns > 1]
        if several:
            axes.plot(*zip(*several, strict=True), linestyle="", marker="x", color=look["color"], zorder=4)
            values, crosses = [*values, *(period for _, period in several)], True
    axes.set_yscale("log")
    axes.set_ylim(min(*values, page.native) / 2, max(*values, page.target) * 2)
    axes.axhspan(axes.get_ylim()[0], page.native, color=_SHADE, zorder=0)
    _feature_axis(axes, page)
    finish(axes, "feature j", "wavelength, ×: period (tokens)" if crosses else "wavelength (tokens)")
    axes.axhline(page.native, color=_GUIDE, linewidth=1, linestyle=":")
    # One label below its line and one above, so that labels of close lengths don't overlap.
    # Crosses lie on the left.
    _say(axes, f"native {format_length(page.native)}", (0.8 if crosses else 0.015, page.native), (0, -2), "top")
    if page.target > page.native:
        axes.axhline(page.target, color=_GUIDE, linewidth=1, linestyle="-.")
        _say(axes, f"target {format_length(page.target)}", (0.015, page.target), (0, 2), "bottom")
    counts = [description["pre_critical"] for description in page.descriptions]
    few, many = min(counts), max(counts)
    number = str(few) if few == many else f"{few} to {many}"
    headline(
        axes,
        1,
        f"Shaded: wavelengths that fit into the native {format_length(page.native)} tokens; "
        f"pre-critical features: {number} of {len(page.descriptions[0]['wavelengths'])}.",
    )


def draw_interpolation(axes: Axes, page: Page) -> None:
    """θ/θ̃ by feature: 1 for unchanged features, s for fully interpolated ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for interpolation_F, style in page.curves("interpolation"):
        axes.plot(interpolation_F, **style)
    values = [*page.values("interpolation"), 1.0, page.factor]
    low, high = min(values), max(values)
    if high > 2 * low:
        axes.set_yscale("log")
        step = max(1, math.ceil(math.log2(high / low) / 8))
        powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
        axes.yaxis.set_major_locator(FixedLocator([2.0**power for power in powers if power % step == 0]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_ylim(low / 1.15, high * 1.15)
    else:
        room = max(0.1 * (high - low), 0.02)
        axes.set_ylim(low - room, high + room)
    _feature_axis(axes, page)
    finish(axes, "feature j", "interpolation (λ after / before)")
    axes.axhline(1, color=_GUIDE, linewidth=1, linestyle=":")
    text = "How far each method stretches each wavelength: 1 leaves it as it is"
    if page.factor > 1:
        axes.axhline(page.factor, color=_GUIDE, linewidth=1, linestyle="-.")
        text += f", {page.factor:g} is the whole factor s"
    headline(axes, 2, f"{text}.")


def draw_gaps(axes: Axes, page: Page) -> None:
    """Feature gap by feature, on a symmetric log axis, which can show an exact 0."""
    for gaps_F, style in page.curves("feature_gaps"):
        axes.plot(gaps_F, **style, clip_on=False)
    positive = [gap for gap in page.values("feature_gaps") if gap > 0]
    for first, last in _runs(page.pre_critical_in_all()):
        axes.axvspan(first - 0.5, last + 0.5, color=_SHADE, zorder=0)
    _feature_axis(axes, page)
    finish(axes, "feature j", "feature gap")
    if positive:
        decade = max(-6, min(-2, math.floor(math.log10(min(positive)))))
        axes.set_yscale("symlog", linthresh=10.0**decade)
        axes.set_ylim(-(10.0**decade) / 3, 4)
        axes.set_yticks([0, *(10.0**power for power in range(decade, 1))])
        axes.set_yticks([], minor=True)
    else:
        axes.set_ylim(-0.05, 1)
        axes.set_yticks([0, 1])
    headline(axes, 3, _gap_headline(page))


def _gap_headline(page: Page) -> str:
    """The headline: the largest gaps of pre-critical features without and with rounding."""
    if page.target <= page.native:
        return "No gaps: the target is the native length, so no position is unseen."
    counted = [item for item in page.descriptions if item["pre_critical"]]
    if not counted:
        return "No feature is pre-critical: no wavelength fits into the native length."
    plain = [item["feature_gap"] for item in counted if item["unique_positions"] is None]
    rounded = [item["feature_gap"] for item in counted if item["unique_positions"] is not None]
    text = f"Past {format_length(page.native)}, pre-critical features miss what training showed by"
    amounts = ([_amount(max(plain))] if plain else []) + ([f"{_amount(max(rounded))} if rounded"] if rounded else [])
    return f"{text} {', by '.join(amounts)}."


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last index of every run of true values."""
    indices = [index for index, flag in enumerate(flags) if flag]
    firsts = [index for index in indices if index == 0 or not flags[index - 1]]
    lasts = [index for index in indices if index + 1 == len(flags) or not flags[index + 1]]
    return list(zip(firsts, lasts, strict=True))


def _amount(gap: float) -> str:
    """A largest gap in words; only a gap of 0.0 is called exact."""
    return "exactly 0" if gap == 0 else f"up to {_short(gap)}"


def _feature_axis(axes: Axes, page: Page) -> None:
    """Draws the horizontal axis of a panel by feature."""
    from matplotlib.ticker import MaxNLocator

    num_features = len(page.descriptions[0]["wavelengths"])
    room = max(0.5, 0.02 * num_features)
    axes.set_xlim(-room, num_features - 1 + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1, steps=[1, 2, 4, 5, 8, 10]))


def _say(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], va: Any) -> None:
    """Writes a few words by the left edge of the axes, at a height of the data."""
    axes.annotate(
        text,
        place,
        xycoords=("axes fraction", "data"),
        xytext=offset,
        textcoords="offset points",
        ha="left",
        va=va,
        **SMALL_TEXT,
    )


def draw_decay(axes: Axes, page: Page) -> None:
    """Mean over features of cos(distance · θ̃) by distance; the log axis leaves out distance 0, where it is 1."""
    from matplotlib.ticker import NullLocator

    longest, lowest = 1, 0.0
    for description, style in zip(page.descriptions, page.styles, strict=True):
        decay = description["decay"]
        points = [point for point in zip(decay["distances"], decay["mean_cos"], strict=True) if point[0] > 0]
        distances, means = [distance for distance, _ in points], [mean for _, mean in points]
        # Thin lines, because these curves oscillate.
        axes.plot(distances, means, **dict(style) | {"marker": None, "linewidth": style["linewidth"] / 1.6})
        longest, lowest = max([longest, *distances]), min([lowest, *means])
    axes.set_xscale("log", base=2)
    # Leaves room on the right for the label of the target length.
    axes.set_xlim(0.9, longest * 2)
    axes.set_ylim(lowest - 0.05, 1.04)
    powers = range(0, math.floor(math.log2(longest)) + 1, max(1, math.ceil(math.log2(longest) / 9)))
    axes.set_xticks([2**power for power in powers], [format_length(2**power) for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())
    finish(axes, "distance (tokens)", "mean cos over features")
    axes.axhline(0, color=_GUIDE, linewidth=0.8)
    _mark_length(axes, page.native, "native", left=True)
    if page.target > page.native:
        _mark_length(axes, page.target, "target", left=False)
    headline(axes, 5, "How distance alone changes the attention between equal vectors (1 at distance 0).")


def draw_precision(axes: Axes, page: Page) -> None:
    """Largest error of cos and sin for three ways to compute them, each at growing positions."""
    positions = [point["positions"] for point in page.descriptions[0]["precision"]]
    width = len(positions) + 0.8
    errors: list[float] = []
    for description, style in zip(page.descriptions, page.styles, strict=True):
        for group, way in enumerate(_WAYS):
            y = [point[way] for point in description["precision"]]
            visible = {"markersize": 5.5, "label": f"{description['name']} {way}"}
            axes.plot([group * width + index for index in range(len(y))], y, **dict(style) | visible)
            errors += y
    positive = [error for error in errors if error > 0]
    lowest = max(_LEAST_POWER, math.floor(math.log10(min(positive, default=1.0))))
    ticks = [10.0**power for power in range(lowest, 1)]
    if min(errors) >= ticks[0]:
        axes.set_yscale("log")
        axes.set_ylim(ticks[0] / 2, 80)
    else:
        axes.set_yscale("symlog", linthresh=ticks[0])
        axes.set_ylim(-ticks[0] / 3, 80)
        ticks.insert(0, 0.0)
    axes.set_yticks(ticks)
    axes.set_yticks([], minor=True)
    places = [group * width + index for group in range(len(_WAYS)) for index in range(len(positions))]
    axes.set_xticks(places, [format_length(position) for position in positions] * len(_WAYS))
    axes.set_xlim(-0.6, places[-1] + 0.6)
    finish(axes, "position", "largest error of cos and sin")
    for group, text in enumerate(_WAYS.values()):
        middle = group * width + (len(positions) - 1) / 2
        axes.text(middle, 30, text, ha="center", va="center", fontsize=9.5)
        if group:
            axes.axvline(group * width - 0.9, color="#CCCCCC", linewidth=0.8)
    headline(axes, 6, _precision_headline(page))


def _precision_headline(page: Page) -> str:
    """The headline: the largest errors just before the last position."""
    last = [description["precision"][-1] for description in page.descriptions]
    product, ours = (max(point[way] for point in last) for way in ("float32_product", "longeval"))
    return (
        f"Just before position {format_length(last[0]['positions'])}, the usual float32 product errs by up to "
        f"{_short(product)}, longeval by {_short(ours)}."
    )


def _mark_length(axes: Axes, length: int, what: str, *, left: bool) -> None:
    """Marks a length by a line with its name on the outer side, so that close lengths have room."""
    axes.axvline(length, color=_GUIDE, linewidth=1, linestyle=":" if what == "native" else "-.")
    axes.annotate(
        f"{what} {format_length(length)}",
        (length, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if left else 3, 0),
        textcoords="offset points",
        rotation=90,
        ha="right" if left else "left",
        va="top",
        **SMALL_TEXT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
