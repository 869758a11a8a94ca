r"""Tables for a paper: booktabs, one `table` environment each, perplexities and paired differences.

Intervals go through the macro `\ci`, so that one line in the preamble hides them everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from longeval.printable import printable
from longeval.report.grid import Grid
from longeval.report.numbers import format_outcome, format_percent, format_perplexity
from longeval.report.pairs import PairCell, PairRow
from longeval.report.rows import factor_text, outcome_lines
from longeval.store.records import Record
from longeval.values import format_length

_HEADER = r"""% Written by longeval. Needs \usepackage{booktabs}.
% Intervals: \newcommand{\ci}[2]{} in the preamble hides them.
\providecommand{\ci}[2]{\,{\scriptsize[#1, #2]}}
"""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "±": "$\\pm$",
    "†": "$^\\dagger$",
    "∞": r"$\infty$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def latex_document(tables: Sequence[tuple[Grid, Sequence[PairRow]]], others: Sequence[str] = ()) -> str:
    """LaTeX source of all tables: per grid the perplexities, then the differences of its pairs; then `others`."""
    parts = [_HEADER]
    for grid, pairs in tables:
        parts.append(_perplexity_table(grid))
        if pairs:
            parts.append(_pair_table(grid, pairs))
    return "\n".join([*parts, *others])


def escape_latex(text: str) -> str:
    """Escapes text so that TeX prints it as it is."""
    return "".join(_SPECIAL.get(character, character) for character in printable(" ".join(text.split())))


def _perplexity_table(grid: Grid) -> str:
    rows = []
    for row in grid.rows:
        cells = [_cell(grid, row.cells.get(length)) for length in grid.lengths]
        rows.append([escape_latex(row.label), escape_latex(factor_text(row)), *cells])
    caption = f"Perplexity by context length (lower is better): {escape_latex(grid.title)}."
    caption += " Best of each length in bold; 95\\% bootstrap intervals in brackets."
    caption += "".join(f" {escape_latex(line)}." for line in outcome_lines(grid.rows, grid.lengths))
    return table_source(caption, _label("ppl", grid), ["Method", "$s$", *map(format_length, grid.lengths)], rows)


def _pair_table(grid: Grid, pairs: Sequence[PairRow]) -> str:
    rows = []
    for pair in pairs:
        cells = [_pair_cell(pair.cells.get(length)) for length in grid.lengths]
        rows.append([escape_latex(pair.base.label), escape_latex(factor_text(pair.base)), *cells])
    caption = f"Relative change of perplexity by Resonance RoPE: {escape_latex(grid.title)}."
    caption += " Paired 95\\% bootstrap intervals."
    return table_source(caption, _label("pairs", grid), ["Base", "$s$", *map(format_length, grid.lengths)], rows)


def table_source(caption: str, label: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs table; caption, columns and cells are LaTeX already."""
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        f"  \\label{{{label}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(columns)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _cell(grid: Grid, record: Record | None) -> str:
    text = _number(format_outcome(record))
    if record is None:
        return text
    if grid.is_best(record):
        text = f"\\textbf{{{text}}}"
    if record.ci_low is not None and record.ci_high is not None:
        low, high = (_number(format_perplexity(end)) for end in (record.ci_low, record.ci_high))
        text += f"\\ci{{{low}}}{{{high}}}"
    return text


def _pair_cell(cell: PairCell | None) -> str:
    if cell is None:
        return "--"
    text = _number(format_percent(cell.ratio))
    if cell.difference is not None:
        low, high = (_number(format_percent(end)) for end in (cell.difference.low, cell.difference.high))
        text += f"\\ci{{{low}}}{{{high}}}"
    return text


def _number(text: str) -> str:
    """`1.2e3` as a power of ten, other characters escaped."""
    match = re.fullmatch(r"([+−]?)([\d.]+)e(\d+)(%?)", text)
    if match is None:
        return escape_latex(text)
    sign, mantissa, exponent, percent = match.groups()
    return f"${sign.replace('−', '-')}{mantissa}{{\\times}}10^{{{exponent}}}${escape_latex(percent)}"


def _label(kind: str, grid: Grid) -> str:
    return f"tab:{kind}-" + re.sub(r"[^a-z0-9]+", "-", grid.title.lower()).strip("-")
