"""Markdown in GitHub's dialect, written so that it is legible as plain text too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote

from longeval.printable import printable
from longeval.report.charts import PICTURE_FORMATS
from longeval.report.document import (
    Block,
    Bullets,
    Document,
    Figure,
    Heading,
    Listing,
    Note,
    Paragraph,
    Prose,
    Row,
    Style,
    Table,
    TableCell,
    spans,
)
from longeval.report.formats import register


@register("md")
def markdown_report(document: Document) -> str:
    """The whole report, ending in a newline."""
    parts = [f"# {inline(document.title)}", document.preface.strip(), inline(document.summary), _beside(document)]
    parts += [f"> {inline(note)}" for note in document.notes]
    for section in document.sections:
        parts += [f"## {inline(section.title)}", *(block_text(block, document.folder) for block in section.blocks)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _beside(document: Document) -> str:
    """Links to the other files of the report."""
    if not document.files:
        return ""
    links = [f"[{name}]({quote(name)})" for name in document.files]
    return f"The same numbers for other programs: {', '.join(links)}, and the tables in `{document.folder}/`."


def block_text(block: Block, folder: str) -> str:
    """One block; `folder` holds the figures."""
    match block:
        case Heading():
            return f"### {inline(block.text)}"
        case Paragraph():
            return inline(block.text)
        case Note():
            return f"> {inline(block.text)}"
        case Bullets():
            return "\n".join(_bullets(block))
        case Listing():
            return "\n".join(code_block(block.language, block.lines))
        case Table():
            return _table(block)
        case Figure():
            return figure(folder, block.name, block.description)


def inline(text: Prose) -> str:
    """A text in its styles."""
    line = "".join(_STYLES[style](piece) for piece, style in spans(text)).strip()
    return f"\\{line}" if line.startswith(">") else line


def escape_markdown(text: object) -> str:
    """Escapes text so that it shows as it is, in a table too; line breaks become spaces.

    `<` and `&` mean nothing before a space or a digit, so that `p < 0.05` stays legible.
    """
    return re.sub(r"[\\`*_|\[\]#~$]|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])", r"\\\g<0>", _one_line(text))


def code(text: object) -> str:
    """Text as code, in a table too; what would end the code or the table's cell is escaped text instead."""
    line = _one_line(text).strip()
    return escape_markdown(line) if not line or set("`|") & set(line) else f"`{line}`"


def code_block(language: str, lines: Iterable[str]) -> list[str]:
    """Lines as a block of code, whatever fences they hold."""
    shown = [printable(line, keep="\t") for text in lines for line in text.split("\n")]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *shown, fence]


def figure(folder: str, stem: str, alt: str) -> str:
    """A PNG from the report's folder of figures, with links to the same in the other formats."""
    path = quote(f"{folder}/{stem}")
    others = " and ".join(f"[{name.upper()}]({path}.{name})" for name in PICTURE_FORMATS if name != "png")
    return f"![{escape_markdown(alt)}]({path}.png)\n\nThe same as {others}."


def _one_line(text: object) -> str:
    return printable(re.sub(r"\s+", " ", str(text)))


_STYLES: dict[Style, Callable[[str], str]] = {
    "plain": escape_markdown,
    "code": code,
    "strong": lambda text: f"**{escape_markdown(text)}**",
    "emphasis": lambda text: f"*{escape_markdown(text)}*",
    "math": escape_markdown,
}


def _bullets(block: Bullets, indent: str = "") -> list[str]:
    lines: list[str] = []
    for item in block.items:
        lines += _bullets(item, f"{indent}  ") if isinstance(item, Bullets) else [f"{indent}- {inline(item)}"]
    return lines


def _table(table: Table) -> str:
    """Caption, table and notes."""
    lines = table_lines([*map(inline, table.columns)], [_row(row) for row in table.rows], table.left)
    parts = [inline(table.caption), "\n".join(lines), "\n".join(_bullets(Bullets(items=table.notes)))]
    return "\n\n".join(filter(None, parts))


def _row(row: Row) -> list[str]:
    cells = [_cell(cell) for cell in row.cells]
    return [f"*{cells[0]}*", *cells[1:]] if row.is_heading else cells


def _cell(cell: TableCell) -> str:
    """`**6.050** [6.047, 6.053] (n 20) †`."""
    text = inline(cell.text)
    text = f"**{text}**" if cell.is_strong else text
    interval = f"[{', '.join(cell.interval)}]" if cell.interval is not None else ""
    return " ".join(filter(None, (text, interval, cell.note, cell.mark)))


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
