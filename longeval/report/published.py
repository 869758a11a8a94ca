"""Numbers from papers (`published.yaml`): read, checked, and picked by what a report holds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast, get_args

from longeval.values import parse_length

Kind = Literal["tasks", "perplexity", "posgen"]
AVERAGE = "average"
"""Column of the mean of a row's other columns."""

PATH = os.path.join(os.path.dirname(__file__), "published.yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """One model with one method."""

    model: str
    method: str
    """A method of longeval, or the paper's own name for another."""
    factor: float | None
    context: str | None
    """Length that it was set up for, as the paper writes it."""
    tuning: str | None
    """How it was trained on with the method; null where the weights are as they came."""
    values: dict[str, float]
    """Column → number, in the set's unit; columns without one are left out."""
    variances: dict[str, float] = field(default_factory=dict)
    """Of PosGen: column → the variance printed beside the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSet:
    """One table of a paper."""

    name: str
    paper: str
    arxiv: str
    table: str
    kind: Kind
    unit: Literal["percent", "perplexity"]
    data: str | None
    """Of perplexities: longeval's name of the data."""
    protocol: str | None
    cut: str | None
    """Of tasks: which part of a long document was cut, as `--overlong` names it."""
    answers: int | None
    """Of tasks: most new tokens of an answer."""
    params: dict[str, int | float | str]
    """Of PosGen: settings that the paper states, by the names of longeval's records."""
    setting: tuple[str, ...]
    """Sentences for the reader."""
    columns: tuple[str, ...]
    """Tasks and `average`, rules of PosGen, or lengths as `format_length` writes them."""
    rows: tuple[PublishedRow, ...]

    @property
    def source(self) -> str:
        """`Wang et al. 2024, Resonance RoPE (arXiv 2403.00071), Table 2`."""
        return f"{self.paper} (arXiv {self.arxiv}), {self.table}"


@cache
def published_sets() -> tuple[PublishedSet, ...]:
    """All tables of `published.yaml`; ValueError if the file is not as its first lines say."""
    import yaml

    with open(PATH, encoding="utf-8") as file:
        return parse_published(yaml.safe_load(file))


def parse_published(plain: Any) -> tuple[PublishedSet, ...]:
    """Tables from the file's content.

    Raises:
        ValueError: A key is missing or unknown, a row has another number of values than there are columns, a number is
            no positive one, or an average is not that of its row.
    """
    if not isinstance(plain, dict) or set(plain) != {"sets"}:
        raise ValueError("published: one key, `sets`, expected")
    return tuple(_parse_set(entry) for entry in plain["sets"])


_COMMON = {"name", "source", "kind", "unit", "setting", "columns", "rows"}
_OWN = {"tasks": {"cut", "answers"}, "perplexity": {"data", "protocol"}, "posgen": {"params"}}


def _parse_set(plain: Mapping[str, Any]) -> PublishedSet:
    if plain.get("kind") not in get_args(Kind):
        raise ValueError(f"published: kind {plain.get('kind')!r}")
    kind = cast("Kind", plain["kind"])
    what = f"published, {plain.get('name')}"
    _check_keys(plain, _COMMON | _OWN[kind], what)
    _check_keys(plain["source"], {"paper", "arxiv", "table"}, what)
    if plain["unit"] != ("perplexity" if kind == "perplexity" else "percent"):
        raise ValueError(f"{what}: unit {plain['unit']!r}")
    columns = tuple(plain["columns"])
    if kind == "perplexity" and sorted(columns, key=parse_length) != list(columns):
        raise ValueError(f"{what}: columns are not ascending lengths")
    return PublishedSet(
        name=plain["name"],
        paper=plain["source"]["paper"],
        arxiv=plain["source"]["arxiv"],
        table=plain["source"]["table"],
        kind=kind,
        unit=plain["unit"],
        data=plain.get("data"),
        protocol=plain.get("protocol"),
        cut=plain.get("cut"),
        answers=plain.get("answers"),
        params=plain.get("params", {}),
        setting=tuple(plain["setting"]),
        columns=columns,
        rows=tuple(_parse_row(row, columns, kind, what) for row in plain["rows"]),
    )


_ROW = {"model", "method", "factor", "context", "tuning", "values"}


def _parse_row(plain: Mapping[str, Any], columns: tuple[str, ...], kind: Kind, what: str) -> PublishedRow:
    _check_keys(plain, _ROW | ({"variances"} if kind == "posgen" else set()), what)
    unit = "perplexity" if kind == "perplexity" else "percent"
    values = _numbers(plain, "values", columns, what)
    for value in values.values():
        if not math.isfinite(value) or not (0 <= value <= 100 if unit == "percent" else value >= 1):
            raise ValueError(f"{what}: {value} is no {unit}")
    variances = _numbers(plain, "variances", columns, what) if kind == "posgen" else {}
    if not all(math.isfinite(value) and value >= 0 for value in variances.values()):
        raise ValueError(f"{what}: a variance is below 0 or not finite")
    if AVERAGE in values:
        others = [value for column, value in values.items() if column != AVERAGE]
        # As printed: to two decimals, whichever way 5 in the third is rounded.
        if abs(sum(others) / len(others) - values[AVERAGE]) > 0.005 + 1e-9:
            raise ValueError(f"{what}: {values[AVERAGE]} is not the average of {others}")
    return PublishedRow(
        model=plain["model"],
        method=plain["method"],
        factor=None if plain["factor"] is None else float(plain["factor"]),
        context=plain["context"],
        tuning=plain["tuning"],
        values=values,
        variances=variances,
    )


def _numbers(plain: Mapping[str, Any], key: str, columns: tuple[str, ...], what: str) -> dict[str, float]:
    """Column → number, of a row's list."""
    if len(plain[key]) != len(columns):
        raise ValueError(f"{what}: {plain['model']} {plain['method']} has {len(plain[key])} {key}")
    return {column: float(value) for column, value in zip(columns, plain[key], strict=True) if value is not None}


def _check_keys(plain: Mapping[str, Any], known: set[str], what: str) -> None:
    if set(plain) != known:
        raise ValueError(f"{what}: keys {sorted(set(plain) ^ known)} are unknown or missing")
