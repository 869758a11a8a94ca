"""PosGen's tables as CSV, for other programs; nothing is rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longeval.report.formats.csv import csv_text
from longeval.report.posgen_curves import BY_EPOCH, BY_POSITION
from longeval.report.posgen_markdown import PosGenSection
from longeval.report.posgen_tables import METRICS, OOD, PosGenRow
from longeval.stats.seeds import SeedMean

_WHERE = ("regime", "model", "epochs", "dtype", "differs", "task", "pe", "factor")
_MEAN = ("seeds", "mean", "variance", "low", "high")


def means_csv(sections: Sequence[PosGenSection]) -> str:
    """One line per table, task, method and metric: percent over seeds, with the published number where there is one."""
    columns = [*_WHERE, "metric", *_MEAN, "published", "published_variance"]
    lines = []
    for section in sections:
        for task in section.table.tasks:
            for row in section.table.rows:
                for metric in METRICS:
                    mean = row.runs[task].mean(metric) if task in row.runs else None
                    if mean is None:
                        continue
                    line = _where(section, task, row) | {"metric": metric} | _numbers(mean)
                    theirs = section.beside.number(row, task) if section.beside and metric == OOD else None
                    if theirs is not None:
                        line |= {"published": theirs.mean, "published_variance": theirs.variance}
                    lines.append(line)
    return csv_text(columns, lines)


def pairs_csv(sections: Sequence[PosGenSection]) -> str:
    """One line per pair and task: change of OOD accuracy by resonance in points, seed by seed."""
    columns = [*_WHERE, "base", *_MEAN, "excludes_zero"]
    lines = []
    for section in sections:
        for pair in section.table.pairs():
            for task, difference in pair.differences.items():
                line = _where(section, task, pair.resonance) | {"base": pair.base.row.label} | _numbers(difference)
                lines.append(line | {"excludes_zero": difference.excludes_zero if difference.n > 1 else None})
    return csv_text(columns, lines)


def positions_csv(sections: Sequence[PosGenSection]) -> str:
    """One line per curve and position: mean, lowest and highest of the seeds; shares from 0 to 1, losses in nats."""
    return _curves_csv(sections, BY_POSITION, "position")


def losses_csv(sections: Sequence[PosGenSection]) -> str:
    """One line per curve and epoch: mean, lowest and highest of the seeds, nats."""
    return _curves_csv(sections, BY_EPOCH, "epoch")


def _curves_csv(sections: Sequence[PosGenSection], names: Sequence[str], along: str) -> str:
    columns = [*_WHERE, "curve", along, "seeds", "mean", "low", "high"]
    lines = []
    for section in sections:
        for one in section.curves:
            for name in names:
                band = one.band(name)
                if band is None:
                    continue
                where = _where(section, one.task, one.row) | {"curve": name, "seeds": band.seeds}
                points = (values.tolist() for values in (band.x_K, band.mean_K, band.low_K, band.high_K))
                for x, mean, low, high in zip(*points, strict=True):
                    if math.isfinite(mean):
                        lines.append(where | {along: int(x), "mean": mean, "low": low, "high": high})
    return csv_text(columns, lines)


def _where(section: PosGenSection, task: str, row: PosGenRow) -> dict[str, Any]:
    first = section.table.records[0]
    return {
        "regime": section.table.regime,
        "model": first.model,
        "epochs": first.params.get("epochs"),
        "dtype": first.dtype,
        "differs": section.table.differs,
        "task": task,
        "pe": row.row.label,
        "factor": row.row.factor,
    }


def _numbers(mean: SeedMean) -> dict[str, Any]:
    return {"seeds": mean.n, "mean": mean.mean, "variance": mean.variance, "low": mean.low, "high": mean.high}
