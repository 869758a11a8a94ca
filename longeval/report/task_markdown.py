"""Tasks in the Markdown report: scores with their errors, paired differences, depth, and perplexity beside them."""

from __future__ import annotations

from collections.abc import Sequence

from longeval.report.beside import Beside
from longeval.report.gfm import code, escape_markdown, figure, table_lines
from longeval.report.numbers import (
    MISSING,
    ScoreError,
    counted,
    format_change,
    format_outcome,
    format_p,
    format_score,
    format_score_outcome,
    score_error,
)
from longeval.report.provenance import server_lines
from longeval.report.rows import GridRow, factor_text
from longeval.report.task_notes import CHANCE_MARK, count_rows, is_chance, table_notes
from longeval.report.task_pairs import ALPHA, FEWEST_DISCORDANT, INCOMPARABLE, TaskPair
from longeval.report.task_scored import task_scored_lines
from longeval.report.task_sections import TaskSection
from longeval.report.task_tables import TaskTable
from longeval.stats.bootstrap import MIN_UNITS
from longeval.store.records import Record
from longeval.values import format_length

_BARS = (
    "Bars are 95% intervals, drawn a little beside each other; a point without a bar has none (an average, or too few "
    "independent samples). Dotted: the native length, and what guessing scores."
)


def task_section_lines(section: TaskSection, folder: str) -> list[str]:
    """A section of the report about the tasks of one model.

    Args:
        section: What to say.
        folder: Folder of its figures, relative to the report.
    """
    tasks = section.tasks
    lines = [f"## {escape_markdown(tasks.title)}", "", _caption(section), "", *server_lines(tasks.records)]
    if section.curve is not None:
        lines += [figure(folder, f"score-{section.slug}", "Score by context length"), "", _BARS, ""]
    maps = {depth_map.depths.table.title: depth_map for depth_map in section.maps}
    for table in tasks.tasks:
        lines += [*_table_lines(table), ""]
        if (depth_map := maps.get(table.title)) is not None:
            lines += [figure(folder, f"depth-{depth_map.slug}", f"{table.title} by depth and length"), ""]
    for table in tasks.groups:
        lines += [*_table_lines(table), ""]
    lines += _further_lines(tasks.further)
    lines += _pair_lines(section.pairs)
    lines += _beside_lines(section.beside)
    return [*lines, "### How the tasks were scored", "", *task_scored_lines(section), ""]


def _caption(section: TaskSection) -> str:
    text = "Higher is better" if _all_higher(section) else "Scores; not of every metric is higher better"
    notations = {_error(table) for table in (*section.tasks.tasks, *section.tasks.groups)}
    notations |= {_further_error(section.tasks.further)}
    text += ". [low, high]: 95% interval" if "interval" in notations else ""
    if "stderr" in notations:
        text += f"{'; in tables without intervals, ±' if 'interval' in notations else '. ±'}: one standard error"
    text += f".{_chance_sentence(section.tasks.tasks)}"
    text += " No best is marked: whether a difference is more than chance is for the paired table to say."
    if section.tasks.native_length is not None:
        text += f" The native length is {format_length(section.tasks.native_length)}."
    if section.unstored:
        missing = ", ".join(code(name) for name in section.unstored)
        text += f" Samples of {missing} are not stored in full: what needs them is missing below."
    return text


def _chance_sentence(tables: Sequence[TaskTable]) -> str:
    """What the mark of chance means, and for which tasks nobody says what guessing scores."""
    known = [table for table in tables if table.chance is not None]
    untold = ", ".join(code(table.title) for table in tables if table.chance is None)
    if not known:
        return " What guessing scores is not known for these tasks, so no score is marked as chance." if tables else ""
    if not any(is_chance(table, record) for table in known for record in table.records) and not untold:
        return ""
    text = f" {CHANCE_MARK}: can't be told from guessing"
    if untold:
        text += (
            f"; set only where a task says what guessing scores, which {untold} {'do' if ',' in untold else 'does'} not"
        )
    return f"{text}."


