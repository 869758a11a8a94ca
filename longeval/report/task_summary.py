"""Tasks in the terminal: what `longeval tasks` shows when it is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from longeval.printable import as_markup
from longeval.report.numbers import format_score_interval, format_score_outcome, score_error
from longeval.report.rows import factor_text, outcome_lines
from longeval.report.task_notes import CHANCE_MARK, is_chance, span
from longeval.report.task_tables import FEW_SAMPLES, CountField, TaskSet, TaskTable, build_task_sets
from longeval.store.records import Record
from longeval.values import format_length

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def task_summary(records: Iterable[Record], width: int) -> list[Table]:
    """One table per model and way of asking: tasks as blocks of methods, a column per length; averages last.

    Args:
        records: Records of any kind; the main metric of tasks and the averages of groups are shown.
        width: Columns of the console. Intervals are left out where they don't fit.
    """
    return [_table(tasks, width) for tasks in build_task_sets(records)]


def _table(tasks: TaskSet, width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    # An average without any value has its reason in the caption.
    averages = [group for group in tasks.groups if any(record.value is not None for record in group.records)]
    shown = [*tasks.tasks, *averages] or list(tasks.groups)
    lengths = tasks.lengths
    with_error = _width(shown, lengths, with_error=True) <= width
    table = Table(title=as_markup(tasks.title), title_justify="left", caption_justify="left")
    table.add_column("task, method", overflow="fold")  # the one column that may be broken, where nothing else helps
    table.add_column("s", justify="right", no_wrap=True)
    for length in lengths:
        table.add_column(format_length(length), justify="right", no_wrap=True)
    for block in shown:
        counts = [_count(block, length) for length in lengths]
        table.add_row(Text(_heading(block), style="bold"), "", *(Text(count, style="dim") for count in counts))
        for row in block.rows:
            cells = [_cell(block, row.cells.get(length), with_error=with_error) for length in lengths]
            table.add_row(f"  {as_markup(row.label)}", factor_text(row), *cells)
        table.add_section()
    caption = _caption(tasks)
    if caption:
        table.caption = "\n".join(map(as_markup, caption))
    return table


def _heading(table: TaskTable) -> str:
    return f"{table.title}: {'average' if table.members is not None else table.metric}"


def _count(table: TaskTable, length: int) -> str:
    """`n 20`; nothing for an average."""
    count = table.counts("n", length)
    return "" if table.members is not None or count is None else f"n {span(count)}"


def _cell(table: TaskTable, record: Record | None, *, with_error: bool) -> Text:
    from rich.text import Text

    score, *interval = _cell_lines(table, record, with_error=with_error)
    text = Text(score)
    if record is not None and record.status == "failed":
        text.stylize("red")
    elif is_chance(table, record):
        text.stylize("dim")
    for line in interval:
        text.append(f"\n{line}", style="dim")
    return text


def _cell_lines(table: TaskTable, record: Record | None, *, with_error: bool) -> list[str]:
    """The score, with ± where the table has no intervals; below it, its interval."""
    error = score_error(table.records) if with_error else "none"
    text = format_score_outcome(record, "stderr" if error == "stderr" else "none")
    text = f"{text} {CHANCE_MARK}" if is_chance(table, record) else text
    interval = format_score_interval(record) if error == "interval" and record is not None else ""
    return [text, interval] if interval else [text]


def _caption(tasks: TaskSet) -> list[str]:
    """Lines under the table: marks, how many samples were cut or left out, and why cells have no value."""
    lines = []
    if any(is_chance(table, record) for table in tasks.tasks for record in table.records):
        lines.append(f"{CHANCE_MARK} can't be told from guessing")
    if any(record.n is not None and record.n < FEW_SAMPLES for table in tasks.tasks for record in table.records):
        lines.append(f"fewer than {FEW_SAMPLES} samples tell little: mind the intervals")
    kinds: tuple[tuple[CountField, str], ...] = (("truncated", "cut to fit"), ("skipped", "left out as too long"))
    for field, what in kinds:
        cells = [
            f"{table.title} {format_length(length)}: {span(count)}"
            for table in tasks.tasks
            for length in table.lengths
            if (count := table.counts(field, length)) and count[1]
        ]
        if cells:
            lines.append(f"samples {what}: {', '.join(cells)}")
    for table in (*tasks.tasks, *tasks.groups):
        lines += [f"{table.title}: {line}" for line in outcome_lines(table.rows, table.lengths)]
    return lines


def _width(tables: Iterable[TaskTable], lengths: Iterable[int], *, with_error: bool) -> int:
    """Columns that the table takes: three for each border with its padding, one for the last."""
    blocks = list(tables)
    rows = [(block, row) for block in blocks for row in block.rows]
    widths = [
        max(len("task, method"), *(len(_heading(block)) for block in blocks), *(len(row.label) + 2 for _, row in rows)),
        max(len(factor_text(row)) for _, row in rows),
    ]
    for length in lengths:
        texts = [format_length(length), *(_count(block, length) for block in blocks)]
        for block, row in rows:
            texts += _cell_lines(block, row.cells.get(length), with_error=with_error)
        widths.append(max(map(len, texts)))
    return sum(widths) + 3 * len(widths) + 1
