"""Tables of scores: one for each task, all tasks of a model in one, and further metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from longeval.metrics import higher_is_better
from longeval.report.document import Prose, Row, Table, TableCell, code, emphasis, joined, prose, symbol
from longeval.report.facts import codes
from longeval.report.numbers import count_range, format_score
from longeval.report.tables import (
    DASH,
    Grid,
    GridRow,
    error_text,
    length_columns,
    method_row,
    method_rows_of,
    ordered_rows,
    outcome_lines,
    records_of,
    value_cell,
)
from longeval.store.records import Record
from longeval.studies.tasks.report.notes import CHANCE_MARK, count_rows, is_chance, table_notes
from longeval.studies.tasks.report.tables import FEW_SAMPLES, CountField, TaskSet, TaskTable
from longeval.values import format_length

ScoreError = Literal["interval", "stderr", "none"]
"""What stands behind a score: its 95% interval, one standard error, or nothing."""


def score_error(records: Iterable[Record]) -> ScoreError:
    """What stands behind the scores of one table: intervals where any has one, so that a table has one notation."""
    every = list(records)
    if any(record.ci_low is not None for record in every):
        return "interval"
    return "stderr" if any(record.params.get("stderr") is not None for record in every) else "none"


def score_cell(record: Record | None, error: ScoreError, mark: str = "") -> TableCell:
    """`0.45 [0.26, 0.66]`, `0.45 ± 0.05`, `failed`, `skipped`, or a dash where no run folder holds it."""
    if record is None:
        return DASH
    if record.status != "ok" or record.value is None:
        return TableCell(text=record.status, is_failure=record.status == "failed", reason=error_text(record))
    stderr = record.params.get("stderr")
    text = format_score(record.value, stderr)
    interval = None
    if error == "interval" and record.ci_low is not None and record.ci_high is not None:
        interval = format_score(record.ci_low, stderr), format_score(record.ci_high, stderr)
    if error == "stderr" and stderr is not None:
        text += f" ± {format_score(stderr, stderr) if record.value < 10 else f'{stderr:.1f}'}"
    return TableCell(text=text, interval=interval, mark=mark)


def _marked_cell(table: TaskTable, record: Record | None, error: ScoreError) -> TableCell:
    """A score of a task, with a mark where it can't be told from guessing."""
    return score_cell(record, error, CHANCE_MARK if is_chance(table, record) else "")


def _score_rows(table: TaskTable, lengths: Sequence[int]) -> list[Row]:
    """A task's methods."""
    error = score_error(table.records)
    return list(method_rows_of(table.rows, lengths, lambda record: _marked_cell(table, record, error)))


def _has_chance(tables: Iterable[TaskTable]) -> bool:
    """Whether any score has the mark of guessing."""
    return any(is_chance(table, record) for table in tables for record in table.records)


def task_table(table: TaskTable) -> Table:
    """One task with its counts and notes, or an average with its members."""
    rows = _score_rows(table, table.lengths)
    if table.members is None:
        for name, counts in count_rows(table):
            texts: list[Prose] = [emphasis(name), "", *counts]
            rows.append(Row(cells=tuple(TableCell(text=text) for text in texts)))
    return Table(
        columns=length_columns(["method"], table.lengths),
        rows=tuple(rows),
        caption="" if table.members is None else prose("Over {}.", codes(table.members)),
        notes=tuple(table_notes(table)),
    )


def heading(table: TaskTable) -> str:
    """`passkey: accuracy`, `leval: average of accuracy`."""
    return f"{table.title}: {'average of ' if table.members is not None else ''}{table.metric}"


def further_table(tables: Sequence[TaskTable]) -> Table:
    """All other metrics in one compact table."""
    lengths = sorted({length for table in tables for length in table.lengths})
    error = score_error(record for table in tables for record in table.records)
    rows = [
        method_row(
            row,
            [score_cell(row.cells.get(length), error) for length in lengths],
            [f"{table.title}: {table.metric}", code(row.label)],
        )
        for table in tables
        for row in table.rows
    ]
    return Table(columns=length_columns(["metric", "method"], lengths), rows=tuple(rows), left=2)


