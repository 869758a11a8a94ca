"""PosGen's published numbers beside a table: differences, where the order is another, and which settings are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

from longeval.report.numbers import format_factor
from longeval.report.posgen_tables import OOD, PosGenRow, PosGenTable
from longeval.report.published import PublishedRow, PublishedSet, published_sets
from longeval.stats.seeds import SeedMean, paired_over_seeds

_LEFT_OPEN = ("tied", "attention_scale", "init", "start_token", "dropout", "frozen_mlp")
"""Settings of the records that the paper's text says nothing of."""

_OF_METHODS = ("factor", "native_length")
"""Settings that only methods with a factor have."""


class Published(NamedTuple):
    """A published number."""

    mean: float
    variance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Inversion:
    """Two methods that stand in the other order here than in the paper."""

    above: PosGenRow
    """The better one here."""
    below: PosGenRow
    here: float
    """Points between their means here."""
    difference: SeedMean | None
    """The same seed by seed; None where no seed has both."""
    published: float
    """Points between them in the paper, above 0 too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Methods of one task by their OOD accuracy, those that have both numbers."""

    here: tuple[PosGenRow, ...]
    """Best first."""
    here_means: tuple[float, ...]
    """Their means in percent."""
    steps: tuple[SeedMean | None, ...]
    """Each one's lead over the next, seed by seed; None where no seed has both."""
    published: tuple[PosGenRow, ...]
    """Best first by the paper's numbers."""
    inversions: tuple[Inversion, ...]
    """Pairs in which they disagree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A table beside the paper's."""

    published: PublishedSet
    table: PosGenTable

    @property
    def tasks(self) -> tuple[str, ...]:
        """Columns that both have."""
        return tuple(task for task in self.table.tasks if task in self.published.columns)

    @property
    def rows(self) -> tuple[PosGenRow, ...]:
        """Methods that both have."""
        return tuple(row for row in self.table.rows if self._row(row) is not None)

    def number(self, row: PosGenRow, task: str) -> Published | None:
        """The paper's number."""
        found = self._row(row)
        if found is None or task not in found.values:
            return None
        return Published(found.values[task], found.variances[task])

    def order(self, task: str) -> Order | None:
        """The order of the methods here and in the paper; None with fewer than two that have both numbers."""
        means: list[tuple[PosGenRow, float, float]] = []
        for row in self.rows:
            own = row.runs[task].mean(OOD) if task in row.runs else None
            theirs = self.number(row, task)
            if own is not None and theirs is not None:
                means.append((row, own.mean, theirs.mean))
        if len(means) < 2:
            return None
        inversions = []
        for one, other in combinations(means, 2):
            above, below = (one, other) if one[1] > other[1] else (other, one)
            if round(above[1], 2) > round(below[1], 2) and above[2] < below[2]:  # what tables show as equal is no order
                inversions.append(
                    Inversion(
                        above=above[0],
                        below=below[0],
                        here=above[1] - below[1],
                        difference=_lead(above[0], below[0], task),
                        published=below[2] - above[2],
                    )
                )
        ranked = sorted(means, key=lambda item: -item[1])
        here = tuple(row for row, _, _ in ranked)
        return Order(
            here=here,
            here_means=tuple(mean for _, mean, _ in ranked),
            steps=tuple(_lead(above, below, task) for above, below in pairwise(here)),
            published=tuple(row for row, _, _ in sorted(means, key=lambda item: -item[2])),
            inversions=tuple(inversions),
        )

    def differences(self) -> Iterator[tuple[str, str, str]]:
        """Settings that the paper states and this table has otherwise: name, theirs, ours."""
        params = self.table.params | {"dtype": self.table.records[0].dtype, "seeds": len(self.table.seeds)}
        for name, theirs in self.published.params.items():
            if name in _OF_METHODS:
                found = self._of_methods(name)
            else:
                found = [params[name]] if params.get(name) is not None else []
            if any(not _equal(theirs, ours) for ours in found):
                yield name, _text(theirs), " and ".join(map(_text, found))

    def left_open(self) -> Iterator[tuple[str, str]]:
        """Settings that the paper's text doesn't state, with ours."""
        for name in _LEFT_OPEN:
            if name in self.table.params:
                yield name, _text(self.table.params[name])

    def _of_methods(self, name: str) -> list[object]:
        """Values of a setting among methods with a factor that the paper has too, each once."""
        found: dict[object, None] = {}
        for row in self.rows:
            for runs in row.runs.values():
                for record in runs.records:
                    value = record.factor if name == "factor" else record.params.get(name)
                    if record.factor is not None and value is not None:
                        found[value] = None
        return list(found)

    def _row(self, row: PosGenRow) -> PublishedRow | None:
        return next((theirs for theirs in self.published.rows if theirs.method == row.row.pe), None)


def comparison(table: PosGenTable) -> Comparison | None:
    """The table beside the published one; None where they share no method or no task."""
    (published,) = [found for found in published_sets() if found.kind == "posgen"]
    found = Comparison(published=published, table=table)
    return found if found.rows and found.tasks else None


def _lead(above: PosGenRow, below: PosGenRow, task: str) -> SeedMean | None:
    """How much one method is above another, over the seeds that both have."""
    return paired_over_seeds(below.runs[task].values(OOD), above.runs[task].values(OOD))


def _equal(a: object, b: object) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def _text(value: object) -> str:
    """`150`, `0.0002`, `10000`, `on`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_factor(value) if isinstance(value, float) else str(value)
