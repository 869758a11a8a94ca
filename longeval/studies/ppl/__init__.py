"""Perplexity at growing context lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.request import PplRequest
    from longeval.run.study import Tell
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.ppl.plan import PplPlan


class PplStudy:
    """The study of `longeval ppl`."""

    name = "ppl"
    planning: str | None = "reading model configuration and documents …"
    tells_passes = True
    report_command = "longeval report"

    def check(self, requests: Sequence[PplRequest], store: Store) -> None:
        """See `Study`; a folder may hold any requests."""

    def plan(self, request: PplRequest, tell: Tell, *, dry_run: bool = False) -> PplPlan:
        """See `Study`."""
        from longeval.studies.ppl.plan import plan_ppl

        return plan_ppl(request, dry_run=dry_run)

    def summary(self, records: Sequence[Record], width: int) -> list[Table]:
        """See `Study`."""
        from longeval.report.formats.terminal import terminal_table
        from longeval.studies.ppl.report import REPORT

        return [terminal_table(table, width) for table in REPORT.summary(records)]


STUDY = PplStudy()
