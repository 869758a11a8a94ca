r"""Tables for a paper: booktabs, one `table` environment each.

Intervals go through the macro `\ci`, so that one line in the preamble hides them everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from longeval.printable import printable
from longeval.report.document import Document, Prose, Row, Style, Table, TableCell, spans
from longeval.report.formats import register

HEADER = r"""% Written by longeval. Needs \usepackage{booktabs}.
% Intervals: \newcommand{\ci}[2]{} in the preamble hides them.
\providecommand{\ci}[2]{\,{\scriptsize[#1, #2]}}
"""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "–": "--",
    "−": "$-$",
    "±": "$\\pm$",
    "†": "$^\\dagger$",
    "∞": r"$\infty$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@register("tex")
def latex_report(document: Document) -> str:
    """All tables of the document that can go into a paper."""
    return "\n".join([HEADER, *(_table(table) for section in document.sections for table in section.paper)])


def escape_latex(text: str) -> str:
    """Escapes text so that TeX prints it as it is; line breaks become spaces."""
    line = printable(re.sub(r"\s+", " ", text))
    return "".join(_SPECIAL.get(character, character) for character in line)


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


def _table(table: Table) -> str:
    caption = " ".join(filter(None, (inline(f"{table.title}."), inline(table.caption), *map(_sentence, table.notes))))
    columns = [inline(column) for column in table.columns]
    columns[0] = columns[0][:1].upper() + columns[0][1:]
    indent = r"\quad " if any(row.is_heading for row in table.rows) else ""
    rows = [_row(row, len(columns), indent) for row in table.rows]
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        f"  \\label{{tab:{table.label}}}",
        f"  \\begin{{tabular}}{{{'l' * table.left}{'r' * (len(columns) - table.left)}}}",
        r"    \toprule",
        f"    {' & '.join(columns)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _sentence(note: Prose) -> str:
    text = inline(note)
    return text if text.endswith(".") else f"{text}."


def _row(row: Row, num_columns: int, indent: str) -> list[str]:
    if row.is_heading:
        return [rf"\multicolumn{{{num_columns}}}{{l}}{{\textit{{{inline(row.cells[0].text)}}}}}"]
    first, *others = map(_cell, row.cells)
    return [f"{indent}{first}", *others]


def _cell(cell: TableCell) -> str:
    text = _number(cell.text) if isinstance(cell.text, str) else inline(cell.text)
    text = rf"\textbf{{{text}}}" if cell.is_strong else text
    if cell.interval is not None:
        low, high = map(_number, cell.interval)
        text += f"\\ci{{{low}}}{{{high}}}"
    return text + escape_latex(f" {cell.note}" if cell.note else "") + escape_latex(cell.mark)


def _number(text: str) -> str:
    """`1.2e3` as a power of ten, other characters escaped."""
    match = re.fullmatch(r"([+−]?)([\d.]+)e(\d+)(%?)", text)
    if match is None:
        return escape_latex(text)
    sign, mantissa, exponent, percent = match.groups()
    return f"${sign.replace('−', '-')}{mantissa}{{\\times}}10^{{{exponent}}}${escape_latex(percent)}"
