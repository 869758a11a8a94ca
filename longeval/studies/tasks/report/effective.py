"""Effective length by tasks: how far each method keeps its score.

Two rules. NoLiMa's: at least 85% of the method's own base score, its best at lengths up to 1k, or where none was tried
its score at the shortest one. RULER's: at least 85.6%, what Llama-2-7B scores at 4k; only for RULER's tasks as lm-eval
has them and their average, as a bar for these says nothing of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from longeval.metrics import higher_is_better
from longeval.report.collect import Collection
from longeval.report.document import Data, Heading, Paragraph, Prose, Row, Section, Table, TableCell, code, symbol
from longeval.report.effective import effective_cell, effective_numbers, interval_sentence
from longeval.report.numbers import counted, format_score
from longeval.report.settings import method_of
from longeval.report.tables import GridRow, factor_text, row_name, slugs_of
from longeval.stats.effective import (
    RULER_BAR,
    SHORT_TOKENS,
    Effective,
    Joint,
    Rule,
    effective_length,
    from_values,
    joint_scores,
    keeps_base,
    num_base,
    reaches_bar,
)
from longeval.store.records import Record
from longeval.studies.tasks.definitions.needs import RULER_NEEDS
from longeval.studies.tasks.report.notes import is_chance
from longeval.studies.tasks.report.tables import FEW_SAMPLES, TaskSet, TaskTable, build_task_sets
from longeval.values import format_length

_RULER = frozenset({*RULER_NEEDS, "ruler"})


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveScore:
    """One method of one model on one task, or on the average of a group."""

    tasks: TaskSet
    """All tasks of its model."""
    table: TaskTable
    row: GridRow
    base: float | None
    """Base score; None where no length has a score."""
    base_lengths: tuple[int, ...]
    """Lengths of which the base score is the best."""
    kept: Effective | None
    """By NoLiMa's rule; None where nothing can be said."""
    bar: Effective | None
    """By RULER's rule; None for other tasks."""
    samples: int | None
    """Number of samples that every length has, of each task; None where values of samples are not stored."""
    why: str
    """Why nothing can be said, or where a failed cell ended the lengths; may be empty."""


def opening(collection: Collection) -> list[Section]:
    """What opens the report: a section for all models that were asked in one way."""
    groups: dict[str, list[TaskSet]] = {}
    for tasks in build_task_sets(collection.current):
        groups.setdefault(tasks.differs, []).append(tasks)
    titles = [_title(sets) for sets in groups.values()]
    slugs = slugs_of(titles)
    made = (
        _section(sets, title, slug, collection)
        for sets, title, slug in zip(groups.values(), titles, slugs, strict=True)
    )
    return [section for section in made if section is not None]


def _title(sets: Sequence[TaskSet]) -> str:
    """Of several models, their number in place of a name."""
    first = sets[0]
    return first.title if len(sets) == 1 else replace(first, model=counted(len(sets), "model")).title


def _section(sets: Sequence[TaskSet], subject: str, slug: str, collection: Collection) -> Section | None:
    found = [score for tasks in sets for score in effective_scores(tasks, collection)]
    if not found:
        return None
    title = f"Tasks: {subject}"
    data = (Data(name="effective", rows=tuple(_data(found))),)
    answers = [answer for score in found for answer in (score.kept, score.bar) if answer is not None]
    if not answers:
        why = f"Not known of {subject}: {'; '.join(_notes(found))}."
        return Section(title=title, blocks=(Paragraph(text=why),), data=data)
    table = _table(found, subject, slug)
    said = f"{interval_sentence(answers)}{_concluded(found)}"
    return Section(title=title, blocks=(Heading(text=title), table, Paragraph(text=said)), paper=(table,), data=data)


def effective_scores(tasks: TaskSet, collection: Collection) -> list[EffectiveScore]:
    """Effective lengths of all methods on all tasks, and averages, of which more is better."""
    every = [*tasks.tasks, *tasks.groups]
    tables = [table for table in every if all(higher_is_better(record) is not False for record in table.records)]
    return [_effective_score(tasks, table, row, collection) for table in tables for row in table.rows]


