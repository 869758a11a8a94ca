"""Each method against its resonance form on the same samples of the same tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longeval.report.rows import GridRow, base_row
from longeval.report.settings import comparable
from longeval.report.task_tables import TaskTable
from longeval.stats.scores import PairedScore, mcnemar, paired_score
from longeval.store.records import Record
from longeval.store.samples import Sample

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
    for row in table.rows:
        base = base_row(row, table.rows)
        if base is None:
            continue
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
