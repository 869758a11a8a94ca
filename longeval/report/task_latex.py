r"""Tables of tasks for a paper: scores with their intervals, and paired differences; see latex.py."""

from __future__ import annotations

from collections.abc import Sequence

from longeval.report.latex import escape_latex, table_source
from longeval.report.numbers import ScoreError, format_change, format_p, format_score_outcome, score_error
from longeval.report.rows import factor_text
from longeval.report.task_notes import is_chance, table_notes
from longeval.report.task_pairs import TaskPair
from longeval.report.task_sections import TaskSection
from longeval.report.task_tables import TaskTable
from longeval.values import format_length


def task_tables_latex(section: TaskSection) -> list[str]:
    """LaTeX source: a table of all scores with tasks as blocks of rows, and one of paired differences if any."""
    tables = (*section.tasks.tasks, *section.tasks.groups)
    parts = [_score_table(section, tables)]
    if section.pairs:
        parts.append(_pair_table(section, section.pairs))
    return parts


def _score_table(section: TaskSection, tables: Sequence[TaskTable]) -> str:
    lengths = section.tasks.lengths
    rows: list[list[str]] = []
    notes: list[str] = []
    errors: set[ScoreError] = set()
    for table in tables:
        kind = "average of " if table.members is not None else ""
        name = escape_latex(f"{table.title}: {kind}{table.metric}")
        rows.append([rf"\multicolumn{{{len(lengths) + 2}}}{{l}}{{\textit{{{name}}}}}"])
        error = score_error(table.records)
        errors.add(error)
        for row in table.rows:
            cells = []
            for length in lengths:
                record = row.cells.get(length)
                text = escape_latex(format_score_outcome(record, error))
                cells.append(rf"{text}$^\dagger$" if is_chance(table, record) else text)
            rows.append([rf"\quad {escape_latex(row.label)}", escape_latex(factor_text(row)), *cells])
        notes += [f"{table.title}: {note.removeprefix('† ')}" for note in table_notes(table)]
    caption = f"Scores by context length: {escape_latex(section.tasks.title)}."
    caption += " 95\\% intervals in brackets." if "interval" in errors else ""
    caption += r" $\pm$: one standard error." if "stderr" in errors else ""
    if any(is_chance(table, record) for table in tables for record in table.records):
        caption += r" $^\dagger$: not distinguishable from guessing."
    caption += "".join(f" {escape_latex(note)}." for note in notes)
    header = ["Method", "$s$", *map(format_length, lengths)]
    return table_source(caption, f"tab:scores-{section.slug}", header, rows)


def _pair_table(section: TaskSection, pairs: Sequence[TaskPair]) -> str:
    rows = []
    for pair in pairs:
        found = pair.found
        place = [escape_latex(pair.task), escape_latex(pair.base.label), escape_latex(factor_text(pair.base))]
        place.append(format_length(pair.length))
        if found is None:
            rows.append([*place, "--", "--", "--", "--"])
            continue
        text = escape_latex(format_change(found.difference, found.stderr))
        text = rf"\textbf{{{text}}}" if pair.is_different else text
        if found.ci_low is not None and found.ci_high is not None:
            ends = [escape_latex(format_change(end, found.stderr)) for end in (found.ci_low, found.ci_high)]
            text += rf"\ci{{{ends[0]}}}{{{ends[1]}}}"
        p = "--" if found.p is None else format_p(found.p).replace("<", "$<$")
        rows.append([*place, f"{found.n}", text, f"{found.a_only}:{found.b_only}", p])
    caption = f"What Resonance RoPE changes, on the same samples: {escape_latex(section.tasks.title)}."
    caption += " Score of the resonance form minus that of its base, with 95\\% intervals; samples that only the base"
    caption += " and only the resonance form has right (or scores more in); McNemar's exact two-sided $p$."
    header = ["Task", "Base", "$s$", "Length", "$n$", "Difference", "Only", "$p$"]
    return table_source(caption, f"tab:score-pairs-{section.slug}", header, rows)
