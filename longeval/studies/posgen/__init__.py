"""PosGen: a synthetic benchmark in which every next token is equally hard to predict, except for unseen positions.

Small models are trained on short sequences and tested on longer ones. Source: Wang et al. 2024 (arXiv 2403.00071),
section 5. `data.py` makes the sequences; model, training and evaluation are in the other modules.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.printable import as_markup
from longeval.studies.posgen.request import PosGenRequest

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.report.build import StudyReport
    from longeval.run.study import Tell
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.posgen.plan import PosGenPlan

_METRICS = {"accuracy_in_distribution": "in distribution", "accuracy_ood": "OOD", "accuracy_generated": "generated"}
"""Metrics in the terminal's table, with their column titles."""


class PosGenStudy:
    """The study of `longeval posgen train`."""

    name = "posgen"
    Request = PosGenRequest
    tells_passes = False  # passes are training steps, which would be thousands of lines
    report_command = "longeval posgen table"
    sums_up = ()

    def check(self, requests: Sequence[PosGenRequest], store: Store) -> None:
        """See `Study`. All PosGen cells of a run folder must have the same settings."""
        from longeval.studies.posgen.plan import check_settings

        check_settings(requests, store)

    def plan(self, request: PosGenRequest, tell: Tell, *, dry_run: bool = False) -> PosGenPlan:
        """See `Study`."""
        from longeval.studies.posgen.plan import plan_posgen

        tell.preparing("building tables and trainings")
        return plan_posgen(request)

    def summary(self, records: Sequence[Record], width: int) -> list[Table]:
        """See `Study`. There is one table of accuracies for each task and regime, in the order of the records."""
        groups: dict[tuple[str, str, str, str], dict[str, list[Record]]] = {}
        for record in records:
            key = (str(record.data), str(record.params["regime"]), record.model, record.dtype)
            groups.setdefault(key, {}).setdefault(record.pe, []).append(record)
        return [
            _table(f"Accuracy %: {data}, {regime} · {model}, {dtype}", rows)
            for (data, regime, model, dtype), rows in groups.items()
        ]

    def report(self) -> StudyReport:
        """See `Study`."""
        from longeval.studies.posgen.report import REPORT

        return REPORT


def _table(title: str, rows: dict[str, list[Record]]) -> Table:
    """The table of mean accuracies over seeds, one row per method."""
    from rich.table import Table

    table = Table(
        title=as_markup(title),
        title_justify="left",
        caption_justify="left",
        caption="Means over seeds ± standard deviation; generated: free-running, OOD positions.",
    )
    table.add_column("method", overflow="fold")
    for column in (*_METRICS.values(), "seeds"):
        table.add_column(column, justify="right", overflow="fold")
    for pe, found in rows.items():
        failed = len({record.cell for record in found if record.status != "ok"})
        seeds = len({record.cell for record in found if record.status == "ok"})
        shown = f"{seeds}, {failed} failed" if failed else str(seeds)
        table.add_row(as_markup(pe), *(_mean(found, metric) for metric in _METRICS), shown)
    return table


def _mean(records: Sequence[Record], metric: str) -> str:
    """Mean ± standard deviation in percent, such as `98.31 ± 0.20`."""
    values = [100 * record.value for record in records if record.metric == metric and record.value is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


STUDY = PosGenStudy()
