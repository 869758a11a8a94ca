"""Summary tables for the terminal: what `longeval ppl` shows when it is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

from longeval.records import Record
from longeval.report.grid import Grid, GridRow, build_grids
from longeval.report.numbers import format_factor, format_interval, format_outcome
from longeval.spec import format_length

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def summary_table(records: Iterable[Record], *, width: int | None = None) -> list[Table]:
    """Perplexity tables for a rich console, one per model, data set and protocol; best of each column in bold.

    Args:
        records: Records of any metrics; those of perplexity are shown.
        width: Columns of the console; default: of the terminal. Intervals are left out where they don't fit.
    """
    from rich.markup import escape
    from rich.table import Table

    width = shutil.get_terminal_size().columns if width is None else width
    tables = []
    for grid in build_grids(records):
        table = Table(title=escape(f"Perplexity: {grid.title}"), title_justify="left", caption_justify="left")
        table.add_column("method", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
        with_interval = _width(grid) <= width
        for length in grid.lengths:
            table.add_column(format_length(length), justify="right", no_wrap=True)
        for row in grid.rows:
            cells = [_cell(grid, row.cells.get(length), with_interval=with_interval) for length in grid.lengths]
            table.add_row(escape(row.label), factor_text(row), *cells)
        reasons = outcome_lines(grid)
        if reasons:
            table.caption = escape("\n".join(reasons))
        tables.append(table)
    return tables


def factor_text(row: GridRow) -> str:
    """`2`, `each`, or a dash for methods without a factor."""
    if row.factor is None:
        return "–"
    return row.factor if isinstance(row.factor, str) else format_factor(row.factor)


def outcome_lines(grid: Grid) -> list[str]:
    """One line per reason for which cells of a table have no value: `failed: yarn 16k, pi 16k: out of memory`."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in grid.rows:
        for length in grid.lengths:
            record = row.cells.get(length)
            if record is not None and record.status != "ok":
                reason = " ".join((record.error or "no reason was recorded").split())
                cells.setdefault((record.status, reason), []).append(f"{row.label} {format_length(length)}")
    return [f"{status}: {', '.join(names)}: {reason}" for (status, reason), names in cells.items()]


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
