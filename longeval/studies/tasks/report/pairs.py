"""Each method against its resonance form on the same samples of the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longeval.report.document import Data, Prose, Row, Table, TableCell, prose, symbol
from longeval.report.numbers import MISSING, counted, format_change, format_p, format_score
from longeval.report.settings import comparable
from longeval.report.tables import DASH, GridRow, factor_text, resonance_pairs
from longeval.stats.bootstrap import MIN_UNITS
from longeval.stats.scores import PairedScore, mcnemar, paired_score
from longeval.store.records import Record
from longeval.store.samples import Sample
from longeval.studies.tasks.report.tables import TaskSet, TaskTable
from longeval.values import format_length

SamplesOf = Callable[[str], tuple[Sample, ...] | None]
"""Cell id → its samples, or None where none are stored."""

ALPHA = 0.05

FEWEST_DISCORDANT = next(k for k in range(1, 64) if mcnemar(0, k) < ALPHA)
"""With fewer samples in which two methods differ, McNemar's exact test can't reach ALPHA, whatever their direction."""


INCOMPARABLE = "since they differ in more than the method (settings, or the version of the task)"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPair:
    """A base method and its resonance form on one task at one length."""

    task: str
    """Title of the task's table."""
    metric: str
    base: GridRow
    resonance: GridRow
    length: int
    record_base: Record
    record_resonance: Record
    found: PairedScore | None
    why_not: str
    """Why there is no comparison by samples; empty where there is one."""

    @property
    def is_different(self) -> bool:
        """Whether the comparison rules out no difference: by McNemar's test where there is one, else by interval."""
        if self.found is None:
            return False
        return self.found.excludes_zero if self.found.p is None else self.found.p < ALPHA

    @property
    def says_nothing(self) -> bool:
        """Whether too few samples differ for McNemar's test to speak either way."""
        return self.found is not None and self.found.p is not None and self.found.discordant < FEWEST_DISCORDANT


def task_pairs(table: TaskTable, samples: SamplesOf) -> list[TaskPair]:
    """The pairs of a task's table at every length where both have a score; none for an average of a group."""
    if table.members is not None:
        return []
    pairs = []
    for base, row in resonance_pairs(table.rows):
        for length in table.lengths:
            a, b = base.cells.get(length), row.cells.get(length)
            if a is None or b is None or a.value is None or b.value is None:
                continue
            found, why_not = _compared(a, b, samples)
            pairs.append(
                TaskPair(
                    task=table.title,
                    metric=table.metric,
                    base=base,
                    resonance=row,
                    length=length,
                    record_base=a,
                    record_resonance=b,
                    found=found,
                    why_not=why_not,
                )
            )
    return pairs


def _compared(a: Record, b: Record, samples: SamplesOf) -> tuple[PairedScore | None, str]:
    """The comparison, or why there is none."""
    if not comparable(a, b):
        return None, INCOMPARABLE
    samples_a, samples_b = samples(a.cell), samples(b.cell)
    if not samples_a or not samples_b:
        return None, "samples are not stored"
    if not any(a.metric in sample.scores for sample in samples_a):
        return None, "the metric is not a mean over samples"
    found = paired_score(samples_a, samples_b, a.metric, seed=int(a.params.get("seed") or 0))
    return found, "" if found is not None else "no sample had the same prompt in both"


def pair_table(pairs: Sequence[TaskPair], title: str, slug: str) -> Table:
    """All comparisons of a set of tasks."""
    text_columns: tuple[Prose, ...] = ("task", "pair", symbol("s"), "length", symbol("n"), "base", "resonance")
    return Table(
        columns=(*text_columns, "difference", "base only", "resonance only", symbol("p")),
        rows=tuple(Row(cells=tuple(_pair_cells(pair))) for pair in pairs),
        left=2,
        title=title,
        caption=_caption(pairs),
        notes=tuple(pair_notes(pairs)),
        label=f"score-pairs-{slug}",
    )


def paper_pair_table(table: Table) -> Table:
    """The table of comparisons without the two scores, so that it fits on a page, and without its notes."""
    kept = [number for number, column in enumerate(table.columns) if column not in ("base", "resonance")]
    return replace(
        table,
        columns=tuple(table.columns[number] for number in kept),
        rows=tuple(Row(cells=tuple(row.cells[number] for number in kept)) for row in table.rows),
        notes=(),
    )


def _caption(pairs: Sequence[TaskPair]) -> str:
    text = "Score of the resonance form minus that of its base on the same samples, with the 95% interval"
    text += " (positive: resonance is better)"
    text += ". Base only, resonance only: samples in which that one scored more than the other"
    if any(pair.found is not None and pair.found.p is not None for pair in pairs):
        text += ". p: McNemar's exact two-sided test (not mid-p)"
    if any(pair.found is not None and pair.found.p is None for pair in pairs):
        text += "; without p, samples are graded or share documents, and the interval decides"
    return f"{text}. Bold: p < {ALPHA}, or without p an interval that excludes 0."


def _pair_cells(pair: TaskPair) -> Iterator[TableCell]:
    yield TableCell(text=f"{pair.task}: {pair.metric}")
    yield TableCell(text=prose("`{}` vs `{}`", pair.resonance.label, pair.base.label))
    yield TableCell(text=factor_text(pair.base))
    yield TableCell(text=format_length(pair.length))
    found = pair.found
    if found is None:
        a, b = pair.record_base.value or 0.0, pair.record_resonance.value or 0.0
        difference = MISSING if pair.why_not == INCOMPARABLE else format_change(b - a)
        yield from (TableCell(text=text) for text in (MISSING, format_score(a), format_score(b), difference))
        yield from (DASH, DASH, DASH)
        return
    yield TableCell(text=f"{found.n:,}")
    yield TableCell(text=format_score(found.value_a, found.stderr))
    yield TableCell(text=format_score(found.value_b, found.stderr))
    interval = None
    if found.ci_low is not None and found.ci_high is not None:
        interval = format_change(found.ci_low, found.stderr), format_change(found.ci_high, found.stderr)
    yield TableCell(text=format_change(found.difference, found.stderr), interval=interval, is_strong=pair.is_different)
    yield TableCell(text=str(found.a_only))
    yield TableCell(text=str(found.b_only))
    yield DASH if found.p is None else TableCell(text=format_p(found.p))


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


def pair_data(tasks: TaskSet, pairs: Iterable[TaskPair]) -> Data:
    """One row per pair, task and length: what the resonance form scores more than its base on the same samples."""
    rows = []
    for pair in pairs:
        found = pair.found
        row: dict[str, Any] = {
            "model": tasks.model,
            "differs": tasks.differs,
            "task": pair.task,
            "metric": pair.metric,
            "base": pair.base.label,
            "resonance": pair.resonance.label,
            "factor": pair.record_base.factor,
            "length": pair.length,
            "score_base": pair.record_base.value if found is None else found.value_a,
            "score_resonance": pair.record_resonance.value if found is None else found.value_b,
        }
        row |= {name: getattr(found, name, None) for name in ("difference", "stderr", "ci_low", "ci_high")}
        row["ci_method"] = None if found is None else (found.how or {}).get("method")
        own = {"p_mcnemar": "p", "base_only": "a_only", "resonance_only": "b_only", "n": "n", "documents": "clusters"}
        row |= {column: getattr(found, name, None) for column, name in own.items()}
        row["unmatched"] = None if found is None else found.unmatched
        row["different"] = None if found is None else pair.is_different
        rows.append(row | {"why_not": pair.why_not})
    return Data(name="score_pairs", rows=tuple(rows))
