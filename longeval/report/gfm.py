"""GitHub-flavoured Markdown: text from records escaped for it, and tables that are legible unrendered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from longeval.printable import printable


def escape_markdown(text: object) -> str:
    """Escapes text so that it shows as it is, in a table too; line breaks become spaces."""
    return re.sub(r"([\\`*_<>|\[\]#~&$])", r"\\\1", _one_line(text))


def code(text: object) -> str:
    """Text as code, in a table too; what would end the code or the table's cell is escaped text instead."""
    line = _one_line(text)
    return escape_markdown(line) if not line or set("`|") & set(line) else f"`{line}`"


def code_block(language: str, lines: Iterable[str]) -> list[str]:
    """Lines as a block of code, whatever fences they hold."""
    shown = [printable(line, keep="\t") for text in lines for line in text.split("\n")]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *shown, fence]


def figure(folder: str, stem: str, alt: str) -> str:
    """A PNG from the report's folder of figures, with a link to the same as SVG."""
    path = quote(f"{folder}/{stem}")
    return f"![{escape_markdown(alt)}]({path}.png)\n\n[The same as SVG]({path}.svg)"


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table with aligned pipes; the first `left` columns are left-aligned, the others right-aligned."""
    widths = [max(3, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]
    rule = [":" + "-" * (w - 1) if column < left else "-" * (w - 1) + ":" for column, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    return [line(header), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]
