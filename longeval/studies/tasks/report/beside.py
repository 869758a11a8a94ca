"""Perplexity and scores of the same model beside each other, one table per length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longeval.report.document import Table, symbol
from longeval.report.grid import Grid
from longeval.report.rows import GridRow, ordered_rows
from longeval.report.tables import method_row, value_cell
from longeval.store.records import Record
from longeval.studies.tasks.report.scores import marked_cell
from longeval.studies.tasks.report.tables import TaskSet, TaskTable
from longeval.values import format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class BesideRow:
    """One method with one factor."""

    row: GridRow
    """From the first table that has it."""
    perplexity: tuple[Record | None, ...]
    scores: tuple[Record | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """One length."""

    length: int
    grids: tuple[Grid, ...]
    """Perplexity columns."""
    tables: tuple[TaskTable, ...]
    """Score columns: tasks, then averages."""
    rows: tuple[BesideRow, ...]


def beside(tasks: TaskSet, grids: Sequence[Grid]) -> list[Beside]:
    """Every length at which one method with one factor has both a perplexity and a score.

    Args:
        tasks: Tasks of one model.
        grids: Perplexity tables of any models; those of the same weights, backend, dtype and native length count.
    """
    same = [grid for grid in grids if _same_model(tasks, grid)]
    found = []
    for length in tasks.lengths:
        columns = [grid for grid in same if length in grid.lengths]
        tables = [table for table in (*tasks.tasks, *tasks.groups) if _has_value(_at(table, length))]
        rows = _rows(length, columns, tables)
        if any(_has_value(row.perplexity) and _has_value(row.scores) for row in rows):
            found.append(Beside(length=length, grids=tuple(columns), tables=tuple(tables), rows=rows))
    return found


def _same_model(tasks: TaskSet, grid: Grid) -> bool:
    a, b = tasks.records[0], grid.records[0]
    if (a.model, a.backend, a.dtype) != (b.model, b.backend, b.dtype):
        return False
    keys = ("weights", "native_length", "tokenizer", "attn")
    return all(a.params.get(key) == b.params.get(key) for key in keys if key in a.params and key in b.params)


def _rows(length: int, grids: Sequence[Grid], tables: Sequence[TaskTable]) -> tuple[BesideRow, ...]:
    """All methods with a cell at this length, tasks' first; equal in name, parameters and own factor."""
    every: dict[tuple[str, str, float | None], GridRow] = {}
    for row in [row for table in tables for row in table.rows] + [row for grid in grids for row in grid.rows]:
        if length in row.cells:
            every.setdefault(_key(row, length), row)
    order = [_key(row, length) for row in ordered_rows(every.values(), [row.pe for row in every.values()])]
    return tuple(
        BesideRow(
            row=every[key],
            perplexity=tuple(_cell(grid, key, length) for grid in grids),
            scores=tuple(_cell(table, key, length) for table in tables),
        )
        for key in order
    )


def _key(row: GridRow, length: int) -> tuple[str, str, float | None]:
    return row.pe, row.method, row.cells[length].factor


def _cell(table: Grid | TaskTable, key: tuple[str, str, float | None], length: int) -> Record | None:
    return next((row.cells[length] for row in table.rows if length in row.cells and _key(row, length) == key), None)


def _at(table: TaskTable, length: int) -> list[Record]:
    return [record for record in table.records if record.length == length]


def _has_value(records: Sequence[Record | None]) -> bool:
    return any(record is not None and record.value is not None for record in records)


def beside_tables(tasks: TaskSet, grids: Sequence[Grid]) -> Iterator[Table]:
    """One table for each length that `beside` finds."""
    caption = (
        "The same model with the same method and factor: perplexity (lower is better) and scores (higher is better)."
    )
    for number, found in enumerate(beside(tasks, grids)):
        titles = [f"perplexity, {_subject(grid)}" for grid in found.grids] + [table.title for table in found.tables]
        rows = []
        for row in found.rows:
            scores = zip(found.tables, row.scores, strict=True)
            cells = [value_cell(record, with_interval=False) for record in row.perplexity]
            cells += [marked_cell(table, record, "none") for table, record in scores]
            rows.append(method_row(row.row, cells))
        yield Table(
            columns=(f"at {format_length(found.length)}", symbol("s"), *titles),
            rows=tuple(rows),
            caption="" if number else caption,
        )


def _subject(grid: Grid) -> str:
    return f"{grid.data}, {grid.protocol}{f' ({grid.differs})' if grid.differs else ''}"
