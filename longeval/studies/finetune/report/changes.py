"""Perplexities of models by row and length, and how they change: by training, and by rounding the wavelengths.

A change compares the same tokens, so its interval comes from resampling the same documents or blocks in both. Over
several seeds it is that of the mean NLL of each token over the seeds, so the interval is of the text. How far the
seeds are apart is shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longeval.report.changes import change_cell, paired_as, resampled_as
from longeval.report.document import TableCell
from longeval.report.numbers import format_percent, format_perplexity
from longeval.report.tables import value_cell
from longeval.stats.bootstrap import PairedDifference, averaged, interval, resampling_units
from longeval.store.nll import TokenNll
from longeval.store.records import Record
from longeval.studies.finetune.report.trainings import Models


class TokenValues:
    """Token NLLs of cells and their means, each read once.

    Args:
        read: Cell id to its token NLLs, or None.
    """

    def __init__(self, read: Callable[[str], TokenNll | None]) -> None:
        self._read = read
        self._known: dict[tuple[str, ...], TokenNll | None] = {}

    def mean(self, records: Sequence[Record]) -> TokenNll | None:
        """The mean over some cells; None where one has no NLLs, or not of the same tokens."""
        cells = tuple(record.cell for record in records)
        if cells not in self._known:
            found = [self._read(cell) for cell in cells]
            whole = [nll for nll in found if nll is not None]
            self._known[cells] = averaged(whole) if len(whole) == len(found) else None
        return self._known[cells]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Change of perplexity from one row to another at one length."""

    before: float
    """Perplexity of the first; over seeds, the geometric mean."""
    after: float
    """Perplexity of the second."""
    difference: PairedDifference | None
    """With the interval; None where NLLs are not stored, or are not of the same tokens."""
    by_seed: Mapping[int, float]
    """Seed to the relative change of its models."""

    @property
    def ratio(self) -> float:
        """The relative change, −0.01 for a perplexity that is 1% lower."""
        return self.after / self.before - 1 if self.difference is None else self.difference.ratio

    @property
    def spread(self) -> float:
        """How far the changes of single seeds are apart, from the lowest to the highest; 0 with one."""
        return max(self.by_seed.values()) - min(self.by_seed.values())

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0, and the change is larger than the spread between seeds."""
        return self.difference is not None and self.difference.excludes_zero and abs(self.ratio) > self.spread

    @property
    def cell(self) -> TableCell:
        """The change in a table: with its interval, and the range of the seeds where there are several."""
        low, high = (format_percent(end(self.by_seed.values())) for end in (min, max))
        note = f"(seeds {low} to {high})" if len(self.by_seed) > 1 else ""
        return change_cell(self.ratio, self.difference, note=note, is_clear=self.is_clear)

    @property
    def text(self) -> str:
        """The change in a sentence: `+0.40% [+0.20%, +0.60%]`."""
        found = self.difference
        ends = "" if found is None else f" [{format_percent(found.low)}, {format_percent(found.high)}]"
        return f"{format_percent(self.ratio)}{ends}"


def values_of(models: Models, length: int) -> dict[int, Record]:
    """The cells of a row and length that have a perplexity, by seed."""
    return {seed: record for seed, record in models.cells.get(length, {}).items() if record.value}


def perplexity(records: Mapping[int, Record]) -> float:
    """The geometric mean of some cells' perplexities."""
    logarithms = [math.log(record.value) for record in records.values() if record.value]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def change(a: Models, b: Models, length: int, tokens: TokenValues) -> Change | None:
    """The change from one row to another; None where one has no perplexity, or where they share no seed.

    Trained models are compared with those of the same seed, the base model with those of every seed.
    """
    cells_a, cells_b = values_of(a, length), values_of(b, length)
    if a.variant is None:
        cells_a = {seed: record for seed in cells_b for record in cells_a.values()}
    seeds = [seed for seed in cells_b if seed in cells_a]
    if not seeds:
        return None
    of_a, of_b = ({seed: cells[seed] for seed in seeds} for cells in (cells_a, cells_b))
    first = next(iter(of_a.values()))
    return Change(
        before=perplexity(of_a),
        after=perplexity(of_b),
        difference=paired_as(first, tokens.mean([*of_a.values()]), tokens.mean([*of_b.values()])),
        by_seed={seed: perplexity({seed: of_b[seed]}) / perplexity({seed: of_a[seed]}) - 1 for seed in seeds},
    )


def perplexity_cell(models: Models, length: int, tokens: TokenValues, *, is_best: bool) -> TableCell:
    """The perplexity of a row; over several seeds their geometric mean with their range behind it."""
    measured = models.cells.get(length, {})
    if len(measured) < 2:
        record = next(iter(measured.values()), None)
        return value_cell(record, is_best=is_best)
    values = values_of(models, length)
    if not values:
        return TableCell(text="failed", is_failure=True)
    mean = tokens.mean([*values.values()])
    first = next(iter(values.values()))
    resamples, seed, level = resampled_as(first)
    found = None
    if mean is not None:
        found = interval(resampling_units(mean, first.protocol), resamples=resamples, seed=seed, level=level)
    low, high = (end(record.value for record in values.values() if record.value) for end in (min, max))
    fewer = f"{len(values)} of {len(measured)} " if len(values) < len(measured) else ""
    return TableCell(
        text=format_perplexity(perplexity(values)),
        interval=None if found is None else (format_perplexity(found.low), format_perplexity(found.high)),
        note=f"({fewer}seeds {format_perplexity(low)} to {format_perplexity(high)})",
        is_strong=is_best,
    )
