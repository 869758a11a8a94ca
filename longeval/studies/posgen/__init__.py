"""PosGen: sequences whose next token is equally easy everywhere, so that unseen positions are all that can be hard.

Wang et al. 2024 (arXiv 2403.00071), section 5. `rules.py` says which tokens are summed, `data.py` makes the
sequences; the model, its training and its evaluation are in the other modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.studies.posgen.request import PosGenRequest

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.report.build import StudyReport
    from longeval.run.study import Tell
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.posgen.plan import PosGenPlan


class PosGenStudy:
    """The study of `longeval posgen train`."""

    name = "posgen"
    Request = PosGenRequest
    planning: str | None = None
    tells_passes = False  # they are steps: thousands of lines
    report_command = "longeval posgen table"

    def check(self, requests: Sequence[PosGenRequest], store: Store) -> None:
        """See `Study`; a folder holds PosGen cells of one setting."""
        from longeval.studies.posgen.plan import check_settings

        check_settings(requests, store)

    def plan(self, request: PosGenRequest, tell: Tell, *, dry_run: bool = False) -> PosGenPlan:
        """See `Study`."""
        from longeval.studies.posgen.plan import plan_posgen

        return plan_posgen(request)

    def summary(self, records: Sequence[Record], width: int) -> list[Table]:
        """See `Study`."""
        from longeval.studies.posgen.summary import posgen_tables

        return posgen_tables(records)

    def report(self) -> StudyReport:
        """See `Study`."""
        from longeval.studies.posgen.report import REPORT

        return REPORT


STUDY = PosGenStudy()
