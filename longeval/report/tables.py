"""From records to tables: which cells stand in one table and in one row, in which order, and how a cell is shown.

One table (a `Grid`) holds what may be compared: the same model, data, protocol, backend and dtype, and the same of
every parameter that decides which tokens are scored. Its rows are methods, each resonance form right below its base.
Its columns are lengths.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from longeval.looks import LOOKS, RESONANCE_PARAMETERS, base_method, is_resonance
from longeval.metrics import higher_is_better
from longeval.report.document import Prose, Row, TableCell, code, symbol
from longeval.report.numbers import MISSING, format_factor, format_value
from longeval.report.settings import canonical, method_of, split
from longeval.store.records import Record
from longeval.values import format_length

DASH = TableCell(text=MISSING)
"""Where there is nothing to show."""

MODEL_PARAMS = (
    "native_length",
    "theta",
    "head_dim",
    "bos",
    "prefix",
    "parse_special",
    "attn",
    "seed",
    "weights",
    "adapter",
    "tokenizer",
)
"""Parameters of a model and of how it reads, which split the tables of every study wherever they differ."""

_TABLE_PARAMS = (*MODEL_PARAMS, "min_tokens", "stride", "data_digest")
"""Parameters that split tables wherever they differ. Others (future ones) do so only where cells would collide."""

_CELL_PARAMS = frozenset(
    {"method", "pin_length", "ci", "batch_size", "adapter_name", "perplexity_cell", "without_keys"}
)
"""Parameters that belong to a row or a cell, never to a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRow:
    """One method at all lengths."""

    pe: str
    """Canonical method name."""
    label: str
    """Name for the reader: the method, with the parameters in which it differs from other rows of the same name."""
    factor: float | Literal["each"] | None
    """s of all its cells; `each` where every length has its own; null where the method has none."""
    method: str
    """Its parameters as canonical JSON."""
    cells: dict[int, Record]
    """Length to record."""

    @property
    def of_base(self) -> str:
        """The same without those of resonance: equal for a method and all its resonance forms."""
        values: dict[str, Any] = json.loads(self.method)
        return canonical({name: value for name, value in values.items() if name not in RESONANCE_PARAMETERS})


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """One table."""

    model: str
    data: str
    protocol: str
    metric: str
    differs: str
    """In what it differs from other tables of the same model, data and protocol; empty if it is the only one."""
    lengths: tuple[int, ...]
    """Columns, ascending, tokens."""
    rows: tuple[GridRow, ...]

    @property
    def title(self) -> str:
        """Plain-text name of the table."""
        return f"{self.model} on {self.data}, {self.protocol}{f' ({self.differs})' if self.differs else ''}"

    @property
    def records(self) -> list[Record]:
        """All records, row by row, lengths ascending."""
        return records_of(self.rows, self.lengths)

    @property
    def native_length(self) -> int | None:
        """L in tokens, where the records tell."""
        return native_length(self.records)

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
    return [
        Grid(
            model=model,
            data=data,
            protocol=protocol,
            metric=metric,
            differs=part.differs,
            lengths=tuple(sorted({record.length for record in part.records})),
            rows=method_rows(part.records),
        )
        for (model, data, protocol), family in families.items()
        for part in split(family, _TABLE_PARAMS, _CELL_PARAMS)
    ]


def records_of(rows: Iterable[GridRow], lengths: Sequence[int]) -> list[Record]:
    """All records of some rows, row by row, in the order of `lengths`."""
    return [row.cells[length] for row in rows for length in lengths if length in row.cells]


def native_length(records: Iterable[Record]) -> int | None:
    """L in tokens, where all records that tell it tell the same."""
    values = {int(native) for record in records if (native := record.params.get("native_length"))}
    return values.pop() if len(values) == 1 else None


