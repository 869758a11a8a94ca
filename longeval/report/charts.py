"""Charts as plain data: panels with lines or a heat map, which each format draws in its own way.

`report.plots` draws them as still pictures with matplotlib, the HTML page as charts that answer to the pointer. A study
says what is shown; neither drawing knows a study.

Shapes: K points of a line; I rows and J columns of a heat map.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

WIDTH_INCHES = 6.4
"""Width of most pictures: on a page of LaTeX's `article`, whose lines are 4.8 inches long, text of 9 points is 6.7
points."""

Dash = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineStyle:
    """How a line looks. A method and its resonance form share a colour and differ in dash."""

    colour: str
    """`#RRGGBB`."""
    dash: Dash = "solid"
    width: float = 1.8
    """In points."""
    marker: str = ""
    """matplotlib's letter; empty: no marker."""
    marker_size: float = 5.5
    """In points."""
    is_hollow: bool = False
    """Its markers are filled with the colour of the paper."""
    opacity: float = 1.0
    """0 to 1."""
    is_above: bool = False
    """It is drawn on top of the lines that aren't."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line with K points, with or without intervals."""

    label: str
    """Name of the line in the legend; lines of equal label in several panels have one entry and are hidden together."""
    style: LineStyle
    x: tuple[float, ...]
    """Shape (K,)."""
    y: tuple[float | None, ...]
    """Shape (K,); None breaks the line."""
    low: tuple[float | None, ...] = ()
    """Lower ends of intervals, shape (K,), or empty where there are none."""
    high: tuple[float | None, ...] = ()
    """Upper ends."""
    interval: Literal["bars", "band", "hover"] = "bars"
    """How intervals are shown: bars at each point, a band, or only where the pointer is (not in still pictures)."""
    places: tuple[str, ...] = ()
    """What the place of each point is called, shape (K,), where it may be drawn aside of it; empty: as its x."""
    notes: tuple[str, ...] = ()
    """What else is known of each point (`n 20, 4,000 tokens`), shape (K,), or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A straight line across a panel: the native length, the score of guessing. A panel shows no more for its sake."""

    axis: Literal["x", "y"]
    at: float
    label: str
    """Empty: no label."""
    in_legend: bool = False
    """Its label stands in the legend, not at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis of a panel."""

    title: str
    scale: Literal["linear", "log"] = "linear"
    span: tuple[float, float] | None = None
    """What it shows; None: all points."""
    ticks: tuple[tuple[float, str], ...] = ()
    """Places with their labels; empty: whatever the drawing chooses."""
    is_whole: bool = False
    """Where the drawing chooses ticks: whole numbers only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """A panel of I × J fields, each with a colour and a number."""

    columns: tuple[str, ...]
    """Labels, shape (J,)."""
    rows: tuple[str, ...]
    """Labels from above, shape (I,)."""
    values: tuple[tuple[float | None, ...], ...]
    """Shape (I, J); None: nothing is known."""
    texts: tuple[tuple[str, ...], ...]
    """The number that stands in each field, shape (I, J)."""
    notes: tuple[tuple[str, ...], ...]
    """What stands below it in small print (`n 20`), shape (I, J)."""
    low: float
    """The value of the darkest colour of the scale."""
    high: float
    """The value of the lightest colour."""
    quantity: str
    """What the values are, beside the scale: `Mean accuracy`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes with lines, or one heat map."""

    x: Axis
    y: Axis
    title: str = ""
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    heat_map: HeatMap | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One or several panels under one title, with one legend."""

    title: str
    panels: tuple[Panel, ...]
    """Row by row."""
    columns: int = 1
    """Number of panels in a row."""
    panel_width: float = WIDTH_INCHES
    """Width of a panel in still pictures, inches; the page chooses by the width of the window."""
    panel_height: float = 3.4
    """Height of a panel, inches."""
    share_x: bool = False
    """All panels show the same part of their x axes."""
    share_y: Literal["", "all", "row"] = ""
    """Panels that show the same part of their y axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A chart as a still picture, in each format that a file beside the report has; the fields are their suffixes."""

    png: bytes
    svg: bytes
    pdf: bytes


PICTURE_FORMATS = tuple(field.name for field in fields(Picture))
"""Suffixes of the files of a figure."""
