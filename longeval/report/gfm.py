"""The two pieces of GitHub-flavoured Markdown that need care: escaped text, and tables that are legible unrendered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote


def escape_markdown(text: str) -> str:
    """Escapes text so that it shows as it is, in a table too; line breaks become spaces."""
    return re.sub(r"([\\`*_<>|\[\]#~])", r"\\\1", " ".join(text.split()))


def figure(folder: str, stem: str, alt: str) -> str:
    """A PNG from the report's folder of figures, with a link to the same as SVG."""
    path = quote(f"{folder}/{stem}")
    return f"![{alt}]({path}.png)\n\n[The same as SVG]({path}.svg)"


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
