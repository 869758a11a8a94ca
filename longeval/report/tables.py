"""Summary tables for the terminal: what `longeval ppl` and `longeval tasks` show when they are done."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

from longeval.printable import as_markup
from longeval.report.grid import Grid, build_grids
from longeval.report.numbers import format_interval, format_outcome
from longeval.report.rows import factor_text, outcome_lines
from longeval.report.task_summary import task_summary
from longeval.store.records import Record
from longeval.values import format_length

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def summary_table(records: Iterable[Record], *, width: int | None = None) -> list[Table]:
    """Tables for a rich console: of perplexity, best of each column in bold, then those of tasks.

    Args:
        records: Records of any metrics; perplexities, main metrics of tasks and averages are shown.
        width: Columns of the console; default: of the terminal. Intervals are left out where they don't fit.
    """
    from rich.table import Table

    width = shutil.get_terminal_size().columns if width is None else width
    tables = []
    every = list(records)
    for grid in build_grids(every):
        table = Table(title=as_markup(f"Perplexity: {grid.title}"), title_justify="left", caption_justify="left")
        table.add_column("method", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
        with_interval = _width(grid) <= width
        for length in grid.lengths:
            table.add_column(format_length(length), justify="right", no_wrap=True)
        for row in grid.rows:
            cells = [_cell(grid, row.cells.get(length), with_interval=with_interval) for length in grid.lengths]
            table.add_row(as_markup(row.label), factor_text(row), *cells)
        reasons = outcome_lines(grid.rows, grid.lengths)
        if reasons:
            table.caption = "\n".join(map(as_markup, reasons))
        tables.append(table)
    return [*tables, *task_summary(every, width)]


def _width(grid: Grid) -> int:
    """Columns that a table with intervals takes: three for each border with its padding, one for the last."""
    widths = [
        max(len("method"), *(len(row.label) for row in grid.rows)),
        max(len(factor_text(row)) for row in grid.rows),
    ]
    for length in grid.lengths:
        records = [row.cells.get(length) for row in grid.rows]
        texts = [format_length(length), *map(format_outcome, records), *map(format_interval, records)]
        widths.append(max(map(len, texts)))
    return sum(widths) + 3 * len(widths) + 1


def _cell(grid: Grid, record: Record | None, *, with_interval: bool) -> Text:
    from rich.text import Text

    text = Text(format_outcome(record))
    if record is not None and record.status == "failed":
        text.stylize("red")
    elif record is not None and grid.is_best(record):
        text.stylize("bold")
    interval = format_interval(record) if with_interval else ""
    if interval:
        text.append(f"\n{interval}", style="dim")
    return text
