"""Charts as figures of Plotly's: what the page's script hands to the library, in plain JSON types.

The page decides what depends on the reader: colours of the paper, and how many panels stand in a row. Plotly reads
`<b>`, `<br>` and `<a>` in every text, so each one is escaped here.

Shapes: K points of a line; I rows and J columns of a heat map.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from longeval.printable import printable
from longeval.report.charts import Axis, Chart, HeatMap, Line, Mark, Panel

_PIXELS_PER_POINT = 4 / 3
_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "d": "diamond-tall",
    "P": "cross",
    "X": "x",
    "*": "star",
    "h": "hexagon",
    "p": "pentagon",
    "8": "octagon",
}
"""Plotly's name of each marker of `longeval.looks`."""

_PAPER = "#ffffff"
"""What hollow markers are filled with; the page puts its own colour in its place."""
_BAND_OPACITY = 0.18
_FEW = 10
"""An axis of whole numbers that spans no more than this has a tick at each."""


def plotly_figure(chart: Chart) -> dict[str, Any]:
    """A chart as an object with Plotly's `data` and `layout`, and the number of `columns` that its author chose.

    Axes of panel p (from 1) are `xaxisP` and `yaxisP`, without the number for the first. They have no `domain`: the
    page sets it. Traces of equal label have one `legendgroup`. The first of them has `showlegend`.
    """
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"title": {"text": escaped(chart.title)}, "shapes": [], "annotations": []}
    maps: list[tuple[float, float, str]] = []
    for number, panel in enumerate(chart.panels, start=1):
        suffix = "" if number == 1 else str(number)
        first_in_row = (number - 1) // chart.columns * chart.columns + 1
        leader = {"": number, "all": 1, "row": first_in_row}[chart.share_y]
        layout[f"xaxis{suffix}"] = _axis(panel.x, "x", number, 1 if chart.share_x else number)
        layout[f"yaxis{suffix}"] = _axis(panel.y, "y", number, leader)
        layout["shapes"] += [_mark_line(mark, suffix) for mark in panel.marks]
        layout["annotations"] += [*_labels_above(panel, suffix)]
        for line in panel.lines:
            data += _line(line, panel, suffix)
        if panel.heat_map is not None:
            scale = panel.heat_map.low, panel.heat_map.high, panel.heat_map.quantity
            maps += [] if scale in maps else [scale]
            data.append(_heat_map(panel.heat_map, panel, suffix, _scale_name(maps.index(scale))))
            layout[f"xaxis{suffix}"] |= _names(panel.heat_map.columns)
            layout[f"yaxis{suffix}"] |= _names(panel.heat_map.rows) | {"autorange": "reversed"}
    for number, scale in enumerate(maps):
        layout[_scale_name(number)] = _colours(*scale, is_first=number == 0)
    _name_once(data)
    return {"data": data, "layout": layout, "columns": chart.columns}


def escaped(text: str) -> str:
    """A text that Plotly shows as it is, in one line; between dollars it would look for formulas."""
    return html.escape(printable(" ".join(text.split())), quote=False).replace("$", "&#36;")


