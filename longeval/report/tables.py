"""Builds the tables of a report: methods as rows, context lengths as columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longeval.metrics import higher_is_better
from longeval.report.document import Prose, Row, TableCell, code, symbol
from longeval.report.numbers import MISSING, format_value
from longeval.report.rows import GridRow, factor_text, method_rows
from longeval.report.settings import split
from longeval.store.records import Record
from longeval.values import format_length

DASH = TableCell(text=MISSING)
"""Where there is nothing to show."""


def length_columns(first: Sequence[Prose], lengths: Iterable[int]) -> tuple[Prose, ...]:
    """Column titles: some of text, the factor, then each length."""
    return (*first, symbol("s"), *map(format_length, lengths))


def method_row(row: GridRow, cells: Iterable[TableCell], first: Sequence[Prose] = ()) -> Row:
    """A row of a table: `first`, by default the method, then its factor, then the cells."""
    names = first or (code(row.label),)
    return Row(cells=(*(TableCell(text=name) for name in names), TableCell(text=factor_text(row)), *cells))


def method_rows_of(
    rows: Iterable[GridRow], lengths: Sequence[int], cell: Callable[[Record | None], TableCell]
) -> tuple[Row, ...]:
    """One table row for each method; `cell` shows one record, or that there is none."""
    return tuple(method_row(row, [cell(row.cells.get(length)) for length in lengths]) for row in rows)


def value_cell(record: Record | None, *, is_best: bool = False, with_interval: bool = True) -> TableCell:
    """What stands in the place of a record: value and interval, `failed`, `skipped`, or a dash without one."""
    if record is None:
        return DASH
    if record.status != "ok":
        return TableCell(text=record.status, is_failure=record.status == "failed")
    interval = None
    if with_interval and record.ci_low is not None and record.ci_high is not None:
        interval = format_value(record.ci_low, record), format_value(record.ci_high, record)
    text = "∞" if record.value is None else format_value(record.value, record)
    return TableCell(text=text, interval=interval, is_strong=is_best)


# From a flat list of records to tables: which cells stand in one table, in one row, in which order.
#
# One table (a `Grid`) holds what may be compared: the same model, data, protocol, backend and dtype, and the same of
# every parameter that decides which tokens are scored. Its rows are methods, each resonance form right below its base;
# its columns are lengths.

_TABLE_PARAMS = (
    "native_length",
    "theta",
    "head_dim",
    "min_tokens",
    "stride",
    "bos",
    "prefix",
    "parse_special",
    "attn",
    "seed",
    "weights",
    "tokenizer",
    "data_digest",
)
"""Parameters that split tables wherever they differ. Others (future ones) do so only where cells would collide."""

_CELL_PARAMS = frozenset({"method", "pin_length", "ci"})
"""Parameters that belong to a row or a cell, never to a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """One table."""

    model: str
    data: str
    protocol: str
    backend: str
    dtype: str
    metric: str
    differs: str
    """In what it differs from other tables of the same model, data and protocol; empty if it is the only one."""
    lengths: tuple[int, ...]
    """Columns, ascending, tokens."""
    rows: tuple[GridRow, ...]

    @property
    def title(self) -> str:
        """Plain-text name of the table."""
        tail = f" ({self.differs})" if self.differs else ""
        return f"{self.model} on {self.data}, {self.protocol}{tail}"

    @property
    def records(self) -> list[Record]:
        """All records, row by row, lengths ascending."""
        return [row.cells[length] for row in self.rows for length in self.lengths if length in row.cells]

    @property
    def native_length(self) -> int | None:
        """L in tokens, where the records tell."""
        values = {int(native) for record in self.records if (native := record.params.get("native_length"))}
        return values.pop() if len(values) == 1 else None

    def best(self, length: int) -> float | None:
        """The best value of a column, or None where fewer than two have values or nobody says what is better."""
        found = [r for row in self.rows if (r := row.cells.get(length)) is not None and r.value is not None]
        values = [record.value for record in found if record.value is not None]
        better = higher_is_better(found[0]) if len(found) > 1 else None
        return None if better is None else max(values) if better else min(values)

    def is_best(self, record: Record) -> bool:
        """Whether a record reads the same as the best of its column: ties at the displayed precision are all best."""
        best = self.best(record.length)
        if best is None or record.value is None:
            return False
        return format_value(record.value, record) == format_value(best, record)


def build_grids(records: Iterable[Record], metric: str = "perplexity") -> list[Grid]:
    """Sorts the records of one metric into tables; left out are records of tasks (`task` set).

    Tables and rows are in the order of their first records.
    """
    families: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.metric == metric and record.task is None:
            families[record.model, record.data or "", record.protocol or ""].append(record)
    grids: list[Grid] = []
    for (model, data, protocol), family in families.items():
        for part in split(family, _TABLE_PARAMS, _CELL_PARAMS):
            table = part.records
            grids.append(
                Grid(
                    model=model,
                    data=data,
                    protocol=protocol,
                    backend=table[0].backend,
                    dtype=table[0].dtype,
                    metric=metric,
                    differs=part.differs,
                    lengths=tuple(sorted({record.length for record in table})),
                    rows=method_rows(table),
                )
            )
    return grids