def _error(table: TaskTable) -> ScoreError:
    return score_error(table.records)


def _further_error(tables: Sequence[TaskTable]) -> ScoreError:
    return score_error(record for table in tables for record in table.records)


def _all_higher(section: TaskSection) -> bool:
    return all(record.params.get("higher_is_better") is not False for record in section.tasks.records)


def _table_lines(table: TaskTable) -> list[str]:
    """One task with its counts and notes, or an average with its members."""
    error = _error(table)
    rows = [_row(row, [_marked(table, row.cells.get(length), error) for length in table.lengths]) for row in table.rows]
    if table.members is None:
        rows += [[f"*{name}*", "", *counts] for name, counts in count_rows(table)]
        heading = f"### {escape_markdown(table.title)}: {escape_markdown(table.metric)}"
    else:
        heading = f"### {escape_markdown(table.title)}: average of {escape_markdown(table.metric)}"
    lines = [heading, ""]
    if table.members is not None:
        lines += [f"Over {', '.join(code(name) for name in table.members)}.", ""]
    lines += table_lines(["method", "s", *map(format_length, table.lengths)], rows)
    notes = table_notes(table)
    return [*lines, "", *(f"- {escape_markdown(note)}" for note in notes)] if notes else lines


def _marked(table: TaskTable, record: Record | None, error: ScoreError) -> str:
    text = format_score_outcome(record, error)
    return f"{text} {CHANCE_MARK}" if is_chance(table, record) else text


def _row(row: GridRow, cells: Sequence[str]) -> list[str]:
    return [code(row.label), factor_text(row), *cells]


def _further_lines(tables: Sequence[TaskTable]) -> list[str]:
    """All other metrics in one compact table."""
    if not tables:
        return []
    lengths = sorted({length for table in tables for length in table.lengths})
    error = _further_error(tables)
    rows = [
        [
            escape_markdown(f"{table.title}: {table.metric}"),
            code(row.label),
            factor_text(row),
            *(format_score_outcome(row.cells.get(length), error) for length in lengths),
        ]
        for table in tables
        for row in table.rows
    ]
    header = ["metric", "method", "s", *map(format_length, lengths)]
    return ["### Further metrics", "", *table_lines(header, rows, left=2), ""]


def _pair_lines(pairs: Sequence[TaskPair]) -> list[str]:
    if not pairs:
        return []
    lines = ["### Resonance against its base, sample by sample", "", _pair_caption(pairs), ""]
    header = ["task", "pair", "s", "length", "n", "base", "resonance", "difference"]
    header += ["base only", "resonance only", "p"]
    lines += table_lines(header, [_pair_row(pair) for pair in pairs], left=2)
    notes = pair_notes(pairs)
    return [*lines, "", *(f"- {escape_markdown(note)}" for note in notes), ""]


def _pair_caption(pairs: Sequence[TaskPair]) -> str:
    text = "Score of the resonance form minus that of its base on the same samples, with the 95% interval"
    text += " (positive: resonance is better)"
    text += ". Base only, resonance only: samples in which that one scored more than the other"
    if any(pair.found is not None and pair.found.p is not None for pair in pairs):
        text += ". p: McNemar's exact two-sided test (not mid-p)"
    if any(pair.found is not None and pair.found.p is None for pair in pairs):
        text += "; without p, samples are graded or share documents, and the interval decides"
    return f"{text}. Bold: p < {ALPHA}, or without p an interval that excludes 0."


