"""Numbers from papers (`published.yaml`), and how a report shows them beside its own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

from longeval.looks import base_method
from longeval.report.document import Block, Bullets, Heading, Paragraph, Prose, Row, Table, TableCell, code, symbol
from longeval.report.numbers import MISSING, format_factor
from longeval.report.tables import DASH, GridRow, factor_text
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
    variances: dict[str, float]
    """Of PosGen: column → the variance printed beside the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSet:
    """One table of a paper."""

    name: str
    paper: str
    arxiv: str
    table: str
    kind: Kind
    unit: str
    data: str | None = None
    """Of perplexities: longeval's name of the data."""
    protocol: str | None = None
    cut: str | None = None
    """Of tasks: which part of a long document was cut, as `--overlong` names it."""
    answers: int | None = None
    """Of tasks: most new tokens of an answer."""
    params: dict[str, int | float | str] = field(default_factory=dict)
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
        return tuple(_set(**entry) for entry in yaml.safe_load(file)["sets"])


def _set(
    *, source: dict[str, Any], rows: list[Any], columns: list[str], setting: list[str], **fields: Any
) -> PublishedSet:
    made = tuple(_row(columns, **row) for row in rows)
    return PublishedSet(**source, **fields, columns=tuple(columns), setting=tuple(setting), rows=made)


def _row(
    columns: Sequence[str],
    *,
    factor: float | None,
    values: Sequence[float | None],
    variances: Sequence[float | None] = (),
    **fields: Any,
) -> PublishedRow:
    return PublishedRow(
        **fields,
        factor=None if factor is None else float(factor),
        values={column: float(value) for column, value in zip(columns, values, strict=True) if value is not None},
        variances={c: float(value) for c, value in zip(columns, variances, strict=False) if value is not None},
    )


class OwnRow(NamedTuple):
    """A row of ours in a comparison."""

    row: GridRow
    window: int | None
    """The window where all its cells have one."""
    cells: Sequence[TableCell]


def comparison_blocks(
    published: PublishedSet,
    model: str,
    rows: Sequence[OwnRow],
    *,
    title: str,
    columns: Sequence[str],
    number: Callable[[float], str],
    differences: Iterable[str],
) -> tuple[Block, ...]:
    """One comparison: its heading and source, the table of both, and what differs.

    Args:
        published: The paper's table.
        model: Our model.
        rows: Our rows, below theirs.
        title: Title of the section whose numbers these are.
        columns: Columns of the table; the paper need not have all of them.
        number: How a published number is written.
        differences: In which settings the two differ, a clause each, beside models and factors.
    """
    theirs = [
        _published_row(row, [_number_cell(row.values.get(column), number) for column in columns])
        for row in published.rows
    ]
    table = Table(
        columns=("whose", "model", "method", symbol("s"), "window", "trained on", *columns),
        rows=(*theirs, *(_own_row(model, row) for row in rows)),
        left=3,
    )
    told = [*_models(published, model), *differences, *_factors(published, [row.row for row in rows])]
    return (
        Heading(text=f"{published.name}: {title} beside {published.paper}"),
        Paragraph(text=" ".join([f"Source: {published.source}.", *published.setting])),
        table,
        Paragraph(text="What differs:"),
        Bullets(items=tuple(told)),
    )


def _number_cell(value: float | None, number: Callable[[float], str]) -> TableCell:
    return DASH if value is None else TableCell(text=number(value))


def _published_row(row: PublishedRow, cells: Iterable[TableCell]) -> Row:
    factor = MISSING if row.factor is None else format_factor(row.factor)
    method = code(row.method) if re.fullmatch("[a-z_0-9]+", row.method) else row.method
    start: list[Prose] = ["published", row.model, method, factor, row.context or MISSING, row.tuning or "no"]
    return Row(cells=(*(TableCell(text=text) for text in start), *cells))


def _own_row(model: str, own: OwnRow) -> Row:
    window = MISSING if own.window is None else format_length(own.window)
    start: list[Prose] = ["ours", model, code(own.row.label), factor_text(own.row), window, "no"]
    return Row(cells=(*(TableCell(text=text) for text in start), *own.cells))


def _models(published: PublishedSet, model: str) -> list[str]:
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


def _factors(published: PublishedSet, rows: Sequence[GridRow]) -> list[str]:
    """Methods that both have, with other factors."""
    found = []
    for base in dict.fromkeys(base_method(row.pe) for row in rows):
        theirs = {row.factor for row in published.rows if base_method(row.method) == base and row.factor is not None}
        ours = {row.factor for row in rows if base_method(row.pe) == base and isinstance(row.factor, float | int)}
        if theirs and ours and theirs != ours:
            shown = [" and ".join(format_factor(float(value)) for value in sorted(values)) for values in (theirs, ours)]
            found.append(f"factor s of {base}: theirs {shown[0]}, ours {shown[1]}")
    return found
