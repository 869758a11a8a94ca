"""Everything that a report says about one table: the analysis is done here, the writing in markdown.py and latex.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from longeval.report.collect import Collection
from longeval.report.grid import Grid, build_grids
from longeval.report.pairs import PairRow, pair_rows
from longeval.report.plots import Picture, RowCurve, length_curve, position_curve
from longeval.stats.bootstrap import by_position, position_edges

POSITION_BINS = 32
"""Equal bins over the window: narrow enough to show where a curve leaves, wide enough to hold many tokens each."""


MAX_DRAWN = 20
"""Tables that get figures, the first ones: one takes as long as hundreds of cells, and nobody looks at hundreds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One table with what belongs to it."""

    grid: Grid
    slug: str
    """Its name in file names, unique in the report."""
    pairs: tuple[PairRow, ...]
    curve: Picture | None
    """Perplexity by context length; None where no cell has a value, and beyond MAX_DRAWN tables."""
    position_length: int | None
    """Length of the windows of the curve by position; None where no NLLs are stored."""
    position_rows: tuple[RowCurve, ...]
    position: Picture | None
    """Perplexity by position in the window."""
    documents: tuple[str, ...]
    """Names of the documents of those windows."""
    bits: Grid | None
    """The same cells in bits per byte; None where no tokenizer could count bytes."""


def build_sections(collection: Collection) -> list[Section]:
    """Analyses a collection: one section per table, in the order of their titles."""
    records = collection.records
    grids = build_grids(records)
    bits = {grid.title: grid for grid in build_grids(records, "bits_per_byte")}
    sections: list[Section] = []
    for number, grid in enumerate(grids, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", grid.title.lower()).strip("-")[:80] or "table"
        if slug in {section.slug for section in sections}:
            slug = f"{slug}-{number}"
        length, rows, documents = _position_rows(grid, collection)
        sections.append(
            Section(
                grid=grid,
                slug=slug,
                pairs=tuple(pair_rows(grid, collection.nll)),
                curve=length_curve(grid) if number <= MAX_DRAWN else None,
                position_length=length,
                position_rows=rows,
                position=None if length is None or number > MAX_DRAWN else position_curve(grid, length, rows),
                documents=documents,
                bits=_bits_of(grid, bits),
            )
        )
    return sections


def _bits_of(grid: Grid, bits: dict[str, Grid]) -> Grid | None:
    """The table in bits per byte that holds cells of `grid`, if any has a value."""
    cells = {record.cell for record in grid.records}
    for other in bits.values():
        if any(record.cell in cells and record.value is not None for record in other.records):
            return other
    return None


def _position_rows(grid: Grid, collection: Collection) -> tuple[int | None, tuple[RowCurve, ...], tuple[str, ...]]:
    """Curves by position at the longest length for which NLLs are stored, and the documents there."""
    for length in reversed(grid.lengths):
        edges_K1 = position_edges(length, bins=POSITION_BINS, spacing="linear")
        rows: list[RowCurve] = []
        documents: dict[str, None] = {}
        for row in grid.rows:
            record = row.cells.get(length)
            if record is None or record.status != "ok":
                continue
            nll = collection.nll(record.cell)
            if nll is not None:
                documents |= dict.fromkeys(nll.documents[index] for index in sorted(set(nll.document_W.tolist())))
                rows.append(RowCurve(row=row, curve=by_position(nll, edges_K1)))
        if rows:
            return length, tuple(rows), tuple(documents)
    return None, (), ()


def ordered_unique(values: Sequence[str]) -> list[str]:
    """Values without repeats, in order of their first appearance."""
    return list(dict.fromkeys(values))
