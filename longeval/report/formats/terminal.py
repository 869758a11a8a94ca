"""Tables for the terminal: what a study shows when it is done."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from longeval.printable import as_markup
from longeval.report.document import Row, Table, TableCell, without_style

if TYPE_CHECKING:
    import rich.table
    from rich.text import Text


def terminal_table(table: Table, width: int | None = None) -> rich.table.Table:
    """A table for a rich console, its notes below it.

    Args:
        table: Title, columns, rows and notes of it are shown.
        width: Columns of the console; default: of the terminal. Intervals, then notes, are left out where they don't
            fit.
    """
    from rich.table import Table as RichTable

    width = shutil.get_terminal_size().columns if width is None else width
    for left_out in ({"interval": None}, {"note": ""}):
        if _width(table) > width:
            table = dataclasses.replace(table, rows=tuple(_changed(row, left_out) for row in table.rows))
    shown = RichTable(title=as_markup(table.title), title_justify="left", caption_justify="left")
    has_headings = any(row.is_heading for row in table.rows)
    for number, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "left" if number < table.left else "right"
        # Headings may be long: theirs is the one column that may be broken, where nothing else helps.
        fold = has_headings and number == 0
        shown.add_column(as_markup(without_style(column)), justify=justify, no_wrap=not fold, overflow="fold")
    for row in table.rows:
        if row.is_heading:
            shown.add_section()
        shown.add_row(*_texts(row, indent="  " if has_headings else ""))
    if table.notes:
        shown.caption = "\n".join(as_markup(without_style(note)) for note in table.notes)
    return shown


def _texts(row: Row, indent: str) -> list[Text]:
    from rich.text import Text

    texts = [Text("\n").join([Text(line) for line in _lines(cell)]) for cell in row.cells]
    if row.is_heading:
        texts[0].stylize("bold")
        for text in texts[1:]:
            text.stylize("dim")
        return texts
    for text, cell in zip(texts, row.cells, strict=True):
        style = "red" if cell.is_failure else "dim" if cell.mark else "bold" if cell.is_strong else ""
        first = len(_lines(cell)[0])
        text.stylize(style, 0, first)
        text.stylize("dim", first)
    return [Text(indent) + texts[0], *texts[1:]]


def _lines(cell: TableCell) -> list[str]:
    """The number with its mark, and its interval below."""
    text = " ".join(filter(None, (without_style(cell.text), cell.note, cell.mark)))
    return [text] if cell.interval is None else [text, f"[{', '.join(cell.interval)}]"]


def _changed(row: Row, changes: Mapping[str, Any]) -> Row:
    return dataclasses.replace(row, cells=tuple(dataclasses.replace(cell, **changes) for cell in row.cells))


def _width(table: Table) -> int:
    """Columns that the table takes: three for each border with its padding, one for the last."""
    indent = 2 * any(row.is_heading for row in table.rows)
    widths = [len(without_style(column)) for column in table.columns]
    for row in table.rows:
        for number, cell in enumerate(row.cells):
            longest = max(map(len, _lines(cell))) + (indent if number == 0 and not row.is_heading else 0)
            widths[number] = max(widths[number], longest)
    return sum(widths) + 3 * len(widths) + 1
