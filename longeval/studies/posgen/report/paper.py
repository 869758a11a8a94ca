"""PosGen's tables for a paper, and its unrounded numbers as CSV data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longeval.report.document import Data, Prose, Row, Table, TableCell, joined, prose, symbol
from longeval.report.tables import DASH, method_row
from longeval.stats.seeds import SeedMean
from longeval.studies.posgen.report.figures import BY_EPOCH, BY_POSITION, RowCurves
from longeval.studies.posgen.report.published import Comparison
from longeval.studies.posgen.report.tables import (
    GENERATED,
    IN_DISTRIBUTION,
    METRICS,
    OOD,
    REGIMES,
    PosGenRow,
    PosGenTable,
    columns,
    difference_cell,
    mean_cell,
)

_CAPTIONS = {
    "ood": (OOD, "accuracy in % at positions that training never saw (OOD), with the true tokens before each"),
    "seen": (IN_DISTRIBUTION, "accuracy in % at positions seen in training"),
    "generated": (GENERATED, "accuracy in % of free-running generation at positions that training never saw"),
}
"""The tables for a paper in order: a part of the label → (metric, description of the metric)."""


def paper_tables(table: PosGenTable, beside: Comparison | None, slug: str) -> list[Table]:
    """Makes a table for each metric that has values, and one of the differences of pairs."""
    found = []
    for label, (metric, what) in _CAPTIONS.items():
        if any(row.runs[task].mean(metric) for row in table.rows for task in table.tasks):
            title = f"PosGen, {what}: {_setting(table)}"
            label = f"posgen-{label}-{slug}"
            found.append(_mean_table(table, metric, beside if metric == OOD else None, title=title, label=label))
    pairs = list(table.pairs())
    if pairs:
        several = len(table.seeds) > 1
        caption = "Mean over seeds of the differences seed by seed, with paired 95% {}-intervals."
        rows = []
        for pair in pairs:
            cells = [difference_cell(pair.differences.get(task), for_paper=True) for task in table.tasks]
            rows.append(method_row(pair.base.row, cells))
        found.append(
            Table(
                columns=columns(table.tasks),
                rows=tuple(rows),
                title=f"PosGen, change of OOD accuracy by Resonance RoPE, in points: {_setting(table)}",
                caption=prose(caption, symbol("t")) if several else "",
                label=f"posgen-pairs-{slug}",
            )
        )
    return found


def _mean_table(table: PosGenTable, metric: str, beside: Comparison | None, *, title: str, label: str) -> Table:
    """The table of means of one metric, with published numbers below ours."""
    rows, fewer = [], []
    for row in table.rows:
        cells = []
        for task in table.tasks:
            mean = row.runs[task].mean(metric)
            cells.append(mean_cell(mean, is_strong=table.is_best(row, task, metric)))
            if mean is not None and mean.n < len(table.seeds):
                fewer.append(f"{row.name} on {task} {mean.n}")
        rows.append(method_row(row.row, cells))
    caption: list[Prose] = [
        prose("Mean ± variance over {}, 95% {}-intervals in brackets.", table.seeds_phrase, symbol("t"))
    ]
    if len(table.seeds) == 1:
        caption = [f"One seed ({table.seeds[0]})."]
    caption.append("The better of a method and its resonance form in bold.")
    if fewer:
        caption.append(f"Fewer seeds: {', '.join(fewer)}.")
    if beside is not None:
        rows += [_published_row(beside, row) for row in beside.rows]
        differ = "; settings differ" if any(beside.differences()) else ""
        caption.append(f"Published: {beside.published.source}, mean ± variance over 5 seeds{differ}.")
    return Table(columns=columns(table.tasks), rows=tuple(rows), title=title, caption=joined(" ", caption), label=label)


def _published_row(beside: Comparison, row: PosGenRow) -> Row:
    numbers = [beside.number(row, task) for task in beside.table.tasks]
    cells = [DASH if number is None else TableCell(text=number.text) for number in numbers]
    return Row(cells=(TableCell(text=f"{row.row.pe}, published"), TableCell(text=""), *cells))


def _setting(table: PosGenTable) -> str:
    apart = f" ({table.differs})" if table.differs else ""
    meaning = REGIMES.get(table.regime)
    return f"{table.title}{apart}" + ("" if meaning is None else f"; {meaning}")


def csv_data(table: PosGenTable, beside: Comparison | None, curves: Sequence[RowCurves]) -> list[Data]:
    """The CSV data: means, differences of pairs, and curves over seeds."""
    means = [
        _where(table, task, row) | {"metric": metric} | _numbers(mean) | _published(beside, row, task, metric)
        for task in table.tasks
        for row in table.rows
        for metric in METRICS
        if (mean := row.runs[task].mean(metric)) is not None
    ]
    pairs = [
        _where(table, task, pair.resonance)
        | {"base": pair.base.row.label}
        | _numbers(difference)
        | {"excludes_zero": difference.excludes_zero if difference.n > 1 else None}
        for pair in table.pairs()
        for task, difference in pair.differences.items()
    ]
    return [
        Data(name="means", rows=tuple(means)),
        Data(name="pairs", rows=tuple(pairs)),
        _curve_data("positions", table, curves, BY_POSITION, "position"),
        _curve_data("losses", table, curves, BY_EPOCH, "epoch"),
    ]


def _published(beside: Comparison | None, row: PosGenRow, task: str, metric: str) -> dict[str, Any]:
    number = beside.number(row, task) if beside is not None and metric == OOD else None
    mean, variance = (None, None) if number is None else number
    return {"published": mean, "published_variance": variance}


def _curve_data(file: str, table: PosGenTable, curves: Sequence[RowCurves], names: Sequence[str], along: str) -> Data:
    """CSV data with one row per curve and point: mean, lowest and highest over seeds; shares 0 to 1, losses in nats."""
    rows = []
    for one in curves:
        for name in names:
            band = one.band(name)
            if band is None:
                continue
            where = _where(table, one.task, one.row) | {"curve": name}
            points = (values.tolist() for values in (band.x_K, band.mean_K, band.low_K, band.high_K))
            for x, mean, low, high in zip(*points, strict=True):
                if math.isfinite(mean):
                    numbers = {along: int(x), "seeds": band.seeds, "mean": mean, "low": low, "high": high}
                    rows.append(where | numbers)
    return Data(name=file, rows=tuple(rows))


def _where(table: PosGenTable, task: str, row: PosGenRow) -> dict[str, Any]:
    first = table.records[0]
    return {
        "regime": table.regime,
        "model": first.model,
        "epochs": first.params.get("epochs"),
        "dtype": first.dtype,
        "differs": table.differs,
        "task": task,
        "pe": row.row.label,
        "factor": row.row.factor,
    }


def _numbers(mean: SeedMean) -> dict[str, Any]:
    return {"seeds": mean.n, "mean": mean.mean, "variance": mean.variance, "low": mean.low, "high": mean.high}
