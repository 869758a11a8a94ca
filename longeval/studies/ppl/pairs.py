"""Each method against its resonance form: relative difference of perplexity with the paired interval.

Both forms score the same tokens, so their difference is known far better than either perplexity: the interval comes
from resampling the same units in both (`stats.paired`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longeval.report.changes import change_cell, paired_as
from longeval.report.document import Data, Table, TableCell, prose
from longeval.report.tables import DASH, Grid, GridRow, length_columns, method_row, resonance_pairs
from longeval.stats.bootstrap import PairedDifference
from longeval.store.nll import TokenNll
from longeval.store.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCell:
    """A base method and its resonance form at one length."""

    base: Record
    resonance: Record
    ratio: float
    """Perplexity of the resonance form over that of the base, minus 1."""
    difference: PairedDifference | None
    """With the interval; None where NLLs are not stored, or are not of the same tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRow:
    """A base method and its resonance form at all lengths where both have values."""

    base: GridRow
    resonance: GridRow
    cells: dict[int, PairCell]
    """Length to difference."""


def pair_rows(grid: Grid, nll: Callable[[str], TokenNll | None]) -> list[PairRow]:
    """Finds the pairs of a table and computes their differences.

    Args:
        grid: The table.
        nll: Cell id to its token NLLs, or None.

    Returns:
        One row per pair with equal parameters and factor and at least one length where both have values.
    """
    pairs = []
    for base, row in resonance_pairs(grid.rows):
        cells = {}
        for length in grid.lengths:
            cell = _pair_cell(base.cells.get(length), row.cells.get(length), nll)
            if cell is not None:
                cells[length] = cell
        if cells:
            pairs.append(PairRow(base=base, resonance=row, cells=cells))
    return pairs


def _pair_cell(base: Record | None, resonance: Record | None, nll: Callable[[str], TokenNll | None]) -> PairCell | None:
    if base is None or resonance is None or not base.value or resonance.value is None:
        return None
    difference = paired_as(base, nll(base.cell), nll(resonance.cell))
    ratio = resonance.value / base.value - 1 if difference is None else difference.ratio
    return PairCell(base=base, resonance=resonance, ratio=ratio, difference=difference)


def pair_table(grid: Grid, pairs: Sequence[PairRow], slug: str) -> Table:
    """Differences between each method and its resonance form."""
    every = [cell for pair in pairs for cell in pair.cells.values()]
    drawn = next((cell.difference for cell in every if cell.difference is not None), None)
    text = (
        "Relative change of perplexity when the wavelengths of the method are rounded (negative: resonance is better)"
    )
    if drawn is not None:
        text += (
            f", with the {drawn.level:.0%} interval from resampling the same {drawn.kind}s in both. "
            "Bold: the interval excludes 0. The intervals are not corrected for how many there are"
        )
    if any(cell.difference is None for cell in every):
        text += ". Differences without an interval: the token-level NLLs are not stored, or are of other tokens"
    return Table(
        columns=length_columns(["pair"], grid.lengths),
        rows=tuple(
            method_row(
                pair.base,
                [_shown(pair.cells.get(length)) for length in grid.lengths],
                [prose("`{}` vs `{}`", pair.resonance.label, pair.base.label)],
            )
            for pair in pairs
        ),
        title=grid.title,
        caption=f"{text}.",
        label=f"pairs-{slug}",
    )


def _shown(cell: PairCell | None) -> TableCell:
    return DASH if cell is None else change_cell(cell.ratio, cell.difference)


def pair_data(grid: Grid, pairs: Iterable[PairRow]) -> Data:
    """One row per pair and length: the difference of the resonance form from its base, in percent and in points."""
    drawn = ("points_low", "points_high", "excludes_zero", "units", "kind", "level", "resamples", "seed")
    rows = []
    for pair in pairs:
        for length, cell in pair.cells.items():
            base, resonance, found = cell.base.value, cell.resonance.value, cell.difference
            points = None if base is None or resonance is None else resonance - base
            rows.append(
                {
                    "model": grid.model,
                    "data": grid.data,
                    "protocol": grid.protocol,
                    "differs": grid.differs,
                    "base": pair.base.label,
                    "resonance": pair.resonance.label,
                    "factor": cell.base.factor,
                    "length": length,
                    "perplexity_base": base,
                    "perplexity_resonance": resonance,
                    "ratio": cell.ratio,
                    "ratio_low": None if found is None else found.low,
                    "ratio_high": None if found is None else found.high,
                    "points": points if found is None else found.points,
                    **{name: getattr(found, name, None) for name in drawn},
                }
            )
    return Data(name="pairs", rows=tuple(rows))
