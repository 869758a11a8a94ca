"""Perplexity at growing context lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.studies.ppl.request import PplRequest

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.report.build import StudyReport
    from longeval.run.study import Tell
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.ppl.plan import PplPlan


class PplStudy:
    """The study of `longeval ppl`."""

    name = "ppl"
    Request = PplRequest
    tells_passes = True
    report_command = "longeval report"
    sums_up = ()

    def check(self, requests: Sequence[PplRequest], store: Store) -> None:
        """See `Study`; a folder may hold any requests."""

    def plan(self, request: PplRequest, tell: Tell, *, dry_run: bool = False) -> PplPlan:
        """See `Study`."""
        from longeval.studies.ppl.plan import plan_ppl

        return plan_ppl(request, tell, dry_run=dry_run)

    def summary(self, records: Sequence[Record], width: int) -> list[Table]:
        """See `Study`."""
        from longeval.report.formats.terminal import terminal_table

        return [terminal_table(table, width) for table in self.report().summary(records)]

    def report(self) -> StudyReport:
        """See `Study`."""
        from longeval.studies.ppl.report import REPORT

        return REPORT


STUDY = PplStudy()
