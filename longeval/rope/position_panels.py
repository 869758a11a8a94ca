"""The panels by distance and by position: attention decay, and the error of cos and sin in floating point.

Decay: cos(distance · θ̃) is what a feature adds to the logit of equal query and key vectors, Su et al. 2021 (arXiv
2104.09864), section 3.4.3. Every panel draws a key of `analysis.describe`, and words its headline from the numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from longeval.rope.page import GUIDE, Page, finish, headline, short
from longeval.values import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WAYS = {"float32_product": "float32 product", "bfloat16_inv_freq": "bfloat16 inv_freq", "longeval": "longeval"}
_LEAST_POWER = -12
"""Of ten, on the axis of errors; what is smaller, and an exact 0, is drawn on a linear part below."""


def draw_decay(axes: Axes, page: Page) -> None:
    """Mean over features of cos(distance · θ̃) by distance; distance 0, where it is 1, has no place on a log axis."""
    from matplotlib.ticker import NullLocator

    longest, lowest = 1, 0.0
    for description, style in zip(page.descriptions, page.styles, strict=True):
        decay = description["decay"]
        points = [point for point in zip(decay["distances"], decay["mean_cos"], strict=True) if point[0] > 0]
        distances, means = [distance for distance, _ in points], [mean for _, mean in points]
        # Thinner than elsewhere: these curves go up and down a lot.
        axes.plot(distances, means, **dict(style) | {"marker": None, "linewidth": style["linewidth"] / 1.6})
        longest, lowest = max([longest, *distances]), min([lowest, *means])
    axes.set_xscale("log", base=2)
    # Room on the right for the length that is written along its line.
    axes.set_xlim(0.9, longest * 2)
    axes.set_ylim(lowest - 0.05, 1.04)
    powers = range(0, math.floor(math.log2(longest)) + 1, max(1, math.ceil(math.log2(longest) / 9)))
    axes.set_xticks([2**power for power in powers], [format_length(2**power) for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())
    finish(axes, "distance (tokens)", "mean cos over features")
    axes.axhline(0, color=GUIDE, linewidth=0.8)
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
    """The largest errors at the last position."""
    last = [description["precision"][-1] for description in page.descriptions]
    product, ours = (max(point[way] for point in last) for way in ("float32_product", "longeval"))
    return (
        f"Just before position {format_length(last[0]['positions'])}, the usual float32 product errs by up to "
        f"{short(product)}, longeval by {short(ours)}."
    )


def _mark_length(axes: Axes, length: int, what: str, *, left: bool) -> None:
    """A line across the distances, with what it is along it: on the outer side, so that close lengths have room."""
    axes.axvline(length, color=GUIDE, linewidth=1, linestyle=":" if what == "native" else "-.")
    axes.annotate(
        f"{what} {format_length(length)}",
        (length, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if left else 3, 0),
        textcoords="offset points",
        rotation=90,
        ha="right" if left else "left",
        va="top",
        fontsize=8.5,
        color="#555555",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
