"""Downstream tasks in long contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.studies.tasks.request import TasksRequest

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.report.build import StudyReport
    from longeval.run.study import Tell
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.tasks.work import TaskPlan


class TasksStudy:
    """The study of `longeval tasks`."""

    name = "tasks"
    Request = TasksRequest
    tells_passes = True
    report_command = "longeval report"
    sums_up = ()

    def check(self, requests: Sequence[TasksRequest], store: Store) -> None:
        """See `Study`; a folder may hold any requests."""

    def plan(self, request: TasksRequest, tell: Tell, *, dry_run: bool = False) -> TaskPlan:
        """See `Study`."""
        from longeval.studies.tasks.plan import plan_tasks  # lm-eval, which takes seconds to import

        return plan_tasks(request, tell, dry_run=dry_run)

    def summary(self, records: Sequence[Record], width: int) -> list[Table]:
        """See `Study`."""
        from longeval.report.formats.terminal import terminal_table

        return [terminal_table(table, width) for table in self.report().summary(records)]

    def report(self) -> StudyReport:
        """See `Study`."""
        from longeval.studies.tasks.report import REPORT

        return REPORT


STUDY = TasksStudy()
