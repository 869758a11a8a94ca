"""Numbers from papers (`published.yaml`), and how a report shows them beside its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from longeval.report.document import Block, Bullets, Heading, Paragraph, Prose, Row, Table, TableCell, code, symbol
from longeval.report.numbers import MISSING, format_factor
from longeval.report.rows import GridRow, base_method, factor_text
from longeval.values import format_length

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
    """All tables of `published.yaml`, whose form a test holds to what its first lines say."""
    import yaml

    with open(PATH, encoding="utf-8") as file:
        return tuple(_set(entry) for entry in yaml.safe_load(file)["sets"])


def _set(plain: dict[str, Any]) -> PublishedSet:
    source = plain["source"]
    return PublishedSet(
        name=plain["name"],
        paper=source["paper"],
        arxiv=source["arxiv"],
        table=source["table"],
        kind=plain["kind"],
        data=plain.get("data"),
        protocol=plain.get("protocol"),
        cut=plain.get("cut"),
        answers=plain.get("answers"),
        params=plain.get("params", {}),
        setting=tuple(plain["setting"]),
        columns=tuple(plain["columns"]),
        rows=tuple(_row(row, plain["columns"]) for row in plain["rows"]),
    )


def _row(plain: dict[str, Any], columns: Sequence[str]) -> PublishedRow:
    return PublishedRow(
        model=plain["model"],
        method=plain["method"],
        factor=None if plain["factor"] is None else float(plain["factor"]),
        context=plain["context"],
        tuning=plain["tuning"],
        values=_numbers(plain["values"], columns),
        variances=_numbers(plain["variances"], columns) if "variances" in plain else {},
    )


def _numbers(values: Sequence[float | None], columns: Sequence[str]) -> dict[str, float]:
    """Column → number, of a row's list."""
    return {column: float(value) for column, value in zip(columns, values, strict=True) if value is not None}


def comparison_blocks(
    published: PublishedSet, ours: str, table: Table, differences: Sequence[str]
) -> tuple[Block, ...]:
    """One comparison: its heading and source, the table of both, and what differs.

    Args:
        published: The paper's table.
        ours: Title of the section whose numbers stand below it.
        table: Their rows, then ours.
        differences: In which settings they differ, a clause each.
    """
    source = " ".join([f"Source: {published.source}.", *published.setting])
    return (
        Heading(text=f"{published.name}: {ours} beside {published.paper}"),
        Paragraph(text=source),
        table,
        Paragraph(text="What differs:"),
        Bullets(items=tuple(differences)),
    )


def published_columns(columns: Iterable[str]) -> tuple[Prose, ...]:
    """Column titles of a comparison: what `published_row` and `own_row` put in front, then `columns`."""
    return ("whose", "model", "method", symbol("s"), "window", "trained on", *columns)


def published_row(row: PublishedRow, cells: Iterable[TableCell]) -> Row:
    """A row of the paper."""
    factor = MISSING if row.factor is None else format_factor(row.factor)
    method = code(row.method) if re.fullmatch("[a-z_0-9]+", row.method) else row.method
    start: list[Prose] = ["published", row.model, method, factor, row.context or MISSING, row.tuning or "no"]
    return Row(cells=(*(TableCell(text=text) for text in start), *cells))


def own_row(model: str, row: GridRow, length: int | None, cells: Iterable[TableCell]) -> Row:
    """A row of ours; `length` is the window where all its cells have one."""
    window = MISSING if length is None else format_length(length)
    start: list[Prose] = ["ours", model, code(row.label), factor_text(row), window, "no"]
    return Row(cells=(*(TableCell(text=text) for text in start), *cells))


def model_differences(published: PublishedSet, model: str) -> list[str]:
    """How the models differ, and whether theirs were trained with the method."""
    theirs = list(dict.fromkeys(row.model for row in published.rows))
    if any(_same_model(name, model) for name in theirs):
        found = [f"model: {model} is one of theirs by its name; other rows are other models"] if len(theirs) > 1 else []
    else:
        found = [f"model: theirs are {', '.join(theirs)}; ours is {model}, another model"]
    if any(row.tuning is not None for row in published.rows):
        found.append("training: rows with an entry under “trained on” were; ours runs the weights as they are")
    return found


def _same_model(theirs: str, ours: str) -> bool:
    """Whether two names say the same model: the same words and sizes, in any order."""
    a, b = (set(re.findall(r"\d+b|[a-z]+|\d+", name.lower())) - {"meta", "hf"} for name in (theirs, ours))
    return a == b


def factor_differences(published: PublishedSet, rows: Sequence[GridRow]) -> list[str]:
    """Methods that both have, with other factors."""
    found = []
    for base in dict.fromkeys(base_method(row.pe) for row in rows):
        theirs = {row.factor for row in published.rows if base_method(row.method) == base and row.factor is not None}
        ours = {row.factor for row in rows if base_method(row.pe) == base and isinstance(row.factor, float | int)}
        if theirs and ours and theirs != ours:
            shown = [" and ".join(format_factor(float(value)) for value in sorted(values)) for values in (theirs, ours)]
            found.append(f"factor s of {base}: theirs {shown[0]}, ours {shown[1]}")
    return found
