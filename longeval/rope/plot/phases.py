"""The panel of phases. It shows why a feature with a rounded wavelength has no gap.

At position m a feature has the phase m/λ mod 1, a fraction of a turn. Positions 0 … L−1 are seen in training. If the
wavelength is not an integer, later positions have phases between the seen ones; with an integer wavelength λ̃ ≤ L they
have exactly the seen phases. The idea is from Wang et al. 2024, arXiv 2403.00071.

Shapes: F features, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longeval.rope.base import FloatArray, IntArray
from longeval.rope.build import MethodName
from longeval.rope.plot.panels import SMALL_TEXT, Page, finish, headline
from longeval.values import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_NATIVE = 2**22
"""Longest native length that is drawn. Sorting the phases of more positions would take too long."""
_MOST_LENGTHS = 8
"""Positions are shown up to this multiple of the native length, so that the trained part stays visible."""
_ENOUGH_UNSEEN = 2**14
"""Size of the sample of unseen positions that is used to choose a feature."""
_MOST_UNSEEN = 2**18
"""Most unseen positions that are drawn; if there are more, a sample."""
_MOST_REPEATS = 3.0
_HOLE_SHARES = 30.0
"""Limits of the panel's width: this many periods of the rounded feature's phases, and this many times the distance
from the worst unseen phase to the nearest seen one."""
_NOISE_TURNS = 1e-9
"""Distances below this are rounding errors of float64."""
_MOST_DOTS = 1200
"""Most dots of each colour, which keeps an SVG small."""
_NAME_CHARACTERS = 38
_SEEN = "#4D5A66"
_BAND = "#C9D2DA"
_UNSEEN = "#E0001B"


def draw_phases(above: Axes, below: Axes, page: Page) -> None:
    """Draws the phases of one feature by position: unrounded in the upper half, rounded in the lower half.

    The upper half is centred on the unseen phase that is farthest from all seen ones, the lower half on the nearest
    phase of the rounded feature. Both halves have the same width.
    """
    native, end = page.native, _shown_end(page.descriptions[0])
    example = choose_example(page.descriptions)
    if example is None:
        _draw_nothing(above, below, native)
        return
    unseen_P = unseen_positions(native, end, _MOST_UNSEEN)
    distances_P = distances_to_seen(example.wavelength, native, unseen_P)
    farthest = float(distances_P.max(initial=0.0))
    worst_P = unseen_P[[distances_P.argmax()]] if unseen_P.size else np.array([0])
    centre = float(_phases(example.wavelength, worst_P)[0])
    falls_between = farthest > _NOISE_TURNS
    width = min(1.0, _MOST_REPEATS / example.period, _HOLE_SHARES * farthest if falls_between else 1.0)
    for axes, wavelength, middle, name in (
        (above, example.wavelength, centre, example.name),
        (below, example.resonant, round(centre * example.period) / example.period, example.rounded_name or "rounded"),
    ):
        _draw_half(axes, wavelength, unseen_P, native, middle, width)
        _finish_half(axes, native, end)
        _label_half(axes, f"{_fitting(name)}: wavelength {wavelength:.6g} tokens", under_headline=axes is above)
    _finish_phase_axis(below, width)
    above.tick_params(labelbottom=False)
    headline(above, 4, _headline(example, native, end, falls_between=falls_between), room=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A pre-critical feature whose phases are shown."""

    name: str
    """The method without rounding, or `NAME before rounding` if only its resonance form is drawn."""
    rounded_name: str | None
    """Its resonance form, if that is drawn."""
    feature: int
    """j."""
    wavelength: float
    """λ_j before rounding, tokens."""
    gap: float
    """Its feature gap before rounding, 0 … 2; from a sample of positions if only the resonance form is drawn."""

    period: int
    """Tokens after which it repeats in the resonance form; where that isn't drawn, λ_j rounded."""
    resonant: float
    """Its wavelength in that form, tokens: the period, or a part of it where it turns several times."""


def choose_example(descriptions: Sequence[Mapping[str, Any]]) -> Example | None:
    """Chooses the pre-critical feature with the largest gap before rounding.

    Methods that are drawn both with and without resonance come first, then methods without it. For methods that are
    drawn only with resonance, the wavelengths before rounding are restored.

    Returns:
        The feature; None if no feature is pre-critical or the native length has too many phases to draw.
    """
    if int(descriptions[0]["native_length"]) > _LONGEST_NATIVE:
        return None
    forms = {item["name"]: item for item in descriptions if item["periods"] is not None}
    plain = [item for item in descriptions if item["unique_positions"] is None]
    pairs = [item for item in plain if MethodName(base=item["name"], resonance=True).canonical in forms]
    rounded = [item for item in descriptions if item["unique_positions"] is not None]
    examples: list[Example] = []
    for candidates in (pairs, plain, rounded):
        for description in candidates:
            examples += _examples(description, forms)
        if any(example.gap > 0 for example in examples):
            break
    return max(examples, key=lambda example: example.gap, default=None)


def _examples(description: Mapping[str, Any], forms: Mapping[str, Mapping[str, Any]]) -> Iterator[Example]:
    """Yields a method's pre-critical features with their values before rounding; `forms` are the resonance forms."""
    name, rounded = description["name"], description["unique_positions"] is not None
    form = name if rounded else MethodName(base=name, resonance=True).canonical
    native = int(description["native_length"])
    unseen_P = unseen_positions(native, _shown_end(description), _ENOUGH_UNSEEN)
    wavelengths_F = np.array(description["wavelengths"]) / (1.0 + np.array(description["rounding_errors"]))
    for j in np.flatnonzero((wavelengths_F <= native) & (np.rint(wavelengths_F) >= 1)):
        wavelength = float(wavelengths_F[j])
        gap = float(description["feature_gaps"][j])
        if rounded and unseen_P.size:
            gap = 2.0 * math.sin(math.pi * float(distances_to_seen(wavelength, native, unseen_P).max()))
        period, resonant = round(wavelength), float(round(wavelength))
        if form in forms:
            period, resonant = int(forms[form]["periods"][j]), float(forms[form]["wavelengths"][j])
        yield Example(
            name=f"{name} before rounding" if rounded else name,
            rounded_name=form if form in forms else None,
            feature=int(j),
            wavelength=wavelength,
            gap=gap,
            period=period,
            resonant=resonant,
        )


