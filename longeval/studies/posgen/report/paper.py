"""PosGen's tables for a paper, and its numbers for other programs, which are not rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longeval.report.document import Data, Row, Table, TableCell, prose, symbol
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
    OOD: "accuracy in % at positions that training never saw (OOD), with the true tokens before each",
    IN_DISTRIBUTION: "accuracy in % at positions seen in training",
    GENERATED: "accuracy in % of free-running generation at positions that training never saw",
}
"""Of the tables for a paper, in their order."""

_LABELS = {OOD: "ood", IN_DISTRIBUTION: "seen", GENERATED: "generated"}

_WHERE = ("regime", "model", "epochs", "dtype", "differs", "task", "pe", "factor")
_MEAN = ("seeds", "mean", "variance", "low", "high")


def paper_tables(table: PosGenTable, beside: Comparison | None, slug: str) -> list[Table]:
    """A table for each metric that has values, and one of the pairs' differences."""
    found = []
    for metric, what in _CAPTIONS.items():
        if any(row.runs[task].mean(metric) for row in table.rows for task in table.tasks):
            found.append(_mean_table(table, metric, what, beside if metric == OOD else None, slug))
    pairs = list(table.pairs())
    if pairs:
        several = len(table.seeds) > 1
        caption = "Mean over seeds of the differences seed by seed, with paired 95% {}-intervals."
        cells = [[difference_cell(pair.differences.get(t), for_paper=True) for t in table.tasks] for pair in pairs]
        found.append(
            Table(
                columns=columns(table.tasks),
                rows=tuple(method_row(pair.base.row, shown) for pair, shown in zip(pairs, cells, strict=True)),
                title=f"PosGen, change of OOD accuracy by Resonance RoPE, in points: {_setting(table)}",
                caption=prose(caption, symbol("t")) if several else "",
                label=f"posgen-pairs-{slug}",
            )
        )
    return found


def _mean_table(table: PosGenTable, metric: str, what: str, beside: Comparison | None, slug: str) -> Table:
    """Means of one metric; published numbers stand below ours."""
    rows = []
    fewer = []
    for row in table.rows:
        means = {task: row.runs[task].mean(metric) for task in table.tasks}
        rows.append(
            method_row(
                row.row,
                [mean_cell(mean, is_strong=table.is_best(row, task, metric)) for task, mean in means.items()],
            )
        )
        fewer += [
            f"{row.name} on {task} {mean.n}"
            for task, mean in means.items()
            if mean is not None and mean.n < len(table.seeds)
        ]
    caption = [prose("Mean ± variance over {}, 95% {}-intervals in brackets.", table.seeds_phrase, symbol("t"))]
    if len(table.seeds) == 1:
        caption = [prose("One seed ({}).", table.seeds[0])]
    caption.append(prose(" The better of a method and its resonance form in bold."))
    caption += [prose(" Fewer seeds: {}.", ", ".join(fewer))] if fewer else []
    if beside is not None:
        rows += [_published_row(beside, row) for row in beside.rows]
        differ = "; settings differ" if any(beside.differences()) else ""
        caption.append(prose(" Published: {}, mean ± variance over 5 seeds{}.", beside.published.source, differ))
    return Table(
        columns=columns(table.tasks),
        rows=tuple(rows),
        title=f"PosGen, {what}: {_setting(table)}",
        caption=tuple(span for part in caption for span in part),
        label=f"posgen-{_LABELS[metric]}-{slug}",
    )


def _published_row(beside: Comparison, row: PosGenRow) -> Row:
    numbers = [beside.number(row, task) for task in beside.table.tasks]
    cells = [DASH if number is None else TableCell(text=number.text) for number in numbers]
    return Row(cells=(TableCell(text=f"{row.row.pe}, published"), TableCell(text=""), *cells))


def _setting(table: PosGenTable) -> str:
    apart = f" ({table.differs})" if table.differs else ""
    meaning = REGIMES.get(table.regime)
    return f"{table.title}{apart}" + ("" if meaning is None else f"; {meaning}")


def csv_data(table: PosGenTable, beside: Comparison | None, curves: Sequence[RowCurves]) -> list[Data]:
    """Means, differences of pairs, and curves over seeds, for other programs."""
    means, pairs = [], []
    for task in table.tasks:
        for row in table.rows:
            for metric in METRICS:
                mean = row.runs[task].mean(metric)
                if mean is None:
                    continue
                line = _where(table, task, row) | {"metric": metric} | _numbers(mean)
                theirs = beside.number(row, task) if beside is not None and metric == OOD else None
                if theirs is not None:
                    line |= {"published": theirs.mean, "published_variance": theirs.variance}
                means.append(line)
    for pair in table.pairs():
        for task, difference in pair.differences.items():
            line = _where(table, task, pair.resonance) | {"base": pair.base.row.label} | _numbers(difference)
            pairs.append(line | {"excludes_zero": difference.excludes_zero if difference.n > 1 else None})
    columns = (*_WHERE, "metric", *_MEAN, "published", "published_variance")
    return [
        Data(name="means", columns=columns, rows=tuple(means)),
        Data(name="pairs", columns=(*_WHERE, "base", *_MEAN, "excludes_zero"), rows=tuple(pairs)),
        _curve_data("positions", table, curves, BY_POSITION, "position"),
        _curve_data("losses", table, curves, BY_EPOCH, "epoch"),
    ]


def _curve_data(file: str, table: PosGenTable, curves: Sequence[RowCurves], names: Sequence[str], along: str) -> Data:
    """One row per curve and point: mean, lowest and highest of the seeds; shares from 0 to 1, losses in nats."""
    rows = []
    for one in curves:
        for name in names:
            band = one.band(name)
            if band is None:
                continue
            where = _where(table, one.task, one.row) | {"curve": name, "seeds": band.seeds}
            points = (values.tolist() for values in (band.x_K, band.mean_K, band.low_K, band.high_K))
            for x, mean, low, high in zip(*points, strict=True):
                if math.isfinite(mean):
                    rows.append(where | {along: int(x), "mean": mean, "low": low, "high": high})
    return Data(name=file, columns=(*_WHERE, "curve", along, "seeds", "mean", "low", "high"), rows=tuple(rows))


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
