"""PosGen's tables: sorts cells into tables and rows, and computes means over seeds.

A table holds only comparable cells: the same regime and, except for seeds, the same settings. Its rows are methods,
each resonance form below its base; its columns are tasks. Each row and column has one cell per seed. Values are
percentages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from longeval.looks import base_method, is_resonance
from longeval.report.collect import Collection, posgen_rule
from longeval.report.document import Prose, TableCell, symbol
from longeval.report.numbers import counted, numbers_text
from longeval.report.settings import method_of, split
from longeval.report.tables import DASH, GridRow, method_rows, resonance_pairs, row_name
from longeval.stats.seeds import SeedMean, over_seeds, paired_over_seeds
from longeval.store.curves import CURVES
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record

OOD, IN_DISTRIBUTION, GENERATED = "accuracy_ood", "accuracy_in_distribution", "accuracy_generated"
METRICS = (OOD, IN_DISTRIBUTION, GENERATED)

_PER_CELL = frozenset(
    {"regime", "seed", "data_seed", "training", "trained_with", "method", "own_native_length", "ci", "stacked"}
)
"""Parameters that belong to a row, a seed or a cell, never to a table; the first three are treated apart. Records of
earlier versions have `stacked`, the number of seeds that trained together."""


REGIMES = {
    "trained": "the method is on while training and in evaluation, as the paper's text has it",
    "swapped": "the base is off while training (YaRN trains as plain RoPE) and switched on for evaluation, Resonance's "
    "rounding is on in both, as in the paper's published code",
}
"""Explanation of each regime, for reports."""


class PosGenPlace(NamedTuple):
    """The place of a cell in a table."""

    task: str
    regime: str
    pe: str
    seed: int


def place_of(cell: Record | PlannedCell) -> PosGenPlace:
    """The place of a record or a planned cell."""
    regime, seed = cell.params.get("regime"), cell.params.get("seed")
    seed = seed if isinstance(seed, int) else 0
    return PosGenPlace(task=posgen_rule(cell), regime=str(regime), pe=cell.pe, seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """The cells of one method on one task, at most one for each seed."""

    cells: dict[int, dict[str, Record]]
    """Seed → metric → record, seeds ascending. A failed cell has one record, without a value."""

    def values(self, metric: str) -> dict[int, float]:
        """Seed → value in percent, for the cells that have one."""
        found = ((seed, records[metric].value) for seed, records in self.cells.items() if metric in records)
        return {seed: 100 * value for seed, value in found if value is not None}

    def mean(self, metric: str) -> SeedMean | None:
        """Mean over seeds, in percent."""
        return over_seeds(self.values(metric), lowest=0.0, highest=100.0)

    @property
    def records(self) -> list[Record]:
        """All records."""
        return [record for records in self.cells.values() for record in records.values()]


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenRow:
    """One method with its parameters and factor."""

    row: GridRow
    """The row in the form of other reports; its `cells` are not used here."""
    name: str
    """Label, with the factor if several rows have the same label."""
    runs: dict[str, Runs]
    """Cells for every task of the table."""

    def values(self, task: str) -> dict[int, float]:
        """Seed → OOD accuracy in percent."""
        return self.runs[task].values(OOD)


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenPair:
    """A method and its resonance form, with differences in percentage points."""

    base: PosGenRow
    resonance: PosGenRow
    differences: dict[str, SeedMean]
    """Task → mean over seeds of the difference in OOD accuracy, resonance − base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenTable:
    """A table of comparable PosGen cells."""

    regime: str
    differs: str
    """The settings that differ from other tables of this report; empty if none differ."""
    tasks: tuple[str, ...]
    """Names of rules, the columns."""
    seeds: tuple[int, ...]
    """All seeds that were requested or have a cell, ascending."""
    rows: tuple[PosGenRow, ...]
    replaced: int
    """Number of cells that are left out because a newer one has the same settings."""

    @property
    def records(self) -> list[Record]:
        """All records, row by row."""
        return [record for row in self.rows for runs in row.runs.values() for record in runs.records]

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the first record; all but those in `_PER_CELL` are equal in all records."""
        return self.records[0].params

    @property
    def title(self) -> str:
        """The title, such as `regime trained, posgen-2x512, 150 epochs, float32`."""
        first = self.records[0]
        return f"regime {self.regime}, {first.model}, {counted(first.params['epochs'], 'epoch')}, {first.dtype}"

    @property
    def seeds_phrase(self) -> str:
        """The seeds in words, such as `5 seeds (0–4)`."""
        return f"{counted(len(self.seeds), 'seed')} ({numbers_text(self.seeds)})"

    def is_best(self, row: PosGenRow, task: str, metric: str) -> bool:
        """Whether a method is at least as good as the other method of its pair at two decimals; False without one."""
        others = [other for other in self.rows if _is_pair(row.row, other.row)]
        mine = _shown_mean(row, task, metric)
        theirs = [mean for other in others if (mean := _shown_mean(other, task, metric)) is not None]
        return mine is not None and bool(theirs) and mine >= max(theirs)

    def pairs(self) -> Iterator[PosGenPair]:
        """Yields the pairs of a method and each of its resonance forms with the same parameters and factor."""
        rows = {(row.row.pe, row.row.method, row.row.factor): row for row in self.rows}
        for pair in resonance_pairs([row.row for row in self.rows]):
            base, resonance = (rows[one.pe, one.method, one.factor] for one in pair)
            found = {task: paired_over_seeds(base.values(task), resonance.values(task)) for task in self.tasks}
            differences = {task: difference for task, difference in found.items() if difference is not None}
            if differences:
                yield PosGenPair(base=base, resonance=resonance, differences=differences)


def _is_pair(a: GridRow, b: GridRow) -> bool:
    """Whether one row is the resonance form of the other."""
    same = (a.of_base, a.factor, base_method(a.pe)) == (b.of_base, b.factor, base_method(b.pe))
    return same and is_resonance(a.pe) != is_resonance(b.pe)


def _shown_mean(row: PosGenRow, task: str, metric: str) -> float | None:
    """A mean at two decimals, as tables show it."""
    mean = row.runs[task].mean(metric)
    return None if mean is None else round(mean.mean, 2)


def build_tables(collection: Collection) -> list[PosGenTable]:
    """Sorts PosGen's records into tables, in the order of their first records."""
    records = collection.made_from(CURVES)
    names = sorted({name for record in records for name in record.params} - _PER_CELL)
    tables: list[PosGenTable] = []
    for part in split(records, names, None):
        for suffix, same_data in _by_data(part.records):
            for regime in dict.fromkeys(place_of(record).regime for record in same_data):
                own = [record for record in same_data if place_of(record).regime == regime]
                differs = ", ".join(filter(None, (part.differs, suffix)))
                tables.append(_table(regime, differs, own, collection.planned))
    return tables


