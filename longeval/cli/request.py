"""One way to carry out a perplexity request, for `longeval ppl` and `longeval run`: plan, then show or run it."""

from __future__ import annotations

import datetime
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.cli.json_output import check_json_path, write_json
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.plan import Plan
    from longeval.records import Record
    from longeval.spec import PplSpec
    from longeval.store import Store

SOME_FAILED = 3
"""Exit status when some cells failed."""

WIDTH = 200
"""Columns of tables that go into a file or a pipe."""


def carry_out(
    specs: Sequence[PplSpec],
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
    from longeval.cli.progress import RunProgress
    from longeval.plan import plan_ppl
    from longeval.run import run
    from longeval.store import Store

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
    store.check_writable()
    _say("reading model configuration and documents …", quiet)
    plans = [plan_ppl(spec) for spec in specs]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        _say(note, quiet)
    if dry_run:
        for plan in plans:
            _show_plan(plan, store, fresh)
        return 0
    found: dict[tuple[str, str], Record] = {}
    for plan in plans:
        with RunProgress(quiet=quiet, verbose=verbose) as progress:
            try:
                result = run(plan, store, progress, fresh=fresh, under_way=bool(found))
            except KeyboardInterrupt:
                kept = f"in {store.path}; the same command goes on from there" if progress.num_finished else "now"
                _say(f"{_count(progress.num_finished, 'cell')} stored {kept}", quiet)
                raise
        reused = f", {result.reused} were stored already" if result.reused else ""
        _say(f"{_count(result.computed, 'cell')} computed{reused}; records in {store.path}", quiet)
        # Requests of one folder may overlap: a cell counts once.
        found |= {(record.cell, record.metric): record for record in result.records}
    records = list(found.values())
    failed = len({record.cell for record in records if record.status == "failed"})
    if json_path is not None:
        write_json([record.to_json() for record in records], json_path)
    if json_path != "-" and not quiet:
        show_summary(records)
        print(f"\nFor a report: longeval report {store.path}")
    if failed:
        print(f"longeval: {_count(failed, 'cell')} failed; the records say why", file=sys.stderr)
        return SOME_FAILED
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(f"longeval: {text}", file=sys.stderr, flush=True)


def default_out(spec: PplSpec) -> str:
    """`runs/<date>-<short digest>`: the same request on the same day finds its folder again."""
    return f"runs/{datetime.date.today().isoformat()}-{spec.digest()}"


def _console() -> Console:
    """Stdout; wide enough for every column where no terminal sets the width."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def show_summary(records: Sequence[Record]) -> None:
    """The tables of a run on stdout."""
    from longeval.report.tables import summary_table

    console = _console()
    for table in summary_table(records, width=console.width):
        console.print()
        console.print(table)


def _show_plan(plan: Plan, store: Store, fresh: bool) -> None:
    """What a run would do, on stdout."""
    from rich.markup import escape
    from rich.table import Table

    from longeval.cli.progress import format_duration
    from longeval.estimate import estimate
    from longeval.run import pending
    from longeval.spec import format_length

    stored, jobs = pending(plan, store, fresh=fresh)
    console = _console()
    console.print("Dry run: nothing is computed.\n")
    table = Table(title="Cells", title_justify="left")
    for column in ("method", "s", "length", "documents", "skipped", "windows", "stored"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for job in plan.jobs:
        table.add_section()
        table.add_row(f"[bold]{escape(f'{job.model.name} on {job.corpus.source.name}')}[/bold]")
        for cell in plan.cells_of(job):
            table.add_row(
                cell.pe.canonical,
                "–" if cell.factor is None else f"{cell.factor:g}",
                format_length(cell.length),
                str(len({window.document for window in cell.windows})),
                str(cell.skipped),
                f"{len(cell.windows):,}",
                "yes" if cell.id in stored else "–",
            )
    console.print(table)
    console.print()
    for part in estimate(jobs):
        passes = f"{part.passes} forward {'pass' if part.passes == 1 else 'passes'}"
        console.print(
            f"{part.model} ({part.dtype}): {_count(part.cells, 'cell')} in {passes}, "
            f"{part.tokens:,} tokens; "
            f"estimated {format_duration(part.seconds)} and {part.memory_bytes / 2**30:.1f} GiB",
            highlight=False,
            markup=False,
        )
