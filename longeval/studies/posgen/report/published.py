"""Compares a PosGen table with the published numbers: differences, order of methods, and settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

from longeval.report.document import Block, Bullets, Heading, Paragraph, Prose, Table, TableCell, code, joined, prose
from longeval.report.numbers import format_factor
from longeval.report.published import PublishedRow, PublishedSet, published_sets
from longeval.report.tables import DASH, method_row
from longeval.stats.seeds import SeedMean, paired_over_seeds
from longeval.studies.posgen.report.tables import (
    OOD,
    PosGenRow,
    PosGenTable,
    columns,
    interval_text,
    mean_cell,
    points_text,
)

_LEFT_OPEN = ("tied", "attention_scale", "init", "start_token", "dropout", "frozen_mlp")
"""Settings that the paper's text doesn't state."""

_OF_METHODS = ("factor", "native_length")
"""Settings that apply only to methods with a factor."""


class Published(NamedTuple):
    """A published number."""

    mean: float
    variance: float

    @property
    def text(self) -> str:
        """Mean and variance, such as `98.71 ± 0.00`."""
        return f"{self.mean:.2f} ± {self.variance:.2f}"


class Both(NamedTuple):
    """Our number and the published one for a method on one task."""

    row: PosGenRow
    ours: float
    """OOD accuracy in percent, mean over seeds."""
    theirs: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Our table together with the published one."""

    published: PublishedSet
    table: PosGenTable

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that are in both tables."""
        return tuple(task for task in self.table.tasks if task in self.published.columns)

    @property
    def rows(self) -> tuple[PosGenRow, ...]:
        """Methods that are in both tables."""
        return tuple(row for row in self.table.rows if self._row(row) is not None)

    def number(self, row: PosGenRow, task: str) -> Published | None:
        """The published number, or None."""
        found = self._row(row)
        if found is None or task not in found.values:
            return None
        return Published(found.values[task], found.variances[task])

    def both(self, task: str) -> list[Both]:
        """Methods that have both numbers for a task, in descending order of ours."""
        found = [(row, row.runs[task].mean(OOD), self.number(row, task)) for row in self.rows]
        both = [Both(row, ours.mean, theirs.mean) for row, ours, theirs in found if ours is not None and theirs]
        return sorted(both, key=lambda one: -one.ours)

    def differences(self) -> Iterator[tuple[str, str, str]]:
        """Yields (name, theirs, ours) for each setting that differs from the one in the paper."""
        params = self.table.params | {"dtype": self.table.records[0].dtype, "seeds": len(self.table.seeds)}
        for name, theirs in self.published.params.items():
            ours = self._of_methods(name) if name in _OF_METHODS else [params.get(name)]
            ours = [value for value in ours if value is not None]
            if not all(_equal(theirs, value) for value in ours):
                yield name, _text(theirs), " and ".join(map(_text, ours))

    def left_open(self) -> list[str]:
        """Our values of the settings that the paper's text doesn't state."""
        params = self.table.params
        return [f"{name} {_text(params[name])}" for name in _LEFT_OPEN if name in params]

    def _of_methods(self, name: str) -> list[object]:
        """The distinct values of a setting among the methods with a factor that are in both tables."""
        records = [record for row in self.rows for runs in row.runs.values() for record in runs.records]
        having = [record for record in records if record.factor is not None]
        return list(dict.fromkeys(r.factor if name == "factor" else r.params.get(name) for r in having))

    def _row(self, row: PosGenRow) -> PublishedRow | None:
        if row.row.method != row.row.of_base:  # other parameters of resonance than the paper's are another method
            return None
        return next((theirs for theirs in self.published.rows if theirs.method == row.row.pe), None)


def comparison(table: PosGenTable) -> Comparison | None:
    """The comparison of a table with the published one; None if they share no method or no task."""
    (published,) = [found for found in published_sets() if found.kind == "posgen"]
    found = Comparison(published=published, table=table)
    return found if found.rows and found.tasks else None


def _equal(a: object, b: object) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def _text(value: object) -> str:
    """A setting's value as text, such as `150`, `0.0002` or `on`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_factor(value) if isinstance(value, float) else str(value)


def published_blocks(beside: Comparison) -> list[Block]:
    """The blocks of the comparison: a table of OOD accuracies, and a list about order and settings."""
    what, *setting = beside.published.setting
    intro = f"Published: {beside.published.source}. {what} Difference: here − published."
    names = [name for task in beside.tasks for name in (f"{task}, here", "published", "difference")]
    rows = tuple(
        method_row(row.row, [cell for task in beside.tasks for cell in _cells(beside, row, task)])
        for row in beside.rows
    )
    items = [item for task in beside.tasks for item in _order_items(task, beside.both(task))]
    return [
        Heading(text="Beside the published numbers"),
        Paragraph(text=intro),
        Table(columns=columns(names), rows=rows),
        Bullets(items=(*items, *_setting_items(beside), *setting)),
    ]