def paper_table(tasks: TaskSet, slug: str) -> Table:
    """All tasks and averages of a model in one table."""
    tables = (*tasks.tasks, *tasks.groups)
    errors = {score_error(table.records) for table in tables}
    caption = "Scores by context length."
    caption += " 95% intervals in brackets." if "interval" in errors else ""
    caption += " ±: one standard error." if "stderr" in errors else ""
    if _has_chance(tables):
        caption += f" {CHANCE_MARK}: not distinguishable from guessing."
    notes = [
        f"{table.title}: {note.removeprefix(f'{CHANCE_MARK} ')}" for table in tables for note in table_notes(table)
    ]
    return _all_tasks(tasks, tables, caption=caption, notes=notes, label=f"scores-{slug}")


def summary_table(tasks: TaskSet) -> Table:
    """The same for the terminal, with fewer notes; averages without any value have their reason in the notes."""
    averages = [group for group in tasks.groups if any(record.value is not None for record in group.records)]
    shown = [*tasks.tasks, *averages] or list(tasks.groups)
    return _all_tasks(tasks, shown, caption="", notes=_short_notes(tasks), label="")


def _all_tasks(tasks: TaskSet, tables: Sequence[TaskTable], *, caption: str, notes: Sequence[str], label: str) -> Table:
    """Tasks as blocks of methods, a column for each length."""
    rows: list[Row] = []
    for table in tables:
        texts = (heading(table), "", *(_count(table, length) for length in tasks.lengths))
        rows.append(Row(cells=tuple(TableCell(text=text) for text in texts), is_heading=True))
        rows += _score_rows(table, tasks.lengths)
    return Table(
        columns=length_columns(["task, method"], tasks.lengths),
        rows=tuple(rows),
        title=tasks.title,
        caption=caption,
        notes=tuple(notes),
        label=label,
    )


def _count(table: TaskTable, length: int) -> str:
    """`n 20`; nothing for an average."""
    counts = table.counts("n", length)
    return f"n {count_range(counts)}" if counts and table.members is None else ""


def _short_notes(tasks: TaskSet) -> list[str]:
    """Marks, how many samples were cut or left out, and why cells have no value."""
    notes = []
    if _has_chance(tasks.tasks):
        notes.append(f"{CHANCE_MARK} can't be told from guessing")
    if any(record.n is not None and record.n < FEW_SAMPLES for table in tasks.tasks for record in table.records):
        notes.append(f"fewer than {FEW_SAMPLES} samples tell little: mind the intervals")
    kinds: tuple[tuple[CountField, str], ...] = (("truncated", "cut to fit"), ("skipped", "left out as too long"))
    for field, what in kinds:
        cells = [
            f"{table.title} {format_length(length)}: {count_range(counts)}"
            for table in tasks.tasks
            for length in table.lengths
            if any(counts := table.counts(field, length))
        ]
        if cells:
            notes.append(f"samples {what}: {', '.join(cells)}")
    for table in (*tasks.tasks, *tasks.groups):
        notes += [f"{table.title}: {line}" for line in outcome_lines(table.rows, table.lengths)]
    return notes


def caption(tasks: TaskSet, unstored: Sequence[str]) -> Prose:
    """How to read all tables of a set of tasks.

    Args:
        tasks: The set.
        unstored: Tasks whose samples are not stored in full.
    """
    all_higher = all(higher_is_better(record) is not False for record in tasks.records)
    text = "Higher is better" if all_higher else "Scores; not of every metric is higher better"
    notations = {score_error(table.records) for table in (*tasks.tasks, *tasks.groups)}
    notations.add(score_error(record for table in tasks.further for record in table.records))
    text += ". In brackets: the 95% interval" if "interval" in notations else ""
    if "stderr" in notations:
        text += f"{'; in tables without intervals, ±' if 'interval' in notations else '. ±'}: one standard error"
    parts: list[Prose] = [f"{text}."]
    parts += filter(None, [chance_sentence(tasks.tasks)])
    parts.append("No best is marked: whether a difference is more than chance is for the paired table to say.")
    if tasks.native_length is not None:
        parts.append(f"The native length is {format_length(tasks.native_length)}.")
    if unstored:
        parts.append(prose("Samples of {} are not stored in full: what needs them is missing below.", codes(unstored)))
    return joined(" ", parts)


