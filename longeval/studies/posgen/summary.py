"""What `longeval posgen train` shows when it is done: accuracies by method, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.printable import as_markup

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.store.records import Record

METRICS = {"accuracy_in_distribution": "in distribution", "accuracy_ood": "OOD", "accuracy_generated": "generated"}
"""Metrics and the columns that show them."""


def posgen_tables(records: Sequence[Record]) -> list[Table]:
    """One table for each task and regime, in the records' order; none without records."""
    from rich.table import Table

    groups: dict[tuple[str, str, str, str], dict[str, list[Record]]] = {}
    for record in records:
        key = (str(record.data), str(record.params["regime"]), record.model, record.dtype)
        groups.setdefault(key, {}).setdefault(record.pe, []).append(record)
    tables = []
    for (data, regime, model, dtype), rows in groups.items():
        table = Table(
            title=as_markup(f"Accuracy %: {data}, {regime} · {model}, {dtype}"),
            title_justify="left",
            caption_justify="left",
            caption="Means over seeds ± standard deviation; generated: free-running, OOD positions.",
        )
        table.add_column("method", no_wrap=True)
        for column in (*METRICS.values(), "seeds"):
            table.add_column(column, justify="right", no_wrap=True)
        for pe, found in rows.items():
            failed = len({record.cell for record in found if record.status != "ok"})
            seeds = len({record.cell for record in found if record.status == "ok"})
            shown = f"{seeds}, {failed} failed" if failed else str(seeds)
            table.add_row(as_markup(pe), *(_mean(found, metric) for metric in METRICS), shown)
        tables.append(table)
    return tables


def _mean(records: Sequence[Record], metric: str) -> str:
    """`98.31 ± 0.20`, in percent."""
    values = [100 * record.value for record in records if record.metric == metric and record.value is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"
