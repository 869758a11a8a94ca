"""The panels by feature: wavelength, interpolation and feature gap, one curve for each method.

Every panel draws a key of `analysis.describe` as it is, and words its headline from the numbers at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longeval.rope.page import GUIDE, SHADE, Page, finish, headline, short
from longeval.values import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_wavelengths(axes: Axes, page: Page) -> None:
    """λ̃ by feature, with the native and the target length; wavelengths up to the native length are shaded."""
    for wavelengths_F, style in page.curves("wavelengths"):
        axes.plot(wavelengths_F, **style)
    values = page.values("wavelengths")
    axes.set_yscale("log")
    axes.set_ylim(min(*values, page.native) / 2, max(*values, page.target) * 2)
    axes.axhspan(axes.get_ylim()[0], page.native, color=SHADE, zorder=0)
    _feature_axis(axes, page)
    finish(axes, "feature j", "wavelength (tokens)")
    axes.axhline(page.native, color=GUIDE, linewidth=1, linestyle=":")
    # Below and above their lines, so that close lengths don't write on each other.
    _say(axes, f"native {format_length(page.native)}", (0.015, page.native), (0, -2), "top")
    if page.target > page.native:
        axes.axhline(page.target, color=GUIDE, linewidth=1, linestyle="-.")
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
    """θ/θ̃ by feature: 1 where a method leaves a feature alone, s where it interpolates fully."""
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
    axes.axhline(1, color=GUIDE, linewidth=1, linestyle=":")
    text = "How far each method stretches each wavelength: 1 leaves it as it is"
    if page.factor > 1:
        axes.axhline(page.factor, color=GUIDE, linewidth=1, linestyle="-.")
        text += f", {page.factor:g} is the whole factor s"
    headline(axes, 2, f"{text}.")


def draw_gaps(axes: Axes, page: Page) -> None:
    """Feature gap by feature, linear near 0 so that an exact 0 has a place."""
    for gaps_F, style in page.curves("feature_gaps"):
        axes.plot(gaps_F, **style, clip_on=False)
    positive = [gap for gap in page.values("feature_gaps") if gap > 0]
    for first, last in _runs(page.pre_critical_in_all()):
        axes.axvspan(first - 0.5, last + 0.5, color=SHADE, zorder=0)
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
    """What the largest gaps of pre-critical features say about rounding."""
    if page.target <= page.native:
        return "No gaps: the target is the native length, so no position is unseen."
    told = [description for description in page.descriptions if description["pre_critical"]]
    if not told:
        return "No feature is pre-critical: no wavelength fits into the native length."
    plain = [description["feature_gap"] for description in told if description["unique_positions"] is None]
    rounded = [description["feature_gap"] for description in told if description["unique_positions"] is not None]
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
    """A largest gap in words; only a true 0 is called exact."""
    return "exactly 0" if gap == 0 else f"up to {short(gap)}"


def _feature_axis(axes: Axes, page: Page) -> None:
    """Whole features from edge to edge."""
    from matplotlib.ticker import MaxNLocator

    num_features = len(page.descriptions[0]["wavelengths"])
    room = max(0.5, 0.02 * num_features)
    axes.set_xlim(-room, num_features - 1 + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1, steps=[1, 2, 4, 5, 8, 10]))


def _say(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], va: Any) -> None:
    """A few words at a height of the data, by the left edge."""
    axes.annotate(
        text,
        place,
        xycoords=("axes fraction", "data"),
        xytext=offset,
        textcoords="offset points",
        ha="left",
        va=va,
        fontsize=8.5,
        color="#555555",
    )