def _effective_score(tasks: TaskSet, table: TaskTable, row: GridRow, collection: Collection) -> EffectiveScore:
    judged: list[Record] = []
    why = ""
    for length, record in sorted(row.cells.items()):
        if record.status != "ok" or record.value is None:
            shown = format_length(length)
            why = f"judged up to {format_length(judged[-1].length)} only: {shown} has no score" if judged else ""
            why = why or f"the shortest length, {shown}, has no score"
            break
        judged.append(record)
    lengths = [record.length for record in judged]
    bases = judged[: num_base(lengths)]
    best = max(bases, key=lambda record: record.value or 0.0, default=None)
    parts = _parts(tasks, table, row, judged, collection) if judged else None
    is_ruler = table.task in _RULER
    kept = bar = None
    if best is not None and (not best.value or _is_guessing(tasks, table, best)):
        why = "the base score can't be told from guessing, or is 0"
    elif len(judged) == 1:
        why = why or "a single length has a score"
    elif judged:
        kept = _by_rule(judged, parts, keeps_base(len(bases)))
    if judged and is_ruler:
        bar = _by_rule(judged, parts, reaches_bar)
    return EffectiveScore(
        tasks=tasks,
        table=table,
        row=row,
        base=None if best is None else best.value,
        base_lengths=tuple(record.length for record in bases),
        kept=kept,
        bar=bar,
        samples=None if parts is None else min(int(part.denominator_NU[0].sum()) for part in parts),
        why=why,
    )


def _is_guessing(tasks: TaskSet, table: TaskTable, base: Record) -> bool:
    """Whether a base score can't be told from guessing; of an average, those of all its tasks."""
    if table.members is None:
        return is_chance(table, base)
    rows = [(other, _row_like(other, base)) for other in tasks.tasks if other.task in table.members]
    records = [(other, None if row is None else row.cells.get(base.length)) for other, row in rows]
    return bool(records) and all(is_chance(other, record) for other, record in records)


def _row_like(table: TaskTable, record: Record) -> GridRow | None:
    """The row of a task that has the same method with the same parameters and factor as a record of another."""
    own = record.pe, method_of(record), record.factor
    return next(
        (row for row in table.rows if any((r.pe, row.method, r.factor) == own for r in row.cells.values())), None
    )


def _by_rule(judged: Sequence[Record], parts: Sequence[Joint] | None, rule: Rule) -> Effective:
    lengths = [record.length for record in judged]
    if parts is None:
        return from_values(lengths, rule, [record.value or 0.0 for record in judged])
    return effective_length(lengths, rule, parts, seed=int(judged[0].params.get("seed") or 0))


def _parts(
    tasks: TaskSet, table: TaskTable, row: GridRow, judged: Sequence[Record], collection: Collection
) -> list[Joint] | None:
    """Samples of the task at all lengths, or of each task of an average; None where some are not stored.

    An average by numbers of samples has none: its tasks don't count alike.
    """
    if table.members is None:
        joint = _joint(judged, collection)
        return None if joint is None else [joint]
    if judged[0].params.get("weight_by_size"):
        return None
    lengths = [record.length for record in judged]
    rows = [_row_like(other, judged[0]) for other in tasks.tasks if other.task in table.members]
    cells = [row.cells for row in rows if row is not None and row.cells.keys() >= {*lengths}]
    found = [_joint([own[length] for length in lengths], collection) for own in cells]
    joints = [joint for joint in found if joint is not None]
    return joints if joints and len(joints) == len(table.members) else None


def _joint(records: Sequence[Record], collection: Collection) -> Joint | None:
    read = [collection.samples(record.cell) for record in records]
    whole = [samples for samples in read if samples]
    return joint_scores(whole, records[0].metric) if len(whole) == len(records) else None


def _several_models(found: Sequence[EffectiveScore]) -> bool:
    return len({score.tasks.model for score in found}) > 1


def _table(found: Sequence[EffectiveScore], subject: str, slug: str) -> Table:
    several = _several_models(found)
    has_bar = any(score.table.task in _RULER for score in found)
    columns: list[Prose] = [
        *(["model"] if several else []),
        "task",
        "method",
        symbol("s"),
        "base score",
        "effective length",
    ]
    columns += [f"at least {100 * RULER_BAR:.1f}%"] if has_bar else []
    rows = []
    for score in found:
        base = "–" if score.base is None else format_score(score.base)
        cells = [
            *([TableCell(text=code(score.tasks.model))] if several else []),
            TableCell(text=score.table.title),
            TableCell(text=code(score.row.label)),
            TableCell(text=factor_text(score.row)),
            TableCell(text=base),
            effective_cell(score.kept),
        ]
        rows.append(Row(cells=(*cells, effective_cell(score.bar)) if has_bar else tuple(cells)))
    return Table(
        columns=tuple(columns),
        rows=tuple(rows),
        left=3 if several else 2,
        title=f"Effective length: {subject}",
        caption=_caption(found, has_bar=has_bar),
        notes=tuple(_notes(found)),
        label=f"effective-{slug}",
    )


