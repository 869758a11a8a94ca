"""What a reader must know beside a task's scores: those that guessing explains, few samples, cut and left-out ones."""

from __future__ import annotations

from collections.abc import Sequence

from longeval.report.numbers import format_score
from longeval.report.rows import GridRow, outcome_lines, row_name
from longeval.report.versions import code_of
from longeval.stats.bootstrap import MIN_UNITS
from longeval.store.records import Record
from longeval.studies.tasks.report.tables import FEW_SAMPLES, CountField, TaskTable
from longeval.values import format_length

CHANCE_MARK = "†"
"""Stands behind a score whose interval contains that of guessing."""


def is_chance(table: TaskTable, record: Record | None) -> bool:
    """Whether a score can't be told from guessing: its 95% interval contains the score of guessing, or it has none.

    Without an interval only a score above a guess that is never right (chance 0) is more than guessing.
    """
    chance = table.chance
    if chance is None or record is None or record.value is None:
        return False
    if record.ci_low is None or record.ci_high is None:
        return chance > 0 or record.value <= chance
    return record.ci_low <= chance <= record.ci_high


def table_notes(table: TaskTable) -> list[str]:
    """Plain-text lines under one table: reasons of missing values, chance, few, cut, left-out and unequal samples."""
    notes = outcome_lines(table.rows, table.lengths)
    if table.members is not None:
        return notes
    chance = table.chance
    if chance is not None:
        near = _named(table, [r for r in table.records if is_chance(table, r)])
        if near:
            notes.append(
                f"{CHANCE_MARK} not distinguishable from guessing, which scores {format_score(chance)}: {near}"
            )
        below = _named(table, [r for r in table.records if r.ci_high is not None and r.ci_high < chance])
        if below:
            notes.append(f"below guessing, which scores {format_score(chance)}: {below}")
    notes += [*_mixed_notes(table), *_sample_notes(table)]
    no_interval = [r for r in table.records if r.value is not None and r.ci_low is None]
    if no_interval:
        why = f"fewer than {MIN_UNITS} independent samples or documents, or not a mean over samples"
        notes.append(f"no interval ({why}): {_named(table, no_interval)}")
    return notes


def same_samples(table: TaskTable) -> bool:
    """Whether all methods got the same prompts at every length, as far as records tell."""
    return all(len(found) == 1 and None not in found for length in table.lengths if (found := _versions(table, length)))


def _mixed_notes(table: TaskTable) -> list[str]:
    """Lengths at which cells of several versions stand beside each other, since some have no newer one."""
    parts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for length in table.lengths:
        by_version = _versions(table, length)
        if len(by_version) > 1 and None not in by_version:
            named = ((", ".join(row_name(row, table.rows) for row in rows), code) for rows, code in by_version.values())
            parts.setdefault(tuple(named), []).append(format_length(length))
    return [
        f"not the same prompts, or not scored by the same rules, at {', '.join(lengths)}, so rows are not comparable "
        f"there: {'; '.join(f'{names} ({code})' for names, code in named)}"
        for named, lengths in parts.items()
    ]


def _versions(table: TaskTable, length: int) -> dict[tuple[str, str] | None, tuple[list[GridRow], str]]:
    """Prompts and definition of the task at a length → rows that have them, and what computed these."""
    found: dict[tuple[str, str] | None, tuple[list[GridRow], str]] = {}
    for row in table.rows:
        if (record := row.cells.get(length)) is not None:
            prompts, rules = (record.params.get(name) for name in ("prompts", "task_digest"))
            key = None if prompts is None else (prompts, str(rules))
            found.setdefault(key, ([], code_of(record)))[0].append(row)
    return found


def _sample_notes(table: TaskTable) -> list[str]:
    notes = []
    counts = {length: table.counts("n", length) for length in table.lengths}
    known = {length: count for length, count in counts.items() if count is not None}
    fewest = min((low for low, _ in known.values()), default=FEW_SAMPLES)
    if fewest < FEW_SAMPLES:
        notes.append(f"few samples ({fewest}): only large differences could show")
    if len({count for pair in known.values() for count in pair}) > 1:
        each = ", ".join(f"{span(count)} at {format_length(length)}" for length, count in known.items())
        notes.append(f"not the same number of samples everywhere ({each}): columns or rows are not fully comparable")
    if any((table.counts("truncated", length) or (0, 0))[1] for length in table.lengths):
        notes.append("a sample whose document was cut to fit may have lost what the answer rests on")
    documents = [count for length in table.lengths if (count := table.counts("documents", length)) is not None]
    fewest = min((low for low, _ in documents), default=MIN_UNITS)
    if fewest < MIN_UNITS and any(count[1] > fewest for count in known.values()):
        notes.append(f"few documents ({fewest}): even the standard errors are rough")
    return notes


def span(count: tuple[int, int] | None) -> str:
    """`20`, `18–20` where methods differ, or a dash."""
    if count is None:
        return "–"
    low, high = count
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def count_rows(table: TaskTable) -> list[tuple[str, list[str]]]:
    """Counts by length under a table: samples, and where there are any, shared documents, cut and left-out samples."""
    fields: tuple[tuple[str, CountField], ...] = (
        ("samples", "n"),
        ("documents", "documents"),
        ("cut to fit", "truncated"),
        ("left out", "skipped"),
    )
    rows = []
    for name, field in fields:
        counts = [table.counts(field, length) for length in table.lengths]
        if field == "n" or any(count is not None and count[1] for count in counts):
            rows.append((name, [span(count) for count in counts]))
    return rows


def _named(table: TaskTable, records: Sequence[Record]) -> str:
    """`none 8k, 16k; yarn 16k`."""
    chosen = {id(record) for record in records}
    parts = [
        f"{row_name(row, table.rows)} {', '.join(format_length(length) for length in lengths)}"
        for row in table.rows
        if (lengths := _lengths(row, chosen))
    ]
    return "; ".join(parts)


def _lengths(row: GridRow, chosen: set[int]) -> list[int]:
    return [length for length, record in sorted(row.cells.items()) if id(record) in chosen]
