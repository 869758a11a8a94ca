"""How methods look in all figures: a colour and a marker for each base method, which its resonance form shares.

The colours are those of Okabe & Ito (2008) without the yellow, which white paper swallows, and three more (two of Tol
2021 and a grey), so that readers with any colour vision can tell them apart; the markers tell them apart in print.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Look(NamedTuple):
    """How the lines of one base method look."""

    colour: str
    """`#RRGGBB`."""
    marker: str
    """matplotlib's letter."""


LOOKS = {
    "none": Look("#000000", "o"),
    "pi": Look("#E69F00", "s"),
    "ntk": Look("#56B4E9", "^"),
    "dynamic_ntk": Look("#0072B2", "v"),
    "ntk_by_parts": Look("#CC79A7", "D"),
    "yarn": Look("#D55E00", "P"),
    "dynamic_yarn": Look("#882255", "X"),
    "llama3": Look("#009E73", "<"),
    "longrope": Look("#999933", ">"),
    "abf": Look("#888888", "*"),
}
"""Base methods, roughly in the order of their publication."""

_SPARE_LOOKS = (Look("#332288", "h"), Look("#44AA99", "p"), Look("#AA4499", "d"), Look("#661100", "8"))
"""For methods that are not listed above."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of lines that share a colour: the same method with several factors or parameters."""

_LIGHTEST, _DARKEST = 0.4, 0.55
"""The largest shares of white and of black that `shade` mixes into a colour."""
_GREYEST = 0.55
"""The share of white in the lightest grey that `shade` makes of black."""


RESONANCE_PARAMETERS = {"max_period": "rounded"}
"""Parameters of resonance with their defaults. Records hold them, beside those of the method, where they differ."""


def base_method(pe: str) -> str:
    """Name of the method that a resonance form rounds: `resonance_yarn` → `yarn`, `resonance` → `none`."""
    return "none" if pe == "resonance" else pe.removeprefix("resonance_")


def is_resonance(pe: str) -> bool:
    """Whether a method name is a resonance form."""
    return pe == "resonance" or pe.startswith("resonance_")


def look_of(pe: str, every: Iterable[str]) -> Look:
    """The look of a method, the same in every figure; a method that `LOOKS` lacks gets a spare one.

    Args:
        pe: Name of the method.
        every: Names of all methods of the figure, which decide who has which spare look.
    """
    base = base_method(pe)
    if base in LOOKS:
        return LOOKS[base]
    unlisted = sorted({base_method(other) for other in every} - set(LOOKS))
    return _SPARE_LOOKS[unlisted.index(base) % len(_SPARE_LOOKS)]


def shade(colour: str, place: int, number: int) -> str:
    """One of `number` shades of a colour, from light (place 0) to dark, so that lines of one method can be told apart.

    Args:
        colour: `#RRGGBB`; of three shades it is the one in the middle, and black is the last one.
        place: Which one, from 0.
        number: How many there are; of one it is the colour itself.
    """
    if colour == "#000000":  # nothing is darker, so all shades but the last are greys
        level = round(255 * _GREYEST * (1 - place / max(1, number - 1))) if number > 1 else 0
        return f"#{level:02X}{level:02X}{level:02X}"
    towards_dark = 0.0 if number == 1 else (2 * place / (number - 1) - 1) * (0.6 if number == 2 else 1.0)
    share, end = (-towards_dark * _LIGHTEST, 255) if towards_dark < 0 else (towards_dark * _DARKEST, 0)
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (end - part)):02X}" for part in parts)
