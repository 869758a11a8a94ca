"""Published scores beside ours, and every difference of setting in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from longeval.report.document import Block, Table, TableCell
from longeval.report.published import (
    AVERAGE,
    PublishedSet,
    comparison_blocks,
    factor_differences,
    model_differences,
    own_row,
    published_columns,
    published_row,
    published_sets,
)
from longeval.report.rows import GridRow, factor_text
from longeval.report.tables import DASH
from longeval.store.records import Record
from longeval.studies.tasks.report.notes import CHANCE_MARK, is_chance
from longeval.studies.tasks.report.tables import TaskSet, TaskTable
from longeval.values import format_length


def published_blocks(tasks: TaskSet) -> Iterator[Block]:
    """A table of each paper about the same tasks with ours below, and a list of what differs."""
    for published in published_sets():
        tables = {table.task: table for table in tasks.tasks if table.task in published.columns}
        if published.kind == "tasks" and tables:
            yield from _comparison(published, tasks, tables)


def _comparison(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable]) -> tuple[Block, ...]:
    columns = [column for column in published.columns if column in tables or column == AVERAGE]
    averages = next((t for t in tasks.groups if set(t.members or ()) == set(published.columns) - {AVERAGE}), None)
    own = {column: averages if column == AVERAGE else tables.get(column) for column in columns}
    length = max(length for table in tables.values() for length in table.lengths)
    rows = [published_row(row, [_percent_cell(row.values.get(column)) for column in columns]) for row in published.rows]
    rows += [
        own_row(tasks.model, row, length, [_own_cell(table, row, length) for table in own.values()])
        for row in _own_rows(list(tables.values()), length)
    ]
    table = Table(columns=published_columns(columns), rows=tuple(rows), left=3)
    differences = [*_differences(published, tasks, tables, length)]
    if averages is None or not any(record.value is not None for record in averages.records):
        differences.append("no average of ours: not all of its tasks have a score here")
    return comparison_blocks(published, tasks.model, table, differences)


def _own_rows(tables: Sequence[TaskTable], length: int) -> list[GridRow]:
    """Methods with a cell at `length` in any of the tables, each once."""
    rows: dict[tuple[str, str], GridRow] = {}
    for table in tables:
        for row in table.rows:
            if length in row.cells:
                rows.setdefault((row.label, factor_text(row)), row)
    return list(rows.values())


def _percent_cell(value: float | None) -> TableCell:
    return DASH if value is None else TableCell(text=f"{value:.2f}")


def _own_cell(table: TaskTable | None, row: GridRow, length: int) -> TableCell:
    """The score of the row with the same label and factor."""
    record = None if table is None else _record(table, row, length)
    if table is None or record is None or record.value is None:
        return DASH
    interval = None
    if record.ci_low is not None and record.ci_high is not None:
        interval = f"{100 * record.ci_low:.1f}", f"{100 * record.ci_high:.1f}"
    return TableCell(
        text=f"{100 * record.value:.2f}",
        interval=interval,
        note="" if record.n is None else f"(n {record.n:,})",
        mark=CHANCE_MARK if is_chance(table, record) else "",
    )


def _record(table: TaskTable, row: GridRow, length: int) -> Record | None:
    same = (row.label, factor_text(row))
    return next((r.cells.get(length) for r in table.rows if (r.label, factor_text(r)) == same), None)


def _differences(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable], length: int) -> Iterator[str]:
    records = [record for table in tables.values() for record in table.records]
    params = records[0].params
    yield from model_differences(published, tasks.model)
    yield "unit: percent here, ours converted; fractions from 0 to 1 in our own tables"
    yield "error: ours have a 95% interval where there is one, and n samples; theirs were published without"
    yield f"window: ours at {format_length(length)} tokens, the longest here; theirs as said above"
    policy = params.get("overlong")
    if policy != published.cut:
        yield f"cut: theirs by --overlong {published.cut}, ours by --overlong {policy}"
    elif policy is not None and "leval_codeu" in tables:
        yield "cut: theirs kept the end of CodeU's documents, ours the beginning"
    if any(record.params.get("own_prompts") for record in records):
        yield "prompts: ours are in longeval's own words, theirs are L-Eval's"
    template = params.get("chat_template")
    if template is not None:
        yield f"chat template: {'on' if template else 'off'} in ours; not recorded for theirs"
    tokens = sorted({count for record in records if (count := record.params.get("max_new_tokens")) is not None})
    if published.answers is not None and tokens != [published.answers]:
        shown = " or ".join(f"{count:,}" for count in tokens) or "none"
        yield f"answers: theirs have up to {published.answers} new tokens, ours {shown}"
    limits = sorted({limit for record in records if (limit := record.params.get("limit")) is not None})
    if limits:
        yield f"samples: theirs are all, ours at most {' or '.join(map(str, limits))} of each task (--limit)"
    if any(is_chance(table, record) for table in tables.values() for record in table.records):
        yield f"{CHANCE_MARK}: ours can't be told from guessing; theirs have no errors"
    left_out = [column for column in published.columns if column != AVERAGE and column not in tables]
    if left_out:
        yield f"tasks that this report doesn't have: {', '.join(left_out)}"
    yield from factor_differences(published, [row for table in tables.values() for row in table.rows])
