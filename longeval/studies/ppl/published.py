"""Published perplexities beside ours, and every difference of setting in words."""

from __future__ import annotations

from collections.abc import Iterator

from longeval.report.document import Block, Row, Table, TableCell
from longeval.report.grid import Grid
from longeval.report.numbers import counted, format_perplexity
from longeval.report.published import (
    PublishedSet,
    comparison_blocks,
    factor_differences,
    model_differences,
    own_row,
    published_columns,
    published_row,
    published_sets,
)
from longeval.report.tables import DASH, value_cell
from longeval.store.records import Record
from longeval.values import format_length, parse_length


def published_blocks(grid: Grid) -> Iterator[Block]:
    """A table of each paper on the same data with ours below, and a list of what differs."""
    for published in published_sets():
        if published.kind == "perplexity" and published.data == grid.data:
            table = _table(published, grid)
            yield from comparison_blocks(published, grid.title, table, [*_differences(published, grid)])


def _table(published: PublishedSet, grid: Grid) -> Table:
    lengths = sorted({parse_length(column) for column in published.columns} | set(grid.lengths))
    rows: list[Row] = []
    for theirs in published.rows:
        values = (theirs.values.get(format_length(length)) for length in lengths)
        rows.append(
            published_row(theirs, [DASH if v is None else TableCell(text=format_perplexity(v)) for v in values])
        )
    rows += [
        own_row(grid.model, row, None, [_own_cell(row.cells.get(length)) for length in lengths]) for row in grid.rows
    ]
    return Table(columns=published_columns(map(format_length, lengths)), rows=tuple(rows), left=3)


def _own_cell(record: Record | None) -> TableCell:
    if record is None or record.value is None:
        return DASH
    cell = value_cell(record)
    note = "" if record.documents is None else f"(n {record.documents:,})"
    return TableCell(text=cell.text, interval=cell.interval, note=note)


def _differences(published: PublishedSet, grid: Grid) -> Iterator[str]:
    yield from model_differences(published, grid.model)
    if grid.protocol != published.protocol:
        yield f"protocol: theirs is {published.protocol}, ours {grid.protocol}: the numbers are not comparable"
    stride = grid.records[0].params.get("stride")
    if grid.protocol == published.protocol == "sliding_window_mean" and stride != 256:
        yield f"stride: theirs is 256, ours {stride}"
    documents = sorted({record.documents for record in grid.records if record.documents is not None})
    if documents:
        shown = counted(documents[-1], "document")
        shown = shown if len(documents) == 1 else f"{documents[0]} to {shown}"
        least = format_length(grid.records[0].params.get("min_tokens") or 0)
        yield (
            f"documents: we have {shown} (n above) of at least {least} tokens; theirs as said above, and not "
            "necessarily the same ones"
        )
    yield from factor_differences(published, grid.rows)
