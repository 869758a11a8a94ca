"""Training models on at a longer context, with measurements before and after.

Source of the recipe: Wang et al. 2024 (arXiv 2403.00071), section 6.2. `augment.py` has the augmentations of positions,
`train.py` the loop; perplexities before and after are requests of `longeval ppl` (`evaluate.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.studies.finetune.request import FinetuneRequest

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.report.build import StudyReport
    from longeval.run.study import Tell
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.finetune.plan import FinetunePlan


class FinetuneStudy:
    """The study of `longeval finetune`."""

    name = "finetune"
    Request = FinetuneRequest
    tells_passes = True
    report_command = "longeval report"
    sums_up = ("ppl",)

    def check(self, requests: Sequence[FinetuneRequest], store: Store) -> None:
        """See `Study`. Models need a run folder on this machine."""
        from longeval.studies.finetune.plan import check_folder

        check_folder(requests, store)

    def plan(self, request: FinetuneRequest, tell: Tell, *, dry_run: bool = False) -> FinetunePlan:
        """See `Study`."""
        from longeval.studies.finetune.plan import plan_finetune

        return plan_finetune(request, tell)

    def summary(self, records: Sequence[Record], width: int) -> list[Table]:
        """See `Study`."""
        from longeval.report.formats.terminal import terminal_table

        return [terminal_table(table, width) for table in self.report().summary(records)]

    def report(self) -> StudyReport:
        """See `Study`."""
        from longeval.studies.finetune.report import REPORT

        return REPORT


STUDY = FinetuneStudy()
