"""Builds the tables of a report: methods as rows, context lengths as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from longeval.report.document import Prose, Row, TableCell, code, symbol
from longeval.report.numbers import MISSING, format_value
from longeval.report.rows import GridRow, factor_text
from longeval.store.records import Record
from longeval.values import format_length

DASH = TableCell(text=MISSING)
"""Where there is nothing to show."""


def length_columns(first: Sequence[Prose], lengths: Iterable[int]) -> tuple[Prose, ...]:
    """Column titles: some of text, the factor, then each length."""
    return (*first, symbol("s"), *map(format_length, lengths))


def method_row(row: GridRow, cells: Iterable[TableCell], first: Sequence[Prose] = ()) -> Row:
    """A row of a table: `first`, by default the method, then its factor, then the cells."""
    names = first or (code(row.label),)
    return Row(cells=(*(TableCell(text=name) for name in names), TableCell(text=factor_text(row)), *cells))


def method_rows_of(
    rows: Iterable[GridRow], lengths: Sequence[int], cell: Callable[[Record | None], TableCell]
) -> tuple[Row, ...]:
    """One table row for each method; `cell` shows one record, or that there is none."""
    return tuple(method_row(row, [cell(row.cells.get(length)) for length in lengths]) for row in rows)


def value_cell(record: Record | None, *, is_best: bool = False, with_interval: bool = True) -> TableCell:
    """What stands in the place of a record: value and interval, `failed`, `skipped`, or a dash without one."""
    if record is None:
        return DASH
    if record.status != "ok":
        return TableCell(text=record.status, is_failure=record.status == "failed")
    interval = None
    if with_interval and record.ci_low is not None and record.ci_high is not None:
        interval = format_value(record.ci_low, record), format_value(record.ci_high, record)
    text = "∞" if record.value is None else format_value(record.value, record)
    return TableCell(text=text, interval=interval, is_strong=is_best)
