"""What a report says of LongPPL: its table beside that of perplexity, and each method against its resonance form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from longeval.report.changes import change_cell, resampled_as
from longeval.report.collect import Collection
from longeval.report.document import Block, Figure, Heading, Table, TableCell, prose
from longeval.report.numbers import counted
from longeval.report.tables import (
    DASH,
    Grid,
    build_grids,
    length_columns,
    method_row,
    method_rows_of,
    outcome_lines,
    resonance_pairs,
    value_cell,
)
from longeval.stats.bootstrap import paired
from longeval.store.keys import KEY_NLL, KeyNll
from longeval.store.records import Record
from longeval.studies.ppl.curves import length_curve

LONG_PPL = "long_ppl"


def summary(records: Sequence[Record]) -> list[Table]:
    """Tables for the terminal."""
    return [replace(long_ppl_table(grid), title=f"LongPPL: {grid.title}") for grid in build_grids(records, LONG_PPL)]


def long_ppl_grids(collection: Collection) -> list[Grid]:
    """The tables of LongPPL."""
    return build_grids(collection.made_from(KEY_NLL), LONG_PPL)


def long_ppl_blocks(
    grid: Grid, others: Sequence[Grid], slug: str, collection: Collection, *, is_drawn: bool
) -> list[Block]:
    """The tables and figures of LongPPL that belong to a table of perplexity.

    Args:
        grid: The table of perplexity.
        others: All tables of LongPPL.
        slug: Names `grid` in references.
        collection: The cells of the report.
        is_drawn: Whether there are figures.

    Returns:
        A heading, tables and figures; nothing where LongPPL was not asked for.
    """
    cells = {record.cell for record in grid.records}
    own = [other for other in others if any(record.params.get("perplexity_cell") in cells for record in other.records)]
    blocks: list[Block] = []
    for number, other in enumerate(own, start=1):
        name = slug if number == 1 else f"{slug}-{number}"
        blocks += [Heading(text="LongPPL"), long_ppl_table(other, f"long-{name}")]
        if is_drawn and (chart := length_curve(other, "LongPPL")) is not None:
            chart = replace(chart, title=f"LongPPL: {chart.title}")
            blocks.append(Figure(name=f"long_ppl-{name}", description="LongPPL by context length", chart=chart))
        if (pairs := _pair_table(other, f"long-pairs-{name}", collection)) is not None:
            blocks += [Heading(text="LongPPL: resonance against its base"), pairs]
    return blocks


def long_ppl_table(grid: Grid, label: str = "") -> Table:
    """LongPPLs with their intervals and numbers of key tokens, the best of each length in bold."""
    return Table(
        columns=length_columns(["method"], grid.lengths),
        rows=method_rows_of(grid.rows, grid.lengths, lambda record: _cell(grid, record)),
        title=grid.title,
        caption=prose(f"{_caption(grid)}.", grid.records[0].params["key"]["model"]),
        notes=tuple(outcome_lines(grid.rows, grid.lengths)),
        label=label,
    )


def _cell(grid: Grid, record: Record | None) -> TableCell:
    cell = value_cell(record, is_best=record is not None and grid.is_best(record))
    if record is None or record.tokens is None:
        return cell
    return TableCell(text=cell.text, interval=cell.interval, note=f"(n {record.tokens:,})", is_strong=cell.is_strong)


def _caption(grid: Grid) -> str:
    """What the numbers are, with a place for the evaluator's name."""
    key: dict[str, Any] = grid.records[0].params["key"]
    text = (
        "LongPPL (Fang et al. 2024; lower is better): perplexity over the key tokens (n), which `{}` predicts by more "
        f"than α = {key['alpha']:g} nats better with the whole text before them than with {key['context']:,} to "
        f"{key['context'] + key['step'] - 1:,} tokens, and with a log-probability above β = {key['beta']:g}"
    )
    if any(record.ci_low is not None for record in grid.records):
        text += ". 95% bootstrap intervals are over those documents or blocks of text that have key tokens"
    without = max((record.params.get("without_keys", 0) for record in grid.records), default=0)
    if without:
        text += f". Up to {counted(without, 'document')} without a key token left out"
    return text


def _pair_table(grid: Grid, label: str, collection: Collection) -> Table | None:
    """The change of LongPPL where wavelengths are rounded; None without a pair."""
    pairs = [
        (base, row, [_change(base.cells.get(length), row.cells.get(length), collection) for length in grid.lengths])
        for base, row in resonance_pairs(grid.rows)
    ]
    rows = [
        method_row(base, cells, [prose("`{}` vs `{}`", row.label, base.label)])
        for base, row, cells in pairs
        if any(cell is not DASH for cell in cells)
    ]
    if not rows:
        return None
    return Table(
        columns=length_columns(["pair"], grid.lengths),
        rows=tuple(rows),
        title=grid.title,
        caption="Relative change of LongPPL when the wavelengths of the method are rounded (negative: resonance is "
        "better), with the interval from resampling the same units in both where there is one. Bold: it excludes 0.",
        label=label,
    )


def _change(base: Record | None, resonance: Record | None, collection: Collection) -> TableCell:
    if base is None or resonance is None or not base.value or resonance.value is None:
        return DASH
    of_base, other = _stored(base, collection), _stored(resonance, collection)
    if of_base is None or other is None or not np.array_equal(of_base.key_S, other.key_S):
        return change_cell(resonance.value / base.value - 1, None)
    resamples, seed, level = resampled_as(base)
    found = paired(
        of_base.nll,
        other.nll,
        base.protocol or "",
        key_S=of_base.key_S,
        resamples=resamples,
        seed=seed,
        level=level,
    )
    return change_cell(resonance.value / base.value - 1, found)


def _stored(record: Record, collection: Collection) -> KeyNll | None:
    return collection.stores[record.cell].artefact(KEY_NLL, record.cell)