def number_text(value: float) -> str:
    """`6.05`, `0.85`, `12,345`, `1.057e+05`: a number where the pointer is."""
    if value.is_integer() and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """JSON has no infinity and no NaN: such a point is left out."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


# Axes.


def _axis(axis: Axis, letter: str, number: int, leader: int) -> dict[str, Any]:
    """One axis of panel `number`; it shows the same part as that of panel `leader`."""

    def name(letter: str, number: int) -> str:
        return f"{letter}{'' if number == 1 else number}"

    found: dict[str, Any] = {
        "anchor": name("y" if letter == "x" else "x", number),
        "title": {"text": escaped(axis.title)},
        "type": axis.scale,
    }
    if leader != number:
        found["matches"] = name(letter, leader)
    if axis.span is not None:
        found["range"] = [math.log10(end) for end in axis.span] if axis.scale == "log" else list(axis.span)
    if axis.ticks:
        found["tickvals"] = [place for place, _ in axis.ticks]
        found["ticktext"] = [escaped(label) for _, label in axis.ticks]
    elif axis.is_whole:
        found["tickformat"] = ",d"
        if axis.span is not None and axis.span[1] - axis.span[0] <= _FEW:
            found["dtick"] = 1
    return found


def _names(labels: Sequence[str]) -> dict[str, Any]:
    """An axis whose places are numbered from 0, so that equal labels stay apart."""
    return {"type": "linear", "tickvals": [*range(len(labels))], "ticktext": [*map(escaped, labels)]}


def _mark_line(mark: Mark, suffix: str) -> dict[str, Any]:
    """A dotted line across a panel; one across the y axis has its label at its end."""
    other = "y" if mark.axis == "x" else "x"
    line = {f"{mark.axis}0": mark.at, f"{mark.axis}1": mark.at, f"{other}0": 0, f"{other}1": 1}
    refs = {f"{mark.axis}ref": f"{mark.axis}{suffix}", f"{other}ref": f"{other}{suffix} domain"}
    found = {"type": "line", "layer": "below", **line, **refs, "line": {"dash": "dot", "width": 1.2}}
    if mark.axis == "y" and mark.label:
        found["label"] = {"text": escaped(mark.label), "textposition": "end", "yanchor": "bottom", "font": {"size": 11}}
    return found


def _labels_above(panel: Panel, suffix: str) -> Iterator[dict[str, Any]]:
    """The title of a panel, and below it the labels of marks of its x axis."""
    common = {"yref": f"y{suffix} domain", "y": 1, "yanchor": "bottom", "showarrow": False}
    marks = [mark for mark in panel.marks if mark.axis == "x" and mark.label]
    for mark in marks:
        place = math.log10(mark.at) if panel.x.scale == "log" else mark.at
        yield {**common, "xref": f"x{suffix}", "x": place, "text": escaped(mark.label), "font": {"size": 11}}
    if panel.title:
        title = {"text": f"<b>{escaped(panel.title)}</b>", "xref": f"x{suffix} domain", "x": 0, "xanchor": "left"}
        yield {**common, **title, "yshift": 16 if marks else 2, "font": {"size": 12}}


# Lines.


def _line(line: Line, panel: Panel, suffix: str) -> Iterator[dict[str, Any]]:
    """The trace of a line, with the band around it before it."""
    style = line.style
    y, low, high = map(_finite, (line.y, line.low, line.high))
    common = {
        "type": "scatter",
        "name": escaped(line.label),
        "legendgroup": escaped(line.label),
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "zorder": int(style.is_above),
    }
    if line.interval == "band" and low:
        x, around = _band(line.x, low, high)
        fill = {"mode": "lines", "fill": "toself", "fillcolor": style.colour, "line": {"width": 0}}
        yield {**common, **fill, "x": x, "y": around, "opacity": _BAND_OPACITY, "hoverinfo": "skip"}
    trace: dict[str, Any] = {
        **common,
        "mode": "lines+markers" if style.marker else "lines",
        "x": list(line.x),
        "y": y,
        "opacity": style.opacity,
        "line": {
            "color": style.colour,
            "dash": {"solid": "solid", "dashed": "dash", "dotted": "dot"}[style.dash],
            "width": style.width * _PIXELS_PER_POINT,
        },
        "hoverinfo": "text",
        "hovertext": [_hover_text(line, panel, place, y, low, high) for place in range(len(line.x))],
    }
    if style.marker:
        trace["marker"] = {
            "symbol": _SYMBOLS.get(style.marker, "circle"),
            "size": style.marker_size * _PIXELS_PER_POINT,
            "color": _PAPER if style.is_hollow else style.colour,
            "line": {"color": style.colour, "width": 1.5 if style.is_hollow else 0},
        }
    if line.interval != "band" and low:
        trace["error_y"] = {
            "type": "data",
            "visible": line.interval == "bars",
            "symmetric": False,
            "array": _distances(y, high),
            "arrayminus": _distances(low, y),
            "color": style.colour,
            "thickness": 1.2,
            "width": 3,
        }
    yield trace


def _distances(lower: Sequence[float | None], upper: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else b - a for a, b in zip(lower, upper, strict=True)]


def _band(
    x_K: Sequence[float], low_K: Sequence[float | None], high_K: Sequence[float | None]
) -> tuple[list[float | None], list[float | None]]:
    """The outline of the area between two curves: one closed piece for each run of points, with gaps between."""
    points = [*zip(x_K, low_K, high_K, strict=True)]
    x: list[float | None] = []
    y: list[float | None] = []
    for is_known, run in itertools.groupby(points, lambda point: None not in point):
        if is_known:
            piece = [*run]
            around = [(place, low) for place, low, _ in piece] + [(place, high) for place, _, high in reversed(piece)]
            x += [*([None] if x else []), *(place for place, _ in around)]
            y += [*([None] if y else []), *(end for _, end in around)]
    return x, y


def _hover_text(
    line: Line,
    panel: Panel,
    place: int,
    y: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
) -> str:
    """What a point says of itself: its line, its place, its value with interval, and what else is known."""
    x, value = line.x[place], y[place]
    where = line.places[place] if line.places else dict(panel.x.ticks).get(x) or number_text(x)
    parts = [f"<b>{escaped(line.label)}</b>", _named(panel.x.title, where)]
    if value is not None:
        text = number_text(value)
        ends = (low[place], high[place]) if low else (None, None)
        if ends[0] is not None and ends[1] is not None:
            text += f" [{number_text(ends[0])}, {number_text(ends[1])}]"
        parts.append(_named(panel.y.title, text))
    parts += [escaped(line.notes[place])] if line.notes else []
    return "<br>".join(filter(None, parts))


def _named(title: str, text: str) -> str:
    return escaped(f"{title}: {text}" if title else text)


def _name_once(data: Sequence[dict[str, Any]]) -> None:
    """Gives the first line of each label its entry in the legend."""
    named = set()
    for trace in data:
        group = trace.get("legendgroup")
        is_entry = group is not None and "hovertext" in trace and group not in named
        trace["showlegend"] = is_entry
        named |= {group} if is_entry else set()


# Heat maps.


def _heat_map(found: HeatMap, panel: Panel, suffix: str, scale: str) -> dict[str, Any]:
    """The trace of a heat map, with a number in each field."""
    texts, hover = [], []
    for row, values, numbers, notes in zip(found.rows, found.values, found.texts, found.notes, strict=True):
        pairs = [*zip(found.columns, values, numbers, notes, strict=True)]
        texts.append(
            [f"{escaped(number)}<br>{escaped(note)}" if note else escaped(number) for *_, number, note in pairs]
        )
        hover.append(
            [
                "<br>".join(
                    filter(
                        None,
                        (
                            _named(panel.x.title, column),
                            _named(panel.y.title, row),
                            "" if value is None else _named(found.quantity, number),
                            escaped(note),
                        ),
                    )
                )
                for column, value, number, note in pairs
            ]
        )
    return {
        "type": "heatmap",
        "name": escaped(panel.title),
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "z": [_finite(row) for row in found.values],
        "text": texts,
        "texttemplate": "%{text}",
        "hovertext": hover,
        "hoverinfo": "text",
        "xgap": 2,
        "ygap": 2,
        "coloraxis": scale,
    }


def _scale_name(number: int) -> str:
    return "coloraxis" if number == 0 else f"coloraxis{number + 1}"


def _colours(low: float, high: float, quantity: str, *, is_first: bool) -> dict[str, Any]:
    """A scale that readers with any colour vision can read; the first one is shown beside the panels."""
    bar = {"title": {"text": escaped(quantity), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    return {"cmin": low, "cmax": high, "colorscale": "Cividis", "showscale": is_first, "colorbar": bar}
