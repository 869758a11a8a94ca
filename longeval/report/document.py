"""A report as plain data: sections of paragraphs, lists, tables and figures, which a format turns into text.

Whoever makes a document decides what is said and how each number reads. A format (`report.formats`) decides how it
looks, and escapes every text once: names of models, files and documents come from outside and may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from longeval.report.charts import Chart
from longeval.store.records import Record

Style = Literal["plain", "code", "strong", "emphasis", "math"]
"""How a piece of text looks; `math` is a symbol such as s or p."""


class Span(NamedTuple):
    """A piece of text in one style."""

    text: str
    style: Style = "plain"


Prose = str | tuple[Span, ...]
"""Text for the reader; a bare string is plain. Formats escape all of it."""


def spans(text: Prose) -> tuple[Span, ...]:
    """The pieces of a text."""
    return (Span(text),) if isinstance(text, str) else text


def code(text: object) -> tuple[Span, ...]:
    """A name, a flag or a value as code."""
    return (Span(str(text), "code"),)


def strong(text: str) -> tuple[Span, ...]:
    """Bold text."""
    return (Span(text, "strong"),)


def emphasis(text: str) -> tuple[Span, ...]:
    """Text in italics."""
    return (Span(text, "emphasis"),)


def symbol(text: str) -> tuple[Span, ...]:
    """A symbol of mathematics, such as s."""
    return (Span(text, "math"),)


def without_style(text: Prose) -> str:
    """A text without its styles."""
    return "".join(span.text for span in spans(text))


def joined(separator: str, texts: Iterable[Prose]) -> tuple[Span, ...]:
    """Texts with a separator between them."""
    pieces: list[Span] = []
    for text in texts:
        pieces += [Span(separator)] if pieces and separator else []
        pieces += spans(text)
    return tuple(pieces)


_MARKUP = re.compile(r"`([^`]*)`|(\{\})")


def prose(template: str, *values: object) -> tuple[Span, ...]:
    """Fills values into a sentence: ``prose("Model `{}` on {}.", name, device)``.

    Args:
        template: The sentence. What stands between backticks is code; each `{}` takes one value.
        values: Texts, numbers or `Prose`. They are never read as a template, whatever they hold.
    """
    pieces: list[Span] = []
    left = list(values)
    start = 0
    for match in _MARKUP.finditer(template):
        pieces.append(Span(template[start : match.start()]))
        if match[2]:
            value = left.pop(0)
            pieces += value if isinstance(value, tuple) else (Span(str(value)),)
        else:
            parts = match[1].split("{}")
            filled = [parts[0], *(f"{_bare(left.pop(0))}{part}" for part in parts[1:])]
            pieces.append(Span("".join(filled), "code"))
        start = match.end()
    assert not left, template
    return tuple(piece for piece in (*pieces, Span(template[start:])) if piece.text)


def _bare(value: object) -> str:
    return without_style(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableCell:
    """One place of a table."""

    text: Prose
    interval: tuple[str, str] | None = None
    """Low and high end, as they are shown."""
    note: str = ""
    """What stands behind the number: `(n 20)`, `(3 of 5 seeds)`."""
    mark: str = ""
    """A sign that the table's notes explain: `†`."""
    is_strong: bool = False
    is_failure: bool = False
    """The cell says that there is no value since its evaluation failed."""
    reason: str = ""
    """Why there is no value, for formats that can show it in the cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table."""

    cells: tuple[TableCell, ...]
    is_heading: bool = False
    """The first cell is the heading of the rows below it, the others are counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with its caption above it and its notes below it."""

    columns: tuple[Prose, ...]
    rows: tuple[Row, ...]
    left: int = 1
    """So many columns hold text and are aligned to the left; the others hold numbers."""
    title: str = ""
    """Name of the table, for formats that show it without its section."""
    caption: Prose = ""
    """How to read it."""
    notes: tuple[Prose, ...] = ()
    """What must be known about single cells."""
    label: str = ""
    """Name for references, unique in the document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """The heading of a part of a section."""

    text: Prose


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """A paragraph."""

    text: Prose


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A paragraph that the reader must not miss."""

    text: Prose


@dataclass(frozen=True, kw_only=True, slots=True)
class Bullets:
    """A list; a list in it belongs to the item before it."""

    items: tuple[Prose | Bullets, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Lines of code."""

    language: Literal["sh", "yaml"]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A chart in the text; each format draws it in its own way."""

    name: str
    """Its file's name without suffix, unique in the document."""
    description: str
    """What it shows, for readers who can't see it."""
    chart: Chart


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Something to explore that only a page can show: the tokens of documents, the samples of tasks.

    Other formats leave it out. It is loaded only where it is shown, since it may need many artefacts and texts.
    """

    kind: Literal["tokens", "samples"]
    """Which part of the page shows it."""
    title: str
    load: Callable[[], Mapping[str, Any]]
    """Returns its data as plain JSON types; their form is said where the part of the page is."""


Block = Heading | Paragraph | Note | Bullets | Listing | Table | Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Rows of numbers for other programs, not rounded. Rows of equal name in several sections become one file."""

    name: str
    """The file's name without suffix."""
    rows: tuple[Mapping[str, Any], ...]
    """Column to value; a column that a row lacks is empty."""

    @property
    def columns(self) -> list[str]:
        """All columns, in the order in which rows have them."""
        return list(dict.fromkeys(column for row in self.rows for column in row))


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What a study says about cells that may be compared."""

    title: str
    blocks: tuple[Block, ...]
    """What a reader sees, in this order."""
    paper: tuple[Table, ...] = ()
    """Tables that can go into a paper."""
    data: tuple[Data, ...] = ()
    published: tuple[Block, ...] = ()
    """Numbers from papers beside these, shown where the user asked for them."""
    views: tuple[View, ...] = ()
    """What a page shows below the blocks."""
    differs: tuple[str, ...] = ()
    """Settings that set its tables apart from others of the same model and data."""
    is_drawn: bool = True
    """False where figures were left out since there are very many sections."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Its figures, in order."""
        return tuple(block for block in self.blocks if isinstance(block, Figure))


@dataclass(frozen=True, kw_only=True, slots=True)
class Preface:
    """What the author of a report says in front of it."""

    title: str = ""
    """The heading; empty: one that says what the report holds."""
    text: str = ""
    """Markdown of their own, under the heading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A whole report."""

    title: str
    preface: str
    """Markdown of the author's own; formats take it as it is."""
    summary: Prose
    """How many cells there are, from where and when."""
    files: tuple[str, ...]
    """Names of the same report in other formats, beside it."""
    folder: str
    """Name of the folder beside it that holds figures and data."""
    notes: tuple[Prose, ...]
    """What must be known before reading on: missing, damaged and older cells."""
    sections: tuple[Section, ...]
    """The last ones say how to repeat the report and where it was computed."""
    records: tuple[Record, ...]
    older: frozenset[str] = frozenset()
    """Ids of cells that tables leave out, since newer ones differ from them in the program's version alone."""

    @property
    def data(self) -> tuple[Data, ...]:
        """Data of all sections, those of equal name joined."""
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for part in (part for section in self.sections for part in section.data if part.rows):
            rows.setdefault(part.name, []).extend(part.rows)
        return tuple(Data(name=name, rows=tuple(found)) for name, found in rows.items())
