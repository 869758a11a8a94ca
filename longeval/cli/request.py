"""One way to carry out requests, for `ppl`, `tasks`, `posgen train` and `run`: plan, then show or run."""

from __future__ import annotations

import datetime
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from longeval.cli.json_output import check_json_path, write_json
from longeval.cli.terminal import console, say, show
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.cli.progress import RunProgress
    from longeval.request import Request
    from longeval.run.session import RunResult
    from longeval.store.folder import Store
    from longeval.store.records import Record
    from longeval.studies.posgen.plan import PosGenPlan
    from longeval.studies.ppl.plan import Plan
    from longeval.studies.tasks.plan import TaskPlan

    AnyPlan = Plan | TaskPlan | PosGenPlan

SOME_FAILED = 3
"""Exit status when some cells failed."""

WIDTH = 200
"""Columns of tables that go into a file or a pipe."""


def carry_out(
    specs: Sequence[Request],
    *,
    out: str | None,
    json_path: str | None,
    dry_run: bool,
    fresh: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Plans requests and runs them (or shows what they would do); returns the exit status.

    Every request is planned, and so checked, before the first one runs.
    """
    from longeval.cache import sweep_temporary
    from longeval.cli.progress import RunProgress
    from longeval.store.folder import Store

    if quiet and verbose:
        raise LongEvalError("-q and -v: contradict each other", "Give one of them.")
    if json_path is not None:
        if dry_run:
            raise LongEvalError(f"--json {json_path}: a dry run has no records", "Leave one of the two out.")
        check_json_path(json_path)
    if out is not None and not out.strip():
        raise LongEvalError("--out '': an empty name", "Name a folder, or leave it out.")
    logging.getLogger("longeval").setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    store = Store(out or default_out(specs[0]))
    _check_settings(specs, store)
    store.check_usable()
    plans = _plan_all(specs, quiet, dry_run=dry_run)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        _say(note, quiet)
    if dry_run:
        _show(specs, plans, store, fresh)
        return 0
    store.sweep()
    sweep_temporary()
    found: dict[tuple[str, str], Record] = {}
    for spec, plan in zip(specs, plans, strict=True):
        passes_told = verbose and spec.command != "posgen"  # whose passes are steps: thousands of lines
        with RunProgress(quiet=quiet, verbose=passes_told) as progress:
            try:
                result = _run(spec, plan, store, progress, fresh=fresh, under_way=bool(found))
            except KeyboardInterrupt:
                anything = progress.num_finished or store.has_checkpoints()
                stored = f"{count(progress.num_finished, 'cell')} stored in {store.path}"
                _say(f"{stored}; the same command goes on from there" if anything else "nothing is stored yet", quiet)
                raise
        _say(f"{_outcome(result)}; records in {store.path}", quiet)
        # Requests of one folder may overlap: a cell counts once.
        found |= {(record.cell, record.metric): record for record in result.records}
    records = list(found.values())
    failed = len({record.cell for record in records if record.status == "failed"})
    if json_path is not None:
        write_json([record.to_json() for record in records], json_path)
    if json_path != "-" and not quiet:
        show_summary(records)
        for command in dict.fromkeys(_report_command(spec) for spec in specs):
            show("")
            show(f"For a report: {command} {shlex.quote(store.path)}")
    if failed:
        say(f"{count(failed, 'cell')} failed; the records say why")
        return SOME_FAILED
    return 0


def _outcome(result: RunResult) -> str:
    """`3 cells computed, 1 skipped, 2 stored already`; averages of groups are no cells that are computed."""
    skipped = {r.cell for r in result.records if r.status == "skipped" and r.params.get("members") is None}
    parts = [f"{count(result.computed - len(skipped), 'cell')} computed"]
    parts += [f"{len(skipped)} skipped"] if skipped else []
    parts += [f"{result.reused} stored already"] if result.reused else []
    return ", ".join(parts)


def _report_command(spec: Request) -> str:
    """What shows the records of such a request."""
    return "longeval posgen table" if spec.command == "posgen" else "longeval report"


def _check_settings(specs: Sequence[Request], store: Store) -> None:
    """Raises LongEvalError for a damaged spec.yaml, and where a folder would hold PosGen cells of several settings."""
    from longeval.request import PosGenRequest
    from longeval.run.session import stored_requests

    stored_requests(store)
    store.plan()  # a damaged one is told before anything is computed
    posgen = [spec for spec in specs if isinstance(spec, PosGenRequest)]
    if posgen:
        from longeval.studies.posgen.run import check_settings

        check_settings(posgen, store)


def _plan_all(specs: Sequence[Request], quiet: bool, *, dry_run: bool) -> list[AnyPlan]:
    """The plans of requests, each checked; for a dry run without running code of models and of task files."""
    from longeval.cli.progress import RunProgress
    from longeval.request import PosGenRequest, TasksRequest

    if not all(isinstance(spec, PosGenRequest) for spec in specs):
        _say("reading model configuration and documents …", quiet)
    plans: list[AnyPlan] = []
    for spec in specs:
        if isinstance(spec, TasksRequest):
            from longeval.studies.tasks.plan import plan_tasks  # lm-eval, which takes seconds to import

            with RunProgress(quiet=quiet) as progress:
                plans.append(
                    plan_tasks(
                        spec, lambda line: progress.say(f"longeval: {line}"), progress.preparing, dry_run=dry_run
                    )
                )
        elif isinstance(spec, PosGenRequest):
            from longeval.studies.posgen.plan import plan_posgen

            plans.append(plan_posgen(spec))
        else:
            from longeval.studies.ppl.plan import plan_ppl

            plans.append(plan_ppl(spec, dry_run=dry_run))
    return plans


def _run(
    spec: Request, plan: AnyPlan, store: Store, progress: RunProgress, *, fresh: bool, under_way: bool
) -> RunResult:
    """Runs what is missing of a plan."""
    from longeval.request import PosGenRequest, TasksRequest

    if isinstance(spec, TasksRequest):
        from longeval.studies.tasks.run import run_tasks

        return run_tasks(cast("TaskPlan", plan), store, progress, fresh=fresh, under_way=under_way)
    if isinstance(spec, PosGenRequest):
        from longeval.studies.posgen.run import run_posgen

        return run_posgen(cast("PosGenPlan", plan), store, progress, fresh=fresh, under_way=under_way)
    from longeval.studies.ppl.run import run

    return run(cast("Plan", plan), store, progress, fresh=fresh, under_way=under_way)


def _show(specs: Sequence[Request], plans: Sequence[AnyPlan], store: Store, fresh: bool) -> None:
    """What runs would do, on stdout."""
    from longeval.cli.dry_run import show_plan, show_posgen_plan, show_task_plan
    from longeval.request import PosGenRequest, TasksRequest

    screen = wide_console()
    screen.print("Dry run: nothing is computed.\n")
    for spec, plan in zip(specs, plans, strict=True):
        if isinstance(spec, TasksRequest):
            show_task_plan(cast("TaskPlan", plan), store, screen, fresh=fresh)
        elif isinstance(spec, PosGenRequest):
            show_posgen_plan(cast("PosGenPlan", plan), store, screen, fresh=fresh)
        else:
            show_plan(cast("Plan", plan), store, screen, fresh=fresh)


def count(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        say(text)


def default_out(spec: Request) -> str:
    """`runs/<date>-<short digest>`: the same request on the same day finds its folder again."""
    return f"runs/{datetime.date.today().isoformat()}-{spec.digest()}"


def wide_console() -> Console:
    """Stdout; wide enough for every column where no terminal sets the width."""
    return console() if sys.stdout.isatty() else console(width=WIDTH)


def show_summary(records: Sequence[Record]) -> None:
    """The tables of a run on stdout."""
    from longeval.cli.posgen_summary import posgen_tables
    from longeval.cli.report import study_reports
    from longeval.report.formats.terminal import terminal_table

    screen = wide_console()
    posgen = [record for record in records if record.backend == "posgen"]
    others = [record for record in records if record.backend != "posgen"]
    tables = [table for study in study_reports() for table in study.summary(others)]
    for shown in (*(terminal_table(table, screen.width) for table in tables), *posgen_tables(posgen)):
        screen.print()
        screen.print(shown)