def _by_data(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Separates trainings with data of their own seed from trainings on a shared data seed.

    Returns:
        (description, records) of each part. Records that belong to both parts are in both.
    """
    seeds = {record.cell: (int(record.params["seed"]), record.params.get("data_seed")) for record in records}
    shared = sorted({data for seed, data in seeds.values() if data is not None and data != seed})
    own = [record for record in records if seeds[record.cell][1] in (None, seeds[record.cell][0])]
    parts = [(f"data of seed {data} for all", [r for r in records if seeds[r.cell][1] == data]) for data in shared]
    if not shared or any(seeds[record.cell][0] not in shared for record in own):
        parts.insert(0, ("each seed its own data" if shared else "", own))
    return parts


def _table(regime: str, differs: str, records: list[Record], planned: Sequence[PlannedRequest]) -> PosGenTable:
    cells = _latest(records)
    shown = [record for record in records if record.cell in cells]
    tasks = tuple(dict.fromkeys(place_of(record).task for record in records))
    grid_rows = method_rows(records)
    rows = []
    for row in grid_rows:
        own = [r for r in shown if (r.pe, method_of(r), r.factor) == (row.pe, row.method, row.factor)]
        runs = {task: _runs([record for record in own if place_of(record).task == task]) for task in tasks}
        rows.append(PosGenRow(row=row, name=row_name(row, grid_rows), runs=runs))
    seeds = {place_of(record).seed for record in records} | _planned_seeds(regime, records, planned)
    return PosGenTable(
        regime=regime,
        differs=differs,
        tasks=tasks,
        seeds=tuple(sorted(seeds)),
        rows=tuple(rows),
        replaced=len({record.cell for record in records} - cells),
    )


def _latest(records: Sequence[Record]) -> set[str]:
    """Ids of the cells that are shown: in each place the latest one, successful cells before failed ones."""
    cells: dict[tuple[object, ...], str] = {}
    for record in sorted(records, key=lambda record: (record.status == "ok", record.provenance.date, record.cell)):
        cells[method_of(record), record.factor, place_of(record)] = record.cell
    return set(cells.values())


def _runs(records: Sequence[Record]) -> Runs:
    """The cells of one method on one task, from their records."""
    cells: dict[int, dict[str, Record]] = defaultdict(dict)
    for record in records:
        cells[place_of(record).seed][record.metric] = record
    return Runs(cells=dict(sorted(cells.items())))


def _planned_seeds(regime: str, records: Sequence[Record], planned: Sequence[PlannedRequest]) -> set[int]:
    """Seeds that the requests of these cells include."""
    ids = {record.cell for record in records}
    requests = [request.cells for request in planned if any(cell.cell in ids for cell in request.cells)]
    places = [place_of(cell) for cells in requests for cell in cells]
    return {place.seed for place in places if place.regime == regime}


# Formatting of means over seeds.


def mean_cell(
    mean: SeedMean | None,
    text: str | None = None,
    *,
    num_seeds: int = 0,
    is_strong: bool = False,
    with_interval: bool = True,
) -> TableCell:
    """A cell such as `98.30 ± 0.04 [98.05, 98.55] (3 of 5 seeds)`; `98.30` for one seed, a dash for none.

    Args:
        mean: The mean.
        text: Text that replaces mean and variance.
        num_seeds: Number of seeds of the table; a mean over fewer seeds gets a note.
        is_strong: Whether the cell is bold.
        with_interval: Whether to show the interval.
    """
    if mean is None:
        return DASH
    shown = f"{mean.mean:.2f}" if mean.variance is None else f"{mean.mean:.2f} ± {mean.variance:.2f}"
    return TableCell(
        text=shown if text is None else text,
        interval=_interval(mean) if with_interval else None,
        note=f"({mean.n} of {counted(num_seeds, 'seed')})" if mean.n < num_seeds else "",
        is_strong=is_strong,
    )


def columns(names: Sequence[str], first: str = "method") -> tuple[Prose, ...]:
    """Column titles: the method, its factor, then `names`."""
    return (first, symbol("s"), *names)


def difference_cell(difference: SeedMean | None, num_seeds: int = 0, *, for_paper: bool = False) -> TableCell:
    """A difference in points with its interval; bold if the interval excludes 0, but not in a paper."""
    if difference is None:
        return DASH
    is_strong = difference.excludes_zero and not for_paper
    return mean_cell(difference, points_text(difference.mean), num_seeds=num_seeds, is_strong=is_strong)


def _interval(mean: SeedMean) -> tuple[str, str] | None:
    """The ends of the interval as text, or None."""
    if mean.low is None or mean.high is None:
        return None
    return f"{mean.low:.2f}".replace("-", "−"), f"{mean.high:.2f}".replace("-", "−")


def interval_text(mean: SeedMean) -> str:
    """The interval in a sentence, such as `98.05 to 98.55`; empty for one seed."""
    return " to ".join(_interval(mean) or ())


def points_text(points: float) -> str:
    """A difference in points with its sign, such as `+0.88`, `−2.65` or `0.00`."""
    text = f"{abs(points):.2f}"
    return text if not text.strip("0.") else f"{'+' if points > 0 else '−'}{text}"