def _cells(beside: Comparison, row: PosGenRow, task: str) -> list[TableCell]:
    """Our mean, the published mean, and their difference."""
    mean, theirs = row.runs[task].mean(OOD), beside.number(row, task)
    ours = mean_cell(mean, with_interval=False)
    if theirs is None:
        return [ours, DASH, DASH]
    difference = DASH if mean is None else TableCell(text=points_text(mean.mean - theirs.mean))
    return [ours, TableCell(text=theirs.text), difference]


def _order_items(task: str, methods: Sequence[Both]) -> list[Prose | Bullets]:
    """States whether the means are in the published order, each pair in another order, and how certain our order is.

    The methods are in descending order of our means.
    """
    if len(methods) < 2:
        return []
    inverted = [(above, below) for above, below in combinations(methods, 2) if _is_inverted(above, below)]
    here: Prose = code(methods[0].row.name)
    for above, below in pairwise(methods):
        here = joined(" = " if _is_tie(above, below) else " > ", (here, code(below.row.name)))
    if inverted:
        theirs = joined(" > ", (code(one.row.name) for one in sorted(methods, key=lambda one: -one.theirs)))
        template = "{}: the means are not in the published order. Here {}; published {}."
        said = prose(template, task, here, theirs)
    elif any(_is_tie(above, below) for above, below in pairwise(methods)):
        said = prose("{}: no mean is above one that it is below there, {}.", task, here)
    else:
        said = prose("{}: the means are in the published order, {}.", task, here)
    inner = [_inversion(task, above, below) for above, below in inverted]
    return [said, Bullets(items=(*inner, *_certainty(task, methods)))]


def _is_tie(above: Both, below: Both) -> bool:
    """Whether two of our means are equal at two decimals."""
    return round(above.ours, 2) == round(below.ours, 2)


def _is_inverted(above: Both, below: Both) -> bool:
    """Whether two methods are in the opposite order in the paper. Means equal at two decimals have no order."""
    return not _is_tie(above, below) and above.theirs < below.theirs


def _lead(above: Both, below: Both, task: str) -> SeedMean | None:
    """Mean difference of two methods over the seeds that both have, with its interval."""
    return paired_over_seeds(below.row.values(task), above.row.values(task))


def _inversion(task: str, above: Both, below: Both) -> Prose:
    """A sentence about two methods in the opposite order: their differences, and whether ours is significant."""
    points = above.ours - below.ours
    difference = _lead(above, below, task)
    if difference is None:
        known = "; no seed has both"
    elif difference.n == 1:
        known = "; one seed has both"
    else:
        by_seed = points_text(difference.mean)
        also = "" if by_seed == points_text(points) else f", over the seeds that both have {by_seed}"
        certain = "lies on one side of 0" if difference.excludes_zero else "holds 0"
        known = f"{also}; the paired interval {interval_text(difference)} of {difference.n} seeds {certain}"
    published = f"{below.theirs - above.theirs:.2f}"
    template = "`{}` is {} points above `{}`{}. Published: {} points below."
    return prose(template, above.row.name, f"{points:.2f}", below.row.name, known, published)


def _certainty(task: str, methods: Sequence[Both]) -> Iterator[Prose]:
    """Yields sentences about which neighbours in our order differ significantly over seeds."""
    told: list[Prose] = []
    open_: list[Prose] = []
    untold: list[Prose] = []
    for above, below in pairwise(methods):
        pair = prose("`{}` and `{}`", above.row.name, below.row.name)
        lead = _lead(above, below, task)
        if lead is None or lead.n == 1:
            untold.append(pair)
        else:
            numbers = f"({points_text(lead.mean)}, interval {interval_text(lead)}, {lead.n} seeds)"
            (told if lead.excludes_zero else open_).append(joined(" ", (pair, numbers)))
    if told:
        template = "Neighbours that the seeds tell apart (the paired interval excludes 0): {}."
        yield prose(template, joined(", ", told))
    if open_:
        template = "Neighbours that the seeds don't tell apart (the paired interval holds 0): {}."
        yield prose(template, joined(", ", open_))
    if untold and not (told or open_):
        yield "One seed, which can't tell whether another would give the same order."
    elif untold:
        template = "Neighbours that fewer than two seeds have both: {}; nothing can be told of them."
        yield prose(template, joined(", ", untold))


def _setting_items(beside: Comparison) -> list[Prose]:
    """Sentences about settings that differ from the paper, and settings that the paper doesn't state."""
    named = [f"{name} {ours} (theirs {theirs})" for name, theirs, ours in beside.differences()]
    items: list[Prose] = ["All settings that the paper states are the same here."]
    if named:
        items = [f"Other settings here than the paper states: {', '.join(named)}."]
    if beside.table.regime != "trained":
        items.append("The regime here is not the one of the paper's text, but the one of its published code.")
    if left_open := beside.left_open():
        items.append(f"What the paper's text leaves open is here: {', '.join(left_open)}.")
    return items
