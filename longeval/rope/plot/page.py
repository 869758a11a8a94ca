"""What all panels share: the methods that are drawn, their styles, and the look of an axis."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHADE = "#EEF3F8"
"""Background of what is pre-critical."""
GUIDE = "#777777"
"""Colour of lines that mark a length or a factor."""
SMALL_TEXT: dict[str, Any] = {"fontsize": 8.5, "color": "#555555"}
_HEADLINE_CHARACTERS = 58


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
        fits = [
            [
                length / (1 + error) <= self.native
                for length, error in zip(item["wavelengths"], item["rounding_errors"], strict=True)
            ]
            for item in self.descriptions
        ]
        return [all(feature) for feature in zip(*fits, strict=True)]

    def curves(self, key: str) -> Iterator[tuple[Sequence[float], dict[str, Any]]]:
        """Yields a per-feature key of every method with its style; at most about 20 features have markers."""
        for index, (description, style) in enumerate(zip(self.descriptions, self.styles, strict=True)):
            step = max(1, len(description[key]) // 20)
            # One feature alone makes no line.
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


def short(number: float) -> str:
    """A number with two digits, as 3e-8 rather than 3e-08."""
    return f"{number:.2g}".replace("e-0", "e-")
