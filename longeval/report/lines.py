"""How lines and axes of all charts are chosen: colours and markers of methods, axes of lengths and of perplexities.

A colour and a marker belong to a base method, in every chart; its resonance form has the same colour, dashed and with
hollow markers. The two often coincide, so the base of a pair is a wide pale line that the dashes can be seen on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longeval.looks import MARKERS, base_method, is_resonance, look_of, shade
from longeval.report.charts import Axis, Line, LineStyle, Mark
from longeval.report.numbers import counted, format_perplexity
from longeval.report.tables import GridRow, factor_text
from longeval.stats.bootstrap import FloatArray
from longeval.store.records import Record
from longeval.values import format_length

PALE = 0.4
"""Opacity of the base of a pair."""

_MARGIN = 0.05
"""What axes show beyond their points, as a share of the range of these."""
_LOG_FROM_RANGE = 10.0
"""An axis of perplexities or losses is logarithmic where the largest value is more than this times the smallest."""
_LEAST_RANGE = 0.01
"""A perplexity axis spans at least this share of its largest value, so that nearly equal values look so."""
_MOST_DECADES = 12
"""With more decades than these on an axis, not each has a label."""


def line_label(row: GridRow, rows: Sequence[GridRow]) -> str:
    """The name of a row's line, with its factor where rows of the method have several."""
    several = len({other.factor for other in rows if other.pe == row.pe}) > 1
    return f"{row.label} s={factor_text(row)}" if several else row.label


def line_style(row: GridRow, rows: Sequence[GridRow], *, with_marker: bool) -> LineStyle:
    """Colour and marker by base method; resonance forms are hollow and drawn on top, the paper's is dashed.

    Rows of one method with several factors or parameters have shades of its colour and markers of their own. So do
    resonance forms of one row whose features turn several times in a period; they are dotted.
    """
    look = look_of(row.pe, [other.pe for other in rows])
    setting = row.of_base, row.factor
    same = [other for other in rows if base_method(other.pe) == base_method(row.pe)]
    settings = list(dict.fromkeys((other.of_base, other.factor) for other in same))
    shades = len(settings)
    place = settings.index(setting)
    marker = look.marker if shades == 1 else MARKERS[place % len(MARKERS)]
    resonance = is_resonance(row.pe)
    forms = list(
        dict.fromkeys(
            other.method for other in same if is_resonance(other.pe) and (other.of_base, other.factor) == setting
        )
    )
    pale = not resonance and bool(forms)
    if resonance and len(forms) > 1:
        number = forms.index(row.method)
        markers = [marker, *(other for other in MARKERS if other != marker)]
        marker = markers[number % len(markers)]
        if shades == 1:  # otherwise the shade tells the settings of the method
            place, shades = number, len(forms)
    turns_once = row.method == row.of_base
    return LineStyle(
        colour=shade(look.colour, place, shades),
        dash=("dashed" if turns_once else "dotted") if resonance else "solid",
        width=4.0 if pale else 1.4 if resonance else 1.8,
        marker=marker if with_marker else "",
        marker_size=9.0 if pale else 5.5,
        is_hollow=resonance,
        opacity=PALE if pale else 1.0,
        is_above=resonance,
    )


def plain_value(value: float | None) -> float | None:
    """The value, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def record_note(record: Record) -> str:
    """What a point's value is a mean of: `12 documents, 24,576 tokens` or `n 20`."""
    if record.tokens is None:
        return "" if record.n is None else f"n {record.n:,}"
    documents = [] if record.documents is None else [counted(record.documents, "document")]
    return ", ".join([*documents, counted(record.tokens, "token")])


def record_line(label: str, style: LineStyle, records: Sequence[Record], aside: Sequence[float] = ()) -> Line:
    """The values of records by length with their intervals; one without a value breaks the line.

    Args:
        label: Name of the line.
        style: Its look.
        records: One for each length, ascending.
        aside: Where each is drawn, if not at its length: then intervals are bars, otherwise shown under the pointer.
    """
    return Line(
        label=label,
        style=style,
        x=tuple(aside) or tuple(record.length for record in records),
        y=tuple(plain_value(record.value) for record in records),
        low=tuple(plain_value(record.ci_low) for record in records),
        high=tuple(plain_value(record.ci_high) for record in records),
        interval="bars" if aside else "hover",
        places=tuple(format_length(record.length) for record in records),
        notes=tuple(map(record_note, records)),
    )


