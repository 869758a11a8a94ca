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
        width: Columns of the console; default: of the terminal. Where a row is too wide, the notes behind its numbers
            stand below them, and long names are broken. Where that is not enough, intervals are left out, then these
            notes, and a line below the table says so.
    """
    from rich.table import Table as RichTable

    width = shutil.get_terminal_size().columns if width is None else width
    table, is_stacked = _fitted(table, width)
    shown = RichTable(title=as_markup(table.title), title_justify="left", caption_justify="left")
    has_headings = any(row.is_heading for row in table.rows)
    for number, column in enumerate(table.columns):
        is_text = number < table.left
        justify: Literal["left", "right"] = "left" if is_text else "right"
        shown.add_column(as_markup(without_style(column)), justify=justify, no_wrap=not is_text, overflow="fold")
    for row in table.rows:
        if row.is_heading:
            shown.add_section()
        shown.add_row(*_texts(row, table.left, "  " if has_headings else "", is_stacked=is_stacked))
    if table.notes:
        shown.caption = "\n".join(as_markup(without_style(note)) for note in table.notes)
    return shown


def _fitted(table: Table, width: int) -> tuple[Table, bool]:
    """The table with as much of it as has room, and whether notes stand below the numbers."""
    needed = _width(table, is_stacked=True)
    shown = table
    left_out: list[str] = []
    for name, empty in (("intervals", {"interval": None}), ("notes behind numbers", {"note": ""})):
        for is_stacked in (False, True):
            if _width(shown, is_stacked=is_stacked) <= width:
                return _saying(shown, left_out, needed), is_stacked
        rows = tuple(_changed(row, empty, table.left) for row in shown.rows)
        left_out += [name] if rows != shown.rows else []
        shown = dataclasses.replace(shown, rows=rows)
    return _saying(shown, left_out, needed), True


def _saying(table: Table, left_out: list[str], needed: int) -> Table:
    """The table with a note of what is left out, if anything is."""
    if not left_out:
        return table
    said = f"Left out for lack of room: {' and '.join(left_out)}. A terminal of {needed} columns shows all."
    return dataclasses.replace(table, notes=(*table.notes, said))


def _texts(row: Row, left: int, indent: str, *, is_stacked: bool) -> list[Text]:
    from rich.text import Text

    # Names may be broken at any space, so that what stands behind them needs no line of its own.
    lines = [_lines(cell, is_stacked=is_stacked and number >= left) for number, cell in enumerate(row.cells)]
    texts = [Text("\n").join(map(Text, of_cell)) for of_cell in lines]
    if row.is_heading:
        texts[0].stylize("bold")
        for text in texts[1:]:
            text.stylize("dim")
        return texts
    for text, cell, of_cell in zip(texts, row.cells, lines, strict=True):
        style = "red" if cell.is_failure else "dim" if cell.mark else "bold" if cell.is_strong else ""
        first = len(of_cell[0])
        text.stylize(style, 0, first)
        text.stylize("dim", first)
    return [Text(indent) + texts[0], *texts[1:]]


def _lines(cell: TableCell, *, is_stacked: bool) -> list[str]:
    """The number with its mark, and its interval below; the note beside the number, or at the end."""
    interval = [f"[{', '.join(cell.interval)}]"] if cell.interval is not None else []
    if not is_stacked:
        return [" ".join(filter(None, (without_style(cell.text), cell.note, cell.mark))), *interval]
    note = cell.note.replace(", ", ",\n").split("\n") if cell.note else []
    return [" ".join(filter(None, (without_style(cell.text), cell.mark))), *interval, *note]


def _changed(row: Row, changes: Mapping[str, Any], left: int) -> Row:
    """The row with changes in its columns of numbers."""
    numbers = (dataclasses.replace(cell, **changes) for cell in row.cells[left:])
    return dataclasses.replace(row, cells=(*row.cells[:left], *numbers))


_NARROWEST = 12
"""Names are broken into lines of this many characters before a number is left out."""


def _width(table: Table, *, is_stacked: bool) -> int:
    """Columns that the table takes at least: three for each border with its padding, one for the last."""
    indent = 2 * any(row.is_heading for row in table.rows)
    widths = [len(without_style(column)) for column in table.columns]
    for row in table.rows:
        for number, cell in enumerate(row.cells):
            longest = max(map(len, _lines(cell, is_stacked=is_stacked)))
            longest += indent if number == 0 and not row.is_heading else 0
            most = _NARROWEST if is_stacked and number < table.left else longest
            widths[number] = max(widths[number], min(longest, most))
    return sum(widths) + 3 * len(widths) + 1
