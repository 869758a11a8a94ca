"""Perplexity by context length and by position in the window: the figures, and the numbers by position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longeval.report.charts import Axis, Chart, Line, Panel
from longeval.report.collect import Collection
from longeval.report.document import Block, Data, Figure, Paragraph, prose
from longeval.report.lines import (
    length_axis,
    line_label,
    line_style,
    native_mark,
    perplexity_axis,
    record_line,
)
from longeval.report.numbers import counted
from longeval.report.tables import Grid, GridRow
from longeval.stats.bootstrap import PositionCurve, by_position, position_edges
from longeval.values import format_length

_POSITION_BINS = 32
"""Equal bins over the window: narrow enough to show where a curve leaves, wide enough to hold many tokens each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """Curves by position at one length."""

    length: int
    curves: tuple[tuple[GridRow, PositionCurve], ...]
    documents: tuple[str, ...]
    """Names of the documents of the windows."""


def find_positions(grid: Grid, collection: Collection) -> Positions | None:
    """Curves by position at the longest length for which NLLs are stored; None where none are."""
    for length in reversed(grid.lengths):
        edges_K1 = position_edges(length, bins=_POSITION_BINS, spacing="linear")
        curves: list[tuple[GridRow, PositionCurve]] = []
        documents: dict[str, None] = {}
        for row in grid.rows:
            record = row.cells.get(length)
            if record is None or record.status != "ok":
                continue
            nll = collection.nll(record.cell)
            if nll is not None:
                documents |= dict.fromkeys(nll.documents[index] for index in sorted(set(nll.document_W.tolist())))
                curves.append((row, by_position(nll, edges_K1)))
        if curves:
            return Positions(length=length, curves=tuple(curves), documents=tuple(documents))
    return None


def position_blocks(grid: Grid, positions: Positions | None, slug: str, *, is_drawn: bool) -> Iterator[Block]:
    """How to read the curves by position and their figure, or that there are none."""
    if positions is None:
        yield Paragraph(text="No token-level NLLs are stored with these cells, so there is no curve by position.")
        return
    text = (
        f"Windows of {format_length(positions.length)} tokens; a token at position p was predicted from the p tokens "
        f"before it. Each point is a bin of about {max(1, round(positions.length / _POSITION_BINS)):,} positions."
    )
    if grid.protocol.startswith("sliding"):
        text += " Only the first window of a document is scored at its early positions, later ones only at their end."
    if not is_drawn:
        yield Paragraph(text=prose(f"{text} The numbers are in `positions.csv`."))
        return
    yield Paragraph(text=text)
    chart = position_curve(grid, positions.length, positions.curves)
    yield Figure(name=f"position-{slug}", description="Perplexity by position in the window", chart=chart)


def position_data(grid: Grid, positions: Positions | None) -> Data:
    """One row per method and position bin: mean NLL and perplexity of the tokens at positions from ≤ p < to."""
    if positions is None:
        return Data(name="positions", rows=())
    rows = [
        {
            "model": grid.model,
            "data": grid.data,
            "protocol": grid.protocol,
            "differs": grid.differs,
            "pe": method.label,
            "factor": method.factor,
            "length": positions.length,
            "from": int(curve.edges_K1[k]),
            "to": int(curve.edges_K1[k + 1]),
            "tokens": tokens,
            "mean_nll": mean if tokens else None,
            "perplexity": math.exp(min(mean, 700.0)) if tokens else None,
        }
        for method, curve in positions.curves
        for k, (mean, tokens) in enumerate(zip(curve.mean_nll_K.tolist(), curve.tokens_K.tolist(), strict=True))
    ]
    return Data(name="positions", rows=tuple(rows))


def length_curve(grid: Grid, quantity: str = "Perplexity") -> Chart | None:
    """A kind of perplexity by context length, one line per row; None with values at fewer than two lengths."""
    values = [record.value for record in grid.records if record.value is not None]
    if len({record.length for record in grid.records if record.value is not None}) < 2:
        return None
    axis = length_axis(grid.lengths)
    lines = [
        record_line(
            line_label(row, grid.rows),
            line_style(row, grid.rows, with_marker=True),
            [row.cells[length] for length in grid.lengths if length in row.cells],
        )
        for row in grid.rows
    ]
    panel = Panel(
        x=axis,
        y=replace(perplexity_axis(values), title=quantity),
        lines=tuple(lines),
        marks=native_mark(axis, grid.native_length),
    )
    return Chart(title=grid.title, panels=(panel,))


def position_curve(grid: Grid, length: int, curves: Sequence[tuple[GridRow, PositionCurve]]) -> Chart:
    """Perplexity of the tokens at each position of a window of `length` tokens, one line per row."""
    lines = [_position_line(row, curve, grid) for row, curve in curves]
    step = max(1, 2 ** math.ceil(math.log2(length / 8)))
    axis = Axis(
        title=f"Position in a window of {format_length(length)} tokens",
        span=(0, length),
        ticks=tuple((at, format_length(at) if at else "0") for at in range(0, length + 1, step)),
    )
    panel = Panel(
        x=axis,
        y=perplexity_axis([value for line in lines for value in line.y if value is not None]),
        lines=tuple(lines),
        marks=native_mark(axis, grid.native_length),
    )
    return Chart(title=f"By position: {grid.title}", panels=(panel,))


def _position_line(row: GridRow, curve: PositionCurve, grid: Grid) -> Line:
    """Perplexities at the centres of bins, without bins that hold no token."""
    held_K = np.isfinite(curve.mean_nll_K)
    return Line(
        label=line_label(row, grid.rows),
        style=line_style(row, grid.rows, with_marker=False),
        x=tuple(((curve.edges_K1[:-1] + curve.edges_K1[1:]) / 2)[held_K].tolist()),
        y=tuple(np.exp(np.minimum(curve.mean_nll_K[held_K], 700.0)).tolist()),
        notes=tuple(counted(tokens, "token") for tokens in curve.tokens_K[held_K].tolist()),
    )