def _caption(found: Sequence[EffectiveScore], *, has_bar: bool) -> str:
    text = (
        "Effective length: the longest length tried at which a method, as at every shorter one, keeps at least 85% of "
        "its own base score (the rule of NoLiMa)"
    )
    bases = {score.base_lengths for score in found if score.base_lengths}
    shown = [", ".join(map(format_length, lengths)) for lengths in sorted(bases)]
    if all(lengths[-1] <= SHORT_TOKENS for lengths in bases):
        text += f". The base score is the best at lengths up to 1k, here {' or '.join(shown)}" if shown else ""
    else:
        text += (
            f". The base score is the one at the shortest length, {' or '.join(shown)}; NoLiMa takes the best up to 1k"
        )
    if has_bar:
        text += (
            f". At least {100 * RULER_BAR:.1f}%: the longest with this score, that of Llama-2-7B at 4k (the rule of "
            "RULER, made for the average of its 13 tasks)"
        )
    return f"{text}. ≥: the longest length tried passes, so the effective length may be longer."


def _notes(found: Sequence[EffectiveScore]) -> Iterator[str]:
    """Rows without an answer, of few samples, or with other samples at some lengths."""
    for why in dict.fromkeys(score.why for score in found if score.why):
        yield f"{why}: {_where(found, lambda score, why=why: score.why == why)}"  # type: ignore[misc]
    counted_rows = [score for score in found if score.samples is not None and (score.kept or score.bar)]
    for few in sorted({score.samples for score in counted_rows if score.samples and score.samples < FEW_SAMPLES}):
        where = _where(counted_rows, lambda score, few=few: score.samples == few)  # type: ignore[misc]
        answers = [answer for score in counted_rows if score.samples == few for answer in (score.kept, score.bar)]
        narrow = any(answer is not None and answer.ends is not None for answer in answers)
        yield f"few samples ({few}): a rough estimate{', and an interval that may be too narrow' * narrow}: {where}"
    differ = [score for score in counted_rows if score.table.members is None and score.samples != _most(score)]
    if differ:
        yield f"lengths have different samples; compared on those that all have: {_where(differ, lambda score: True)}"


def _most(score: EffectiveScore) -> int | None:
    """The largest number of samples at any length."""
    return max((record.n for record in score.row.cells.values() if record.n is not None), default=score.samples)


def _where(found: Sequence[EffectiveScore], chosen: Callable[[EffectiveScore], bool]) -> str:
    """`passkey none, yarn; quality yarn`; of several models, each name begins with the model."""
    several = _several_models(found)
    names: dict[str, list[str]] = {}
    for score in filter(chosen, found):
        of_model = f"{score.tasks.model} " if several else ""
        names.setdefault(f"{of_model}{score.table.title}", []).append(row_name(score.row, score.table.rows))
    return "; ".join(f"{task} {', '.join(rows)}" for task, rows in names.items())


def _concluded(found: Sequence[EffectiveScore]) -> str:
    """What can be concluded from the table, and what not."""
    numbers = [score.samples for score in found if score.samples is not None and score.kept is not None]
    if not numbers:
        return "Values of single samples are not stored, so nothing says how much of it is chance."
    least, most = min(numbers), max(numbers)
    shown = counted(most, "sample") if least == most else f"{least:,} to {counted(most, 'sample')}"
    return (
        f"Each row rests on {shown} and holds for other samples of the same task; a length of one task says nothing of "
        "another, nor does keeping a low base score make a method good."
    )


def _data(found: Sequence[EffectiveScore]) -> Iterator[dict[str, object]]:
    """One row per task, method and rule."""
    for score in found:
        rules = [("85% of the base score", score.kept)]
        rules += [(f"at least {RULER_BAR}", score.bar)] if score.table.task in _RULER else []
        for rule, answer in rules:
            yield {
                "model": score.tasks.model,
                "subject": score.table.title,
                "protocol": None,
                "differs": score.tasks.differs,
                "metric": score.table.metric,
                "rule": rule,
                "pe": score.row.label,
                "factor": score.row.factor,
                "native_length": score.tasks.native_length,
                "base": score.base,
                "base_lengths": list(score.base_lengths),
                **effective_numbers(answer),
                "samples": score.samples,
                "why": score.why,
            }