def _pair_row(pair: TaskPair) -> list[str]:
    task = escape_markdown(f"{pair.task}: {pair.metric}")
    row = [
        task,
        f"{code(pair.resonance.label)} vs {code(pair.base.label)}",
        factor_text(pair.base),
        format_length(pair.length),
    ]
    found = pair.found
    if found is None:
        a, b = pair.record_base.value or 0.0, pair.record_resonance.value or 0.0
        difference = MISSING if pair.why_not == INCOMPARABLE else format_change(b - a)
        return [*row, "–", format_score(a), format_score(b), difference, "–", "–", "–"]
    text = format_change(found.difference, found.stderr)
    text = f"**{text}**" if pair.is_different else text
    if found.ci_low is not None and found.ci_high is not None:
        ends = (format_change(end, found.stderr) for end in (found.ci_low, found.ci_high))
        text += f" [{', '.join(ends)}]"
    scores = [format_score(value, found.stderr) for value in (found.value_a, found.value_b)]
    p = "–" if found.p is None else format_p(found.p)
    return [*row, f"{found.n:,}", *scores, text, str(found.a_only), str(found.b_only), p]


def pair_notes(pairs: Sequence[TaskPair]) -> list[str]:
    """Plain-text lines: how many comparisons, how many that can't say anything, and what was left out."""
    found = [pair for pair in pairs if pair.found is not None]
    bare = [pair for pair in found if pair.found is not None and pair.found.ci_low is None]
    tested = [pair for pair in found if pair not in bare]
    different = [pair for pair in tested if pair.is_different]
    notes = []
    if tested:
        by_chance = ALPHA * len(tested)
        notes.append(
            f"bold: {len(different)} of {counted(len(tested), 'comparison')}; if rounding changed nothing at all, up "
            f"to about {by_chance:.2g} would be, by chance alone (nothing is corrected for how many there are)"
        )
    silent = [pair for pair in tested if pair.says_nothing]
    if silent:
        notes.append(
            f"in {len(silent)} of {len(tested)} fewer than {FEWEST_DISCORDANT} samples differ: whichever way, the test "
            f"can't reach p < {ALPHA} there, which says nothing for or against: {_where(silent)}"
        )
    if bare:
        why = f"fewer than {MIN_UNITS} independent units, or all alike"
        notes.append(f"no interval, so no statement ({why}): {_where(bare)}")
    partly = [pair for pair in found if pair.found is not None and pair.found.unmatched]
    if partly:
        left = ", ".join(f"{pair.found.unmatched} in {_where([pair])}" for pair in partly if pair.found is not None)
        notes.append(f"samples without a counterpart that had the same prompt, left out: {left}")
    reasons = dict.fromkeys(pair.why_not for pair in pairs if pair.found is None)
    return [*notes, *(f"no comparison, {why}: {_where([p for p in pairs if p.why_not == why])}" for why in reasons)]


def _where(pairs: Sequence[TaskPair]) -> str:
    """`passkey resonance_yarn 4k, 8k; quality resonance 4k`."""
    lengths: dict[str, list[str]] = {}
    several = len({(pair.resonance.label, pair.resonance.factor) for pair in pairs}) > len(
        {pair.resonance.label for pair in pairs}
    )
    for pair in pairs:
        factor = f" s={factor_text(pair.resonance)}" if several else ""
        name = f"{pair.task} {pair.resonance.label}{factor}"
        lengths.setdefault(name, []).append(format_length(pair.length))
    return "; ".join(f"{name} {', '.join(found)}" for name, found in lengths.items())


def _beside_lines(tables: Sequence[Beside]) -> list[str]:
    if not tables:
        return []
    text = "The same model with the same method and factor: perplexity (lower is better) and scores (higher is better)."
    lines = ["### Perplexity and tasks beside each other", "", text, ""]
    for table in tables:
        header = [f"at {format_length(table.length)}", "s"]
        header += [
            escape_markdown(f"perplexity, {_of(grid.data, grid.protocol, grid.differs)}") for grid in table.grids
        ]
        header += [escape_markdown(column.title) for column in table.tables]
        rows = []
        for row in table.rows:
            pairs = zip(table.tables, row.scores, strict=True)
            scores = [_marked(column, record, "none") for column, record in pairs]
            rows.append(_row(row.row, [*map(format_outcome, row.perplexity), *scores]))
        lines += [*table_lines(header, rows), ""]
    return lines


def _of(data: str, protocol: str, differs: str) -> str:
    return f"{data}, {protocol}{f' ({differs})' if differs else ''}"
