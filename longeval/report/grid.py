"""From a flat list of records to tables: which cells stand in one table, in one row, in which order.

One table (a `Grid`) holds what may be compared: the same model, data, protocol, backend and dtype, and the same of
every parameter that decides which tokens are scored. Its rows are methods, each resonance form right below its base;
its columns are lengths.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from longeval.records import Record
from longeval.report.numbers import format_factor, format_perplexity

_TABLE_PARAMS = (
    "native_length",
    "theta",
    "head_dim",
    "min_tokens",
    "stride",
    "bos",
    "attn",
    "seed",
    "weights",
    "tokenizer",
    "data_digest",
)
"""Parameters that split tables wherever they differ. Others (future ones) do so only where cells would collide."""

_DIGESTS = frozenset({"weights", "tokenizer", "data_digest"})
"""Parameters whose values tell a reader nothing; named only where nothing else tells two tables apart."""

_CELL_PARAMS = frozenset({"method", "ci"})
"""Parameters that belong to a row or a cell, never to a table."""

_METHOD_ORDER = (
    "none",
    "pi",
    "ntk",
    "dynamic_ntk",
    "ntk_by_parts",
    "yarn",
    "dynamic_yarn",
    "llama3",
    "longrope",
    "abf",
)
"""Order of rows: roughly that of publication. Methods that are not listed follow by name."""


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
        """The lowest value of a column that may be shown as best, or None where fewer than two have values."""
        values = [r.value for row in self.rows if (r := row.cells.get(length)) is not None and r.value is not None]
        return min(values) if len(values) > 1 else None

    def is_best(self, record: Record) -> bool:
        """Whether a record reads the same as the best of its column: ties at the displayed precision are all best."""
        best = self.best(record.length)
        if best is None or record.value is None:
            return False
        return format_perplexity(record.value) == format_perplexity(best)


def base_method(pe: str) -> str:
    """Name of the method that a resonance form rounds: `resonance_yarn` → `yarn`, `resonance` → `none`."""
    if pe == "resonance":
        return "none"
    return pe.removeprefix("resonance_")


def is_resonance(pe: str) -> bool:
    """Whether a method name is a resonance form."""
    return pe == "resonance" or pe.startswith("resonance_")


def method_sort_key(pe: str) -> tuple[int, str, bool]:
    """Sorts method names: known bases in their order, then others by name; each resonance form after its base."""
    base = base_method(pe)
    place = _METHOD_ORDER.index(base) if base in _METHOD_ORDER else len(_METHOD_ORDER)
    return place, base, is_resonance(pe)


def build_grids(records: Iterable[Record], metric: str = "perplexity") -> list[Grid]:
    """Sorts the records of one metric into tables; records of downstream tasks (`task` set) are left out."""
    families: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.metric == metric and record.task is None:
            families[record.model, record.data or "", record.protocol or ""].append(record)
    grids: list[Grid] = []
    for (model, data, protocol), family in sorted(families.items(), key=lambda item: item[0]):
        keys = ("backend", "dtype", *_TABLE_PARAMS, *_colliding_params(family))
        tables: dict[tuple[str, ...], list[Record]] = defaultdict(list)
        for record in family:
            tables[tuple(_canonical(_setting(record, key)) for key in keys)].append(record)
        differing = _telling(keys, list(tables))
        for _, table in sorted(tables.items()):
            grids.append(
                Grid(
                    model=model,
                    data=data,
                    protocol=protocol,
                    backend=table[0].backend,
                    dtype=table[0].dtype,
                    metric=metric,
                    differs=", ".join(_shown_setting(key, _setting(table[0], key)) for key in differing),
                    lengths=tuple(sorted({record.length for record in table})),
                    rows=_rows(table),
                )
            )
    return grids


def _telling(keys: Sequence[str], tables: Sequence[tuple[str, ...]]) -> list[str]:
    """Keys in which tables differ, without digests if the others tell all of them apart."""
    places = [place for place in range(len(keys)) if len({values[place] for values in tables}) > 1]
    plain = [place for place in places if keys[place] not in _DIGESTS]
    if len({tuple(values[place] for place in plain) for values in tables}) == len(tables):
        places = plain
    return [keys[place] for place in places]


def _setting(record: Record, key: str) -> Any:
    return getattr(record, key) if key in ("backend", "dtype") else record.params.get(key)


def _shown_setting(key: str, value: Any) -> str:
    """`stride 128`, `float32`, `weights 0a1b2c3d`."""
    if key in ("backend", "dtype"):
        return str(value)
    text = value if isinstance(value, str) else _canonical(value)
    return f"{key} {text[:8] if key in _DIGESTS else text}"


def _colliding_params(records: Sequence[Record]) -> list[str]:
    """Names of other parameters in which cells of one method, factor and length differ."""
    known = {*_TABLE_PARAMS, *_CELL_PARAMS}
    others = sorted({key for record in records for key in record.params} - known)
    colliding = []
    for key in others:
        values: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        for record in records:
            same = tuple(_canonical(_setting(record, name)) for name in ("backend", "dtype", *_TABLE_PARAMS))
            place = (record.pe, record.factor, _method(record), record.length, *same)
            values[place].add(_canonical(record.params.get(key)))
        if any(len(found) > 1 for found in values.values()):
            colliding.append(key)
    return colliding


def _rows(records: Sequence[Record]) -> tuple[GridRow, ...]:
    """Rows of one table: by method, its parameters and its factor; cells of equal place (other code) get own rows."""
    by_method: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_method[record.pe, _method(record)].append(record)
    rows: list[GridRow] = []
    for (pe, method), found in by_method.items():
        each = _has_factor_each(found)
        by_factor: dict[float | Literal["each"] | None, list[dict[int, Record]]] = defaultdict(list)
        for record in sorted(found, key=lambda record: record.cell):
            places = by_factor["each" if each else record.factor]
            free = next((cells for cells in places if record.length not in cells), None)
            if free is None:
                places.append(free := {})
            free[record.length] = record
        same_name = [other for name, other in by_method if name == pe]
        for factor, places in by_factor.items():
            for number, cells in enumerate(places, start=1):
                label = pe + _differing_parameters(method, same_name) + (f" #{number}" if len(places) > 1 else "")
                rows.append(GridRow(pe=pe, label=label, factor=factor, method=method, cells=cells))
    return tuple(sorted(rows, key=_row_sort_key))


def _row_sort_key(row: GridRow) -> tuple[Any, ...]:
    """Pairs with equal parameters and factor stand next to each other: base first."""
    place, base, resonance = method_sort_key(row.pe)
    factor = 0.0 if not isinstance(row.factor, float | int) else float(row.factor)
    return place, base, row.method, row.factor == "each", factor, resonance, row.label


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


def _method(record: Record) -> str:
    return _canonical(record.params.get("method") or {})


def _differing_parameters(method: str, others: Sequence[str]) -> str:
    """` (beta_fast=64)`: the parameters in which one of several rows of the same name differs."""
    if len(others) < 2:
        return ""
    parsed: list[dict[str, Any]] = [json.loads(other) for other in others]
    mine: dict[str, Any] = json.loads(method)
    names = sorted({name for other in parsed for name in other})
    differing = [name for name in names if len({_canonical(other.get(name)) for other in parsed}) > 1]
    parts = [f"{name}={_short(mine.get(name))}" for name in differing]
    return f" ({', '.join(parts)})"


def _short(value: Any) -> str:
    """A parameter's value for a label: lists by their length and ends."""
    if isinstance(value, list):
        return f"[{len(value)} numbers]"
    return format_factor(value) if isinstance(value, float) else str(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
