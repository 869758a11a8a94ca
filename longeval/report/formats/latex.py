r"""Tables and figures for a paper: booktabs, one `table` or `figure` environment each, for any document class.

Tables fit on a page of `article`, which has the narrowest and lowest one of the usual classes: intervals that would
make a table too wide go below their values, and tables with very many columns or rows become several. What these
estimates of widths miss, LaTeX measures: it scales a table that is wider than the line. Environments that break over
pages by themselves, such as longtable's, can't be scaled and don't work in two columns.

Intervals go through the macro `\ci`, so that one line in the preamble hides them everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from longeval.printable import printable
from longeval.report.document import Document, Figure, Prose, Row, Style, Table, TableCell, spans, symbol, without_style
from longeval.report.formats import register

HEADER = r"""% Written by longeval. Needs \usepackage{booktabs,graphicx}.
% Figures are looked for beside the document; \graphicspath{{FOLDER/}} names another place.
% Intervals: \newcommand{\ci}[2]{} in the preamble hides them.
\providecommand{\ci}[2]{\,{\scriptsize[#1, #2]}}
% A value with its interval below it, where there is no room beside it.
\providecommand{\ciunder}[3]{\sbox0{\ci{#2}{#3}}%
  \ifdim\wd0>0pt\begin{tabular}[t]{@{}r@{}}#1\\[-3pt]\usebox0\end{tabular}\else#1\fi}
% A table that is wider than the line is scaled to its width.
\ifdefined\fittedbox\else
  \newsavebox{\fittedbox}
  \newenvironment{fitted}{\begin{lrbox}{\fittedbox}}{\end{lrbox}%
    \ifdim\wd\fittedbox>\linewidth\resizebox{\linewidth}{!}{\usebox{\fittedbox}}\else\usebox{\fittedbox}\fi}
\fi
"""

_MANY = r"""% LaTeX by itself keeps few tables and figures that have no place yet.
\ifdefined\extrafloats\extrafloats{COUNT}\fi
\maxdeadcycles=1COUNT
"""
"""For reports of more tables and figures than `_FEW`; 1COUNT is more than COUNT."""
_FEW = 16

_LINE_POINTS = 345
"""Width of the lines of `article`."""
_PAGE_LINES = 36
"""So many lines a table with its caption and notes may have; a page of `article` has some more."""
_SMALLEST = 0.65
"""A table that would have to be scaled by less than this is divided."""
_NARROWER = 0.85
"""Intervals go below their values where a table would have to be scaled by less than this."""
_LABEL_POINTS = 150
"""Names of methods that are wider are broken into lines."""
_LONG_NOTES = 1200
"""Notes with more characters than this stand below the table on the page, where they may be broken."""

SPECIAL_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": "$\\pm$",
    "×": "$\\times$",
    "·": "$\\cdot$",
    "→": "$\\to$",
    "≤": "$\\leq$",
    "≥": "$\\geq$",
    "≈": "$\\approx$",
    "²": "$^2$",
    "†": "$^\\dagger$",
    "∞": r"$\infty$",
    "√": r"$\surd$",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
} | {character: f"\\{character}" for character in "&%$#_{}"}
"""What TeX reads in place of these characters."""

_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Accents that LaTeX puts on letters in its default encoding."""

_LETTERS = frozenset("æÆœŒøØåÅßłŁ")
"""Further letters that it has there."""


@register("tex")
def latex_report(document: Document) -> str:
    """All tables of the document that can go into a paper, and its figures."""
    floats = [
        *(_table(part) for section in document.sections for table in section.paper for part in _parts(table)),
        *(
            _figure(figure, section.title, document.folder)
            for section in document.sections
            for figure in section.figures
        ),
    ]
    many = _MANY.replace("COUNT", str(len(floats))) if len(floats) > _FEW else ""
    return "\n".join([HEADER + many, *floats])


def escape_latex(text: str) -> str:
    """Escapes text so that TeX prints it as it is; line breaks become spaces, and long words may be broken.

    Characters that LaTeX lacks without further packages (Chinese, emoji) are shown as their number: [U+4E2D].
    """
    return " ".join(map(_escaped_word, _shown(text).split(" ")))


def _escaped_word(word: str) -> str:
    """A word, with places to break it where it is long: behind punctuation, or after ten characters."""
    pieces = re.findall(r"[^\W_]{1,10}[\W_]?|[\W_]", word) if len(word) > 20 else [word]
    return r"\allowbreak{}".join(
        "".join(SPECIAL_CHARACTERS.get(character, character) for character in piece) for piece in pieces
    )


def _shown(text: str) -> str:
    """What is printed of a text: one line, of characters that LaTeX has."""
    line = unicodedata.normalize("NFC", printable(re.sub(r"\s+", " ", text)))
    return "".join(character if _is_known(character) else f"[U+{ord(character):04X}]" for character in line)


@functools.lru_cache(maxsize=1 << 12)
def _is_known(character: str) -> bool:
    parts = unicodedata.normalize("NFD", character)
    return (
        character in SPECIAL_CHARACTERS
        or character in _LETTERS
        or (parts[0].isascii() and _ACCENTS.issuperset(parts[1:]))
    )


def inline(text: Prose) -> str:
    """A text in its styles."""
    return "".join(_STYLES[style](piece) for piece, style in spans(text)).strip()


_STYLES: dict[Style, Callable[[str], str]] = {
    "plain": escape_latex,
    "code": escape_latex,
    "strong": lambda text: rf"\textbf{{{escape_latex(text)}}}",
    "emphasis": lambda text: rf"\textit{{{escape_latex(text)}}}",
    "math": lambda text: f"${escape_latex(text)}$",
}


# Figures.


def _figure(figure: Figure, title: str, folder: str) -> str:
    """A figure as PDF, as wide as the line, and not higher than a page with its caption."""
    # In a file's name these are what they are, and no comment, parameter or space.
    plain = "".join(f"\\catcode`\\{character}=12 " for character in "%#~" if character in folder)
    lines = [
        r"\begin{figure}",
        r"  \centering\sloppy",
        f"  {plain}\\includegraphics[width=\\linewidth,height=0.8\\textheight,keepaspectratio]"
        f"{{{folder}/{figure.name}.pdf}}",
        f"  \\caption{{{inline(f'{figure.description}: {title}.')}}}",
        f"  \\label{{fig:{figure.name}}}",
        r"\end{figure}",
    ]
    return "\n".join(lines) + "\n"


# Tables.


class _Part(NamedTuple):
    """A table, or what of it fits on one page."""

    table: Table
    is_below: bool
    """Whether intervals stand below their values."""
    number: int
    """Which part of the whole table it is, from 1."""
    parts: int
    """How many there are."""


def _parts(table: Table) -> Iterator[_Part]:
    """A table in as many parts as it takes to be legible on pages.

    Columns are divided, those that say what a row is about are in each part; rows are divided under their heading.
    """
    fixed = _num_fixed(table)
    columns = range(len(table.columns))
    is_below = sum(_column_points(table, column, is_below=False) for column in columns) > _LINE_POINTS / _NARROWER
    widths = [_column_points(table, column, is_below=is_below) for column in columns]
    room = max(_LINE_POINTS / _SMALLEST - sum(widths[:fixed]), *widths)
    blocks = _divided(columns[fixed:], max(1, math.ceil(sum(widths[fixed:]) / room)))
    chosen = [([*columns[:fixed], *block], rows) for rows in _row_chunks(table, is_below=is_below) for block in blocks]
    for number, (places, rows) in enumerate(chosen, start=1):
        shown = tuple(
            row if row.is_heading else dataclasses.replace(row, cells=tuple(row.cells[place] for place in places))
            for row in rows
        )
        part = dataclasses.replace(table, columns=tuple(table.columns[place] for place in places), rows=shown)
        yield _Part(table=part, is_below=is_below, number=number, parts=len(chosen))


def _num_fixed(table: Table) -> int:
    """So many first columns say what a row is about: texts, the factor, and more where that doesn't tell rows apart."""
    least = table.left + (symbol("s") in table.columns[table.left : table.left + 1])
    rows = [row.cells for row in table.rows if not row.is_heading]
    if any(row.is_heading for row in table.rows):
        return least
    unique = (
        count for count in range(least, len(table.columns) - 1) if len({cells[:count] for cells in rows}) == len(rows)
    )
    return next(unique, least)


def _divided(places: range, num_blocks: int) -> list[range]:
    """Places in blocks of nearly equal size."""
    edges = [round(len(places) * number / num_blocks) for number in range(num_blocks + 1)]
    return [places[low:high] for low, high in itertools.pairwise(edges)]


def _row_chunks(table: Table, *, is_below: bool) -> Iterator[list[Row]]:
    """The rows in chunks that fit on a page with the caption; a heading is said again where its rows go on."""
    notes = [len(_shown(without_style(note))) for note in table.notes]
    said = len(_shown(table.title)) + len(_shown(without_style(table.caption)))
    room = _PAGE_LINES - said // 70 - (sum(length // 80 + 1 for length in notes) if sum(notes) <= _LONG_NOTES else 0)
    lines = [_num_lines(row, is_below=is_below) for row in table.rows]
    heading: list[Row] = []
    rows: list[Row] = []
    used = 0
    for number, row in enumerate(table.rows):
        # A heading is not alone at the end of a page.
        needed = sum(lines[number : number + 2]) if row.is_heading else lines[number]
        if rows and used + needed > room:
            yield rows
            rows = [] if row.is_heading else [*heading]
            used = len(rows)
        heading = [row] if row.is_heading else heading
        rows.append(row)
        used += lines[number]
    yield rows


def _num_lines(row: Row, *, is_below: bool) -> int:
    width = _points(without_style(row.cells[0].text)) / (_LINE_POINTS if row.is_heading else _LABEL_POINTS)
    return max(math.ceil(width), 2 if is_below and any(cell.interval for cell in row.cells) else 1)


def _table(part: _Part) -> str:
    """One `table` environment; the first of a table has its caption, the last its notes."""
    table, number = part.table, part.number
    of_several = f" (part {number} of {part.parts})" if part.parts > 1 else ""
    caption = [inline(f"{table.title}{of_several}."), inline(table.caption) if number == 1 else ""]
    columns = [inline(column) for column in table.columns]
    columns[0] = columns[0][:1].upper() + columns[0][1:]
    labels = [_points(without_style(row.cells[0].text)) for row in table.rows if not row.is_heading]
    first = f"p{{{_LABEL_POINTS}pt}}" if max(labels, default=0) > _LABEL_POINTS else "l"
    notes = r"\par ".join(map(_sentence, table.notes)) if number == part.parts else ""
    below = [f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\footnotesize {notes}}}"] if notes else []
    afterwards = []
    if len(notes) > _LONG_NOTES:
        whose = f"Table~\\ref{{tab:{table.label}}}"
        below, afterwards = [], ["", f"{{\\footnotesize\\sloppy\\noindent {whose}: {notes}\\par}}"]
    lines = [
        r"\begin{table}",
        r"  \centering\sloppy",
        f"  \\caption{{{' '.join(filter(None, caption))}}}",
        f"  \\label{{tab:{table.label}{f'-{number}' if number > 1 else ''}}}",
        r"  \smallskip",
        r"  \begin{fitted}",
        f"  \\begin{{tabular}}{{{first}{'l' * (table.left - 1)}{'r' * (len(columns) - table.left)}}}",
        r"    \toprule",
        f"    {' & '.join(columns)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in _rows(part, is_wrapped=first != "l")),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"  \end{fitted}",
        *(f"  {line}" for line in below),
        r"\end{table}",
        *afterwards,
    ]
    return "\n".join(lines) + "\n"


def _sentence(note: Prose) -> str:
    text = inline(note)
    return text if text.endswith(".") else f"{text}."


def _rows(part: _Part, *, is_wrapped: bool) -> Iterator[list[str]]:
    """The cells of each row; `is_wrapped`: whether names of methods may be broken into lines."""
    table = part.table
    num_columns = len(table.columns)
    points = sum(_column_points(table, column, is_below=part.is_below) for column in range(num_columns))
    ragged = r"\raggedright " if is_wrapped else ""
    indent = r"\quad " if any(row.is_heading for row in table.rows) else ""
    for row in table.rows:
        if row.is_heading:
            text = rf"\textit{{{inline(row.cells[0].text)}}}"
            kind = "l"
            if _points(without_style(row.cells[0].text)) > points:
                kind, text = f"p{{{min(points, _LINE_POINTS) - 12:.0f}pt}}", rf"\raggedright {text}"
            yield [rf"\multicolumn{{{num_columns}}}{{{kind}}}{{{text}}}"]
        else:
            first, *others = [_cell(cell, is_below=part.is_below) for cell in row.cells]
            yield [f"{ragged}{indent}{first}", *others]


def _cell(cell: TableCell, *, is_below: bool) -> str:
    text = _number(cell.text) if isinstance(cell.text, str) else inline(cell.text)
    text = rf"\textbf{{{text}}}" if cell.is_strong else text
    after = escape_latex(f" {cell.note}" if cell.note else "") + escape_latex(cell.mark)
    if cell.interval is None:
        return text + after
    low, high = map(_number, cell.interval)
    return f"\\ciunder{{{text}{after}}}{{{low}}}{{{high}}}" if is_below else f"{text}\\ci{{{low}}}{{{high}}}{after}"


def _number(text: str) -> str:
    """`1.2e3` as a power of ten, other characters escaped."""
    match = re.fullmatch(r"([+−]?)([\d.]+)e(\d+)(%?)", text)
    if match is None:
        return escape_latex(text)
    sign, mantissa, exponent, percent = match.groups()
    return f"${sign.replace('−', '-')}{mantissa}{{\\times}}10^{{{exponent}}}${escape_latex(percent)}"


# Widths, roughly.


def _column_points(table: Table, column: int, *, is_below: bool) -> float:
    """Width of a column with the space around it."""
    cells = [row.cells[column] for row in table.rows if not row.is_heading]
    widths = [_points(without_style(table.columns[column])), *(_cell_points(cell, is_below=is_below) for cell in cells)]
    return (min(max(widths), _LABEL_POINTS) if column == 0 else max(widths)) + 12


def _cell_points(cell: TableCell, *, is_below: bool) -> float:
    text = _points(f"{without_style(cell.text)} {cell.note}{cell.mark}")
    interval = 0.8 * _points(f"[{', '.join(cell.interval)}]") if cell.interval is not None else 0.0
    return max(text, interval) if is_below else text + interval


def _points(text: str) -> float:
    """Width of a text in LaTeX's usual font at ten points, roughly."""
    narrow, wide = "ijlft.,:;'!|()[] ", "mwMW%−±"
    return sum(2.8 if c in narrow else 8.3 if c in wide else 7.2 if c.isupper() else 5.2 for c in _shown(text))
