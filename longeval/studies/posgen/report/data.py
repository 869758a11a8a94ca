"""PosGen's numbers for other programs: means, differences of pairs, and curves over seeds; nothing is rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longeval.report.document import Data
from longeval.stats.seeds import SeedMean
from longeval.studies.posgen.report.figures import BY_EPOCH, BY_POSITION, RowCurves
from longeval.studies.posgen.report.published import Comparison
from longeval.studies.posgen.report.tables import METRICS, OOD, PosGenRow, PosGenTable

_WHERE = ("regime", "model", "epochs", "dtype", "differs", "task", "pe", "factor")
_MEAN = ("seeds", "mean", "variance", "low", "high")


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
