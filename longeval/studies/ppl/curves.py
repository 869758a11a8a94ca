"""Perplexity by context length and by position in the window: the figures, and the numbers by position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter

from longeval.report import plots
from longeval.report.collect import Collection
from longeval.report.document import Block, Data, Figure, Paragraph, Picture, prose
from longeval.report.plots import (
    length_axis,
    line_style,
    native_line,
    new_figure,
    perplexity_axis,
    plain_axes,
    title_and_legend,
)
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
    picture = position_curve(grid, positions.length, positions.curves)
    yield Figure(name=f"position-{slug}", description="Perplexity by position in the window", picture=picture)


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


def length_curve(grid: Grid) -> Picture | None:
    """Perplexity by context length, one line per row; None with values at fewer than two lengths."""
    values = [record.value for record in grid.records if record.value is not None]
    if len({record.length for record in grid.records if record.value is not None}) < 2:
        return None
    figure = new_figure()
    axes = plain_axes(figure.add_subplot())
    styles = []
    for row in grid.rows:
        points = [(length, row.cells[length].value) for length in grid.lengths if length in row.cells]
        # A failed cell breaks the line: what lies between its neighbours is not known.
        y = [math.nan if value is None else value for _, value in points]
        styles.append(line_style(row, grid.rows, with_marker=True))
        axes.plot([length for length, _ in points], y, **styles[-1])
    axes.set_xlabel("Context length (tokens)")
    length_axis(axes, grid.lengths)
    perplexity_axis(axes, values)
    native_line(axes, grid.native_length)
    title_and_legend(figure, grid.title, styles)
    return plots.render(figure)


def position_curve(grid: Grid, length: int, curves: Sequence[tuple[GridRow, PositionCurve]]) -> Picture:
    """Perplexity of the tokens at each position of a window of `length` tokens, one line per row."""
    figure = new_figure()
    axes = plain_axes(figure.add_subplot())
    shown = []
    styles = []
    for row, curve in curves:
        perplexity_K = np.exp(np.minimum(curve.mean_nll_K, 700.0))
        centre_K = (curve.edges_K1[:-1] + curve.edges_K1[1:]) / 2
        held_K = np.isfinite(perplexity_K)
        styles.append(line_style(row, grid.rows, with_marker=False))
        axes.plot(centre_K[held_K], perplexity_K[held_K], **styles[-1])
        shown.extend(perplexity_K[held_K].tolist())
    axes.set_xlabel(f"Position in a window of {format_length(length)} tokens")
    axes.set_xlim(0, length)
    step = max(1, 2 ** math.ceil(math.log2(length / 8)))
    axes.xaxis.set_major_locator(FixedLocator(range(0, length + 1, step)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_length(round(x)) if x else "0"))
    perplexity_axis(axes, shown)
    native_line(axes, grid.native_length)
    title_and_legend(figure, grid.title, styles)
    return plots.render(figure)
