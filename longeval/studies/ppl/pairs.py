"""Each method against its resonance form: relative difference of perplexity with the paired interval.

Both forms score the same tokens, so their difference is known far better than either perplexity: the interval comes
from resampling the same units in both (`stats.paired`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longeval.report.rows import GridRow, base_row
from longeval.report.tables import Grid
from longeval.stats.bootstrap import PairedDifference, paired
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
    for row in grid.rows:
        base = base_row(row, grid.rows)
        if base is None:
            continue
        cells = {}
        for length in grid.lengths:
            cell = _pair_cell(grid, base.cells.get(length), row.cells.get(length), nll)
            if cell is not None:
                cells[length] = cell
        if cells:
            pairs.append(PairRow(base=base, resonance=row, cells=cells))
    return pairs


def _pair_cell(
    grid: Grid, base: Record | None, resonance: Record | None, nll: Callable[[str], TokenNll | None]
) -> PairCell | None:
    if base is None or resonance is None or not base.value or resonance.value is None:
        return None
    nll_base, nll_resonance = nll(base.cell), nll(resonance.cell)
    difference = None
    if nll_base is not None and nll_resonance is not None:
        how = base.params.get("ci") or {}
        difference = paired(
            nll_base,
            nll_resonance,
            grid.protocol,
            resamples=int(how.get("resamples") or 2000),
            seed=int(how.get("seed") or 0),
            level=float(how.get("level") or 0.95),
        )
    ratio = resonance.value / base.value - 1 if difference is None else difference.ratio
    return PairCell(base=base, resonance=resonance, ratio=ratio, difference=difference)