def chance_sentence(tables: Sequence[TaskTable]) -> Prose:
    """What the mark of chance means, and for which tasks nobody says what guessing scores; may be empty."""
    known = [table for table in tables if table.chance is not None]
    untold = [table.title for table in tables if table.chance is None]
    if not known:
        return "What guessing scores is not known for these tasks, so no score is marked as chance." if tables else ""
    if untold:
        does = "do" if len(untold) > 1 else "does"
        template = (
            f"{CHANCE_MARK}: can't be told from guessing; set only where a task says what guessing scores, which {{}} "
            f"{does} not."
        )
        return prose(template, codes(untold))
    return f"{CHANCE_MARK}: can't be told from guessing." if _has_chance(known) else ""


# Perplexity and scores of the same model beside each other, one table per length.


class BesideRow(NamedTuple):
    """One method with one factor."""

    row: GridRow
    """From the first table that has it."""
    perplexity: list[Record | None]
    scores: list[Record | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """One length."""

    length: int
    grids: list[Grid]
    """Perplexity columns."""
    tables: list[TaskTable]
    """Score columns: tasks, then averages."""
    rows: list[BesideRow]


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
        tables = [table for table in (*tasks.tasks, *tasks.groups) if _has_value(records_of(table.rows, [length]))]
        rows: dict[tuple[object, ...], GridRow] = {}
        for row in [row for table in tables for row in table.rows] + [row for grid in columns for row in grid.rows]:
            if length in row.cells:
                rows.setdefault(_key(row, length), row)
        shown = [
            BesideRow(row, [_cell(grid, row, length) for grid in columns], [_cell(t, row, length) for t in tables])
            for row in ordered_rows(rows.values(), [row.pe for row in rows.values()])
        ]
        if any(_has_value(row.perplexity) and _has_value(row.scores) for row in shown):
            found.append(Beside(length=length, grids=columns, tables=tables, rows=shown))
    return found


def _same_model(tasks: TaskSet, grid: Grid) -> bool:
    a, b = tasks.records[0], grid.records[0]
    if (a.model, a.backend, a.dtype) != (b.model, b.backend, b.dtype):
        return False
    keys = ("weights", "native_length", "tokenizer", "attn")
    return all(a.params[key] == b.params[key] for key in keys if key in a.params and key in b.params)


def _key(row: GridRow, length: int) -> tuple[object, ...]:
    """Rows of several tables belong together where name, parameters and the factor at this length are equal."""
    return row.pe, row.method, row.cells[length].factor


def _cell(table: Grid | TaskTable, row: GridRow, length: int) -> Record | None:
    found = (other for other in table.rows if length in other.cells and _key(other, length) == _key(row, length))
    return next((other.cells[length] for other in found), None)


def _has_value(records: Iterable[Record | None]) -> bool:
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
            cells = [value_cell(record, with_interval=False) for record in row.perplexity]
            cells += [_marked_cell(*pair, "none") for pair in zip(found.tables, row.scores, strict=True)]
            rows.append(method_row(row.row, cells))
        yield Table(
            columns=(f"at {format_length(found.length)}", symbol("s"), *titles),
            rows=tuple(rows),
            caption="" if number else caption,
        )


def _subject(grid: Grid) -> str:
    return f"{grid.data}, {grid.protocol}{f' ({grid.differs})' if grid.differs else ''}"