def distances_to_seen(wavelength: float, native: int, unseen_P: IntArray) -> FloatArray:
    """Distance of each position's phase from the nearest phase of positions 0 … L−1, in turns, shape (P,)."""
    seen_P = np.sort(_phases(wavelength, np.arange(native)))
    phases_P = _phases(wavelength, unseen_P)
    right_P = np.searchsorted(seen_P, phases_P)
    return np.minimum((phases_P - seen_P[right_P - 1]) % 1, (seen_P[right_P % native] - phases_P) % 1)


def _phases(wavelength: float, positions_P: IntArray) -> FloatArray:
    """Phases m/λ mod 1 in turns, shape (P,); they repeat exactly for an integer wavelength."""
    return np.asarray((positions_P % wavelength) / wavelength)


def _shown_end(description: Mapping[str, Any]) -> int:
    """The end of the positions that are shown, exclusive."""
    native, factor = int(description["native_length"]), float(description["factor"])
    return min(round(factor * native), _MOST_LENGTHS * native)


def unseen_positions(native: int, end: int, most: int) -> IntArray:
    """Positions L … end−1, or a fixed random sample of them. Regular steps could coincide with the wavelength."""
    if end - native <= most:
        return np.arange(native, end)
    return np.unique(np.random.default_rng(0).integers(native, end, most))


def seen_intervals(phases_P: FloatArray, resolution: float) -> list[tuple[float, float]]:
    """Intervals of phases, ascending: [(first, last), …]. Phases closer than the resolution are joined."""
    sorted_P = np.sort(phases_P)
    groups = np.split(sorted_P, np.flatnonzero(np.diff(sorted_P) > resolution) + 1)
    return [(float(group_P[0]), float(group_P[-1])) for group_P in groups if group_P.size]


def _draw_half(axes: Axes, wavelength: float, unseen_P: IntArray, native: int, middle: float, width: float) -> None:
    """Draws dots at (phase from the middle, position), and the seen phases as bands over all positions."""
    random = np.random.default_rng(0)
    for positions_P, colour in ((np.arange(native), _SEEN), (unseen_P, _UNSEEN)):
        x_P = (_phases(wavelength, positions_P) - middle + 0.5) % 1 - 0.5
        shown_P = np.flatnonzero(np.abs(x_P) <= width / 2)
        if colour == _SEEN:
            for start, stop in seen_intervals(x_P[shown_P], width / 300):
                axes.axvspan(start, stop, facecolor=_BAND, edgecolor=_BAND, linewidth=2, zorder=1)
        if shown_P.size > _MOST_DOTS:
            shown_P = np.sort(random.choice(shown_P, _MOST_DOTS, replace=False))
        size = 2 if shown_P.size > 100 else 3.5
        dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": size, "markeredgewidth": 0, "zorder": 3}
        axes.plot(x_P[shown_P], positions_P[shown_P], color=colour, **dots)


def _finish_half(axes: Axes, native: int, end: int) -> None:
    """Draws the vertical axis, and a line at the native length."""
    finish(axes, "", "position")
    axes.grid(visible=False)
    # Unseen positions take at least a quarter of the height; the bands still show all seen phases.
    start = max(0, native - 3 * (end - native)) if end > native else 0
    axes.set_ylim(start, end)
    axes.axhline(native, color=_SEEN, linewidth=1, linestyle=":")
    ticks = sorted({start, native, end})
    axes.set_yticks(ticks, [format_length(tick) if tick else "0" for tick in ticks])


def _label_half(axes: Axes, text: str, *, under_headline: bool) -> None:
    """Writes a label above the axes; in the upper half it goes below the headline, which leaves room for it."""
    if not under_headline:
        axes.set_title(text, loc="left", **SMALL_TEXT, pad=4)
        return
    label = axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", **SMALL_TEXT
    )
    # A long label must not make the axes narrower.
    label.set_in_layout(False)


def _finish_phase_axis(axes: Axes, width: float) -> None:
    """Draws the horizontal axis, which both halves share."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-width / 2, width / 2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("phase, counted from the middle (fraction of a turn)", fontsize=9.5)


def _fitting(name: str) -> str:
    """A name, shortened to fit on a line."""
    return name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…"


def _headline(example: Example, native: int, end: int, *, falls_between: bool) -> str:
    """The headline: where the phases of unseen positions lie."""
    feature = f"feature {example.feature} of {_fitting(example.name)}"
    if end <= native:
        return f"All positions of {feature} up to the target are seen in training."
    if not falls_between:
        return f"Past {format_length(native)}, {feature} (red) falls on phases seen in training (grey)."
    return (
        f"Why: past {format_length(native)}, {feature} (red) falls between phases seen in training (grey); "
        "rounded, it falls on them."
    )


def _draw_nothing(above: Axes, below: Axes, native: int) -> None:
    """Writes the reason why there are no phases to draw."""
    for axes in (above, below):
        axes.set_axis_off()
    if native > _LONGEST_NATIVE:
        text = f"A native length of {format_length(native)} has too many phases to draw."
    else:
        text = f"No feature turns once within the native {format_length(native)} tokens: none could repeat itself."
    headline(above, 4, text)