def slugs_of(titles: Iterable[str]) -> list[str]:
    """Titles as file names that are all different: where one is taken, the number of its title stands behind it."""
    slugs: list[str] = []
    for number, title in enumerate(titles, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "table"
        slugs.append(f"{slug}-{number}" if slug in slugs else slug)
    return slugs


# Methods: their names, and rows of them.


def method_sort_key(pe: str) -> tuple[int, str, bool]:
    """Sorts method names: known bases in their order, then others by name; each resonance form after its base."""
    base = base_method(pe)
    place = list(LOOKS).index(base) if base in LOOKS else len(LOOKS)
    return place, base, is_resonance(pe)


def is_group(record: Record) -> bool:
    """Whether a record is the average of a group of tasks."""
    return record.task is not None and record.params.get("members") is not None


def method_rows(records: Sequence[Record]) -> tuple[GridRow, ...]:
    """Rows of one table: by method, its parameters and its factor; base methods in the order of their first record.

    Of two cells in one place the one finished last stands there; callers leave older ones out (`older_cells`).
    """
    by_method: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_method[record.pe, method_of(record)].append(record)
    rows: list[GridRow] = []
    for (pe, method), found in by_method.items():
        each = _has_factor_each(found)
        by_factor: dict[float | Literal["each"] | None, dict[int, Record]] = defaultdict(dict)
        for record in sorted(found, key=lambda record: (record.provenance.date, record.cell)):
            by_factor["each" if each else record.factor][record.length] = record
        label = pe + _differing_parameters(method, [other for name, other in by_method if name == pe])
        for factor, cells in by_factor.items():
            rows.append(GridRow(pe=pe, label=label, factor=factor, method=method, cells=cells))
    return ordered_rows(rows, [record.pe for record in records])


def ordered_rows(rows: Iterable[GridRow], methods: Iterable[str]) -> tuple[GridRow, ...]:
    """Rows with base methods in the order of `methods`; pairs with equal parameters and factor together, base first."""
    families = {base: place for place, base in enumerate(dict.fromkeys(map(base_method, methods)))}

    def key(row: GridRow) -> tuple[Any, ...]:
        factor = float(row.factor) if isinstance(row.factor, float | int) else 0.0
        own = row.of_base, row.factor == "each", factor, is_resonance(row.pe)
        return families[base_method(row.pe)], *own, len(row.method), row.method

    return tuple(sorted(rows, key=key))


def resonance_pairs(rows: Sequence[GridRow]) -> Iterator[tuple[GridRow, GridRow]]:
    """Each method with each of its resonance forms, of equal parameters and factor, in the order of these forms."""
    for row in rows:
        wanted = (base_method(row.pe), row.of_base, row.factor)
        base = next((other for other in rows if (other.pe, other.method, other.factor) == wanted), None)
        if is_resonance(row.pe) and base is not None:
            yield base, row


def row_name(row: GridRow, rows: Sequence[GridRow]) -> str:
    """A row's label, with its factor where several rows have the same label."""
    several = sum(other.label == row.label for other in rows) > 1
    return f"{row.label} s={factor_text(row)}" if several else row.label


def factor_text(row: GridRow) -> str:
    """`2`, `each`, or a dash for methods without a factor."""
    if row.factor is None:
        return MISSING
    return row.factor if isinstance(row.factor, str) else format_factor(row.factor)


def _has_factor_each(records: Sequence[Record]) -> bool:
    """Whether these cells of one method have the factor length / native (at least 1) at every length."""
    factors = {record.factor for record in records}
    if len(factors) < 2 or len({record.length for record in records}) < len(records):
        return False
    for record in records:
        native = record.params.get("native_length")
        if not native or record.factor is None or abs(record.factor - max(1.0, record.length / native)) > 1e-9:
            return False
    return True


def _differing_parameters(method: str, others: Sequence[str]) -> str:
    """` (beta_fast=64)`: the parameters in which one of several rows of the same name differs."""
    if len(others) < 2:
        return ""
    parsed: list[dict[str, Any]] = [json.loads(other) for other in others]
    mine: dict[str, Any] = json.loads(method)
    names = sorted({name for other in parsed for name in other})
    differing = [name for name in names if len({canonical(other.get(name)) for other in parsed}) > 1]
    parts = [f"{name}={_short(mine.get(name, RESONANCE_PARAMETERS.get(name)))}" for name in differing]
    return f" ({', '.join(parts)})"


def _short(value: Any) -> str:
    """A parameter's value for a label; of a list, its length."""
    if isinstance(value, list):
        return f"[{len(value)} numbers]"
    return format_factor(value) if isinstance(value, float) else str(value)


# What is shown of rows and records.


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
        return TableCell(text=record.status, is_failure=record.status == "failed", reason=error_text(record))
    interval = None
    if with_interval and record.ci_low is not None and record.ci_high is not None:
        interval = format_value(record.ci_low, record), format_value(record.ci_high, record)
    text = "∞" if record.value is None else format_value(record.value, record)
    return TableCell(text=text, interval=interval, is_strong=is_best)


def outcome_lines(rows: Sequence[GridRow], lengths: Sequence[int]) -> list[str]:
    """One line per reason for which cells have no value: `failed: yarn 8k, 16k; pi 16k: out of memory`."""
    every = records_of(rows, lengths)
    without_value: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in every:
        if record.status != "ok":
            without_value[record.status, error_text(record)].append(record)
    lines = []
    for (status, reason), records in without_value.items():
        everywhere = len(records) == len(every) > 1
        lines.append(f"{status}{' in every cell' if everywhere else f': {places_text(rows, records)}'}: {reason}")
    return lines


def places_text(rows: Sequence[GridRow], records: Iterable[Record]) -> str:
    """Methods and lengths of some records of these rows: `none 8k, 16k; yarn 16k`, `every method 16k`."""
    cells = {record.cell for record in records}
    lengths = [[length for length, record in sorted(row.cells.items()) if record.cell in cells] for row in rows]
    if len(rows) > 2 and lengths[0] and all(own == lengths[0] for own in lengths):
        return f"every method {', '.join(map(format_length, lengths[0]))}"
    named = zip(rows, lengths, strict=True)
    return "; ".join(f"{row_name(row, rows)} {', '.join(map(format_length, own))}" for row, own in named if own)


def error_text(record: Record) -> str:
    """Why a cell has no value, in one line."""
    return " ".join((record.error or "no reason was recorded").split())