def seed_line(
    label: str, style: LineStyle, x: Sequence[float], ends_3K: Iterable[FloatArray], seeds: Sequence[int]
) -> Line:
    """A mean over seeds with a band from the lowest to the highest seed; without a band where there is one seed.

    Args:
        label: Name of the line.
        style: Its look.
        x: Where its K points are.
        ends_3K: Mean, lowest and highest value over seeds.
        seeds: Number of seeds of each point.
    """
    mean, low, high = (tuple(map(plain_value, values_K.tolist())) for values_K in ends_3K)
    several = max(seeds) > 1
    return Line(
        label=label,
        style=style,
        x=tuple(x),
        y=mean,
        low=low if several else (),
        high=high if several else (),
        interval="band",
        notes=tuple(counted(number, "seed") for number in seeds),
    )


def padded(values: Iterable[float], *, is_log: bool = False) -> tuple[float, float]:
    """The range of values with a margin on both sides; on a logarithmic axis they are positive."""
    found = list(values)
    low, high = min(found), max(found)
    if is_log:
        margin = (high / low) ** _MARGIN
        return low / margin, high * margin
    margin = _MARGIN * (high - low or abs(high) or 1.0)
    return low - margin, high + margin


def length_axis(lengths: Sequence[int], points: Iterable[float] = ()) -> Axis:
    """Ticks at the lengths that there are; logarithmic where they span more than two octaves.

    Args:
        lengths: Context lengths in tokens.
        points: Where points are drawn, if not just at lengths.
    """
    is_log = is_log_length(lengths)
    return Axis(
        title="Context length (tokens)",
        scale="log" if is_log else "linear",
        span=padded([*(points or lengths)], is_log=is_log),
        ticks=tuple((length, format_length(length)) for length in sorted(set(lengths))),
    )


def is_log_length(lengths: Sequence[int]) -> bool:
    """Whether the axis of these lengths is logarithmic."""
    return max(lengths) > 4 * min(lengths)


def beside(lengths: Sequence[int], every: Sequence[int], place: float) -> tuple[float, ...]:
    """Lengths moved a little aside, since intervals of methods that score alike would hide one another.

    Args:
        lengths: Lengths of one line.
        every: All lengths of the panel.
        place: Number of the line, counted from the middle one.
    """
    if is_log_length(every):
        return tuple(length * (max(every) / min(every)) ** (0.012 * place) for length in lengths)
    return tuple(length + 0.012 * place * (max(every) - min(every) or max(every)) for length in lengths)


def native_mark(axis: Axis, native_length: int | None) -> tuple[Mark, ...]:
    """A mark at the native length, where the axis, which has a span, shows it."""
    assert axis.span is not None
    if native_length is None or not axis.span[0] <= native_length <= axis.span[1]:
        return ()
    return (Mark(axis="x", at=native_length, label=f"native {format_length(native_length)}"),)


def perplexity_axis(values: Sequence[float], span: tuple[float, float] | None = None) -> Axis:
    """An axis of perplexities; logarithmic where `values`, all that is drawn, span more than a decade.

    Args:
        values: Perplexities.
        span: What the axis shows; None: all points.
    """
    low, high = min(values), max(values)
    if is_log_range(values):
        ticks = tuple((at, f"{at:g}" if at < 1e4 else format_perplexity(at)) for at in decades(low, high))
        return Axis(title="Perplexity", scale="log", span=span, ticks=ticks)
    if high - low < _LEAST_RANGE * high:
        middle = (low + high) / 2
        span = middle - 0.6 * _LEAST_RANGE * high, middle + 0.6 * _LEAST_RANGE * high
    return Axis(title="Perplexity", span=span)


def is_log_range(values: Sequence[float]) -> bool:
    """Whether positive values span more than a decade."""
    return max(values) > _LOG_FROM_RANGE * min(values)


def decades(low: float, high: float) -> list[float]:
    """Places of labels on a logarithmic axis: decades, and 2 and 5 times these where there are few.

    Decades alone would leave the range where working methods lie without a label.
    """
    number = math.log10(high / low)
    steps = (1, 2, 5) if number < 3 else (1,)
    every = max(1, math.ceil(number / _MOST_DECADES))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, every)
    return [step * 10.0**exponent for exponent in exponents for step in steps]
