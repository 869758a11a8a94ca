"""Rows of tables: one method at all lengths, in the order of the records, each resonance form right below its base."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from longeval.report.numbers import format_factor
from longeval.store.records import Record
from longeval.values import format_length

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
"""Order of methods that nobody asked for by name: roughly that of publication, then by name."""


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


def is_group(record: Record) -> bool:
    """Whether a record is the average of a group of tasks."""
    return record.task is not None and record.params.get("members") is not None


def base_row(row: GridRow, rows: Sequence[GridRow]) -> GridRow | None:
    """The row of the method that `row` rounds, with equal parameters and factor; None if there is none."""
    if not is_resonance(row.pe):
        return None
    return next((other for other in rows if _belong(other, row)), None)


def _belong(base: GridRow, resonance: GridRow) -> bool:
    """Whether two rows differ in the rounding alone."""
    same = (base.method, base.factor) == (resonance.method, resonance.factor)
    return same and not is_resonance(base.pe) and base.pe == base_method(resonance.pe)


def method_rows(records: Sequence[Record]) -> tuple[GridRow, ...]:
    """Rows of one table: by method, its parameters and its factor; base methods in the order of their first record.

    Of two cells in one place the one finished last stands there; callers leave older ones out (versions.py).
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
    return tuple(sorted(rows, key=lambda row: (families[base_method(row.pe)], *_order_in_family(row))))


def row_name(row: GridRow, rows: Sequence[GridRow]) -> str:
    """A row's label, with its factor where several rows have the same label."""
    several = sum(other.label == row.label for other in rows) > 1
    return f"{row.label} s={factor_text(row)}" if several else row.label


def factor_text(row: GridRow) -> str:
    """`2`, `each`, or a dash for methods without a factor."""
    if row.factor is None:
        return "–"
    return row.factor if isinstance(row.factor, str) else format_factor(row.factor)


def outcome_lines(rows: Sequence[GridRow], lengths: Sequence[int]) -> list[str]:
    """One line per reason for which cells have no value: `failed: yarn 8k, 16k; pi 16k: out of memory`."""
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for length in lengths:
            record = row.cells.get(length)
            if record is not None and record.status != "ok":
                reason = " ".join((record.error or "no reason was recorded").split())
                named = cells.setdefault((record.status, reason), {})
                named.setdefault(row_name(row, rows), []).append(format_length(length))
    total = sum(length in row.cells for row in rows for length in lengths)
    lines = []
    for (status, reason), named in cells.items():
        where = ": " + "; ".join(f"{label} {', '.join(found)}" for label, found in named.items())
        everywhere = total > 1 and sum(map(len, named.values())) == total
        lines.append(f"{status}{' in every cell' if everywhere else where}: {reason}")
    return lines


def _order_in_family(row: GridRow) -> tuple[Any, ...]:
    factor = 0.0 if not isinstance(row.factor, float | int) else float(row.factor)
    return row.method, row.factor == "each", factor, is_resonance(row.pe)


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


def method_of(record: Record) -> str:
    """Parameters of a record's method as canonical JSON; the length that its one table is pinned to is one of them."""
    pinned = record.params.get("pin_length")
    return canonical((record.params.get("method") or {}) | ({} if pinned is None else {"pin_length": pinned}))


def _differing_parameters(method: str, others: Sequence[str]) -> str:
    """` (beta_fast=64)`: the parameters in which one of several rows of the same name differs."""
    if len(others) < 2:
        return ""
    parsed: list[dict[str, Any]] = [json.loads(other) for other in others]
    mine: dict[str, Any] = json.loads(method)
    names = sorted({name for other in parsed for name in other})
    differing = [name for name in names if len({canonical(other.get(name)) for other in parsed}) > 1]
    parts = [f"{name}={_short(mine.get(name))}" for name in differing]
    return f" ({', '.join(parts)})"


def _short(value: Any) -> str:
    """A parameter's value for a label: lists by their length and ends."""
    if isinstance(value, list):
        return f"[{len(value)} numbers]"
    return format_factor(value) if isinstance(value, float) else str(value)


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal texts for equal values."""
    plain = value is None or isinstance(value, str | int | float)
    return _canonical_plain(value) if plain else json.dumps(value, sort_keys=True)


@lru_cache(maxsize=1 << 14, typed=True)
def _canonical_plain(value: Any) -> str:
    """The same of a value that isn't nested; reports ask for few of them, each very often."""
    return json.dumps(value)
