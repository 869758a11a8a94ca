"""`longeval run FILE`: repeats a written-down request; only what is missing is computed.

`carry_out` is the one way to carry out requests, whatever their study and command: plan all of them, then show or run
them, then sum up.
"""

from __future__ import annotations

import datetime
import functools
import os
import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from longeval.cli.options import DryRun, Executor, Fresh, GpusPerWorker, Json, Quiet, Show, Track, Verbose, Workers
from longeval.cli.terminal import check_json_path, check_loudness, console, say, show, write_json
from longeval.errors import LongEvalError, reason
from longeval.printable import as_markup
from longeval.run.overview import Overview, count

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.cli.progress import RunProgress
    from longeval.request import StudyRequest
    from longeval.run.engine import RunResult
    from longeval.run.executor import Executor as Executes
    from longeval.run.study import Outcome, Plan, Study
    from longeval.store.folder import Store
    from longeval.store.records import Record

SOME_FAILED = 3
"""Exit status when some cells failed."""

_WIDTH = 200
"""Columns of tables that go into a file or a pipe."""


def carry_out(
    specs: Sequence[StudyRequest],
    *,
    out: str | None,
    json_path: str | None,
    dry_run: bool,
    fresh: bool,
    quiet: bool,
    verbose: bool,
    executor: str = "local",
    workers: str | None = None,
    gpus_per_worker: str | None = None,
    track: str | None = None,
    examples: str | None = None,
) -> int:
    """Plans requests and runs them (or shows what they would do); returns the exit status.

    Every request is planned, and so checked, before the first one runs.
    """
    from longeval.cache import sweep_temporary
    from longeval.cli.progress import RunProgress
    from longeval.models.device import process_rank
    from longeval.run.pool import choose_executor
    from longeval.run.study import find_study, plan_after, plan_all
    from longeval.run.tracking import Tracking, check_trackers
    from longeval.store.folder import Store
    from longeval.values import split_list

    check_loudness(quiet=quiet, verbose=verbose)
    if process_rank():  # another process of the same training tells and writes
        quiet, verbose, json_path, track = True, False, None, None
    for flag, value in (("--json", json_path), ("--track", track)):
        if value is not None and dry_run:
            raise LongEvalError(f"{flag} {value}: a dry run has no records", "Leave one of the two out.")
    check_json_path(json_path)
    num_shown = None if examples is None else _num_shown(examples, specs)
    if out is not None and not out.strip():
        raise LongEvalError("--out '': an empty name", "Name a folder, or leave it out.")
    trackers = () if track is None else split_list(track, flag="--track")
    check_trackers(trackers)
    chosen = choose_executor(executor, workers, gpus_per_worker)
    store = Store(out or default_out(specs[0]), read_only=process_rank() > 0)
    studies = {spec.command: find_study(spec.command) for spec in specs}
    check_folder(specs, studies, store)
    plans = _planned(lambda tell: plan_all(specs, tell, dry_run=dry_run), quiet)
    for plan in plans:
        plan.check_folder(store)
    if dry_run:
        _show_plans(plans, store, fresh, quiet)
        _show_examples(plans, store, num_shown, file=sys.stdout)
        return 0
    store.sweep()
    sweep_temporary()
    found: dict[tuple[str, str], tuple[str, Record]] = {}
    """(cell, metric) → the command and its record: requests of one folder may overlap, and a cell counts once."""
    queue = list(plans)
    with chosen:
        while queue:
            plan = queue.pop(0)
            command = plan.request.command
            studies.setdefault(command, find_study(command))
            progress = RunProgress(quiet=quiet, verbose=verbose and studies[command].tells_passes)
            with Tracking(trackers, folder=store.path, settings=plan.request.to_mapping()) as tracking:
                result = _run(plan, store, progress, chosen, fresh=fresh, under_way=bool(found), told=tracking.tell)
            _say(f"{_outcome(result)}; records in {store.path}", quiet)
            found |= {(record.cell, record.metric): (command, record) for record in result.records}
            queue[:0] = _planned(functools.partial(plan_after, plan, store), quiet)
    records = [record for _, record in found.values()]
    if json_path is not None:
        write_json([record.to_json() for record in records], json_path)
    _show_examples(plans, store, num_shown, file=sys.stderr if json_path == "-" else sys.stdout)
    if json_path != "-" and not quiet:
        _show_summaries(studies, {spec.command for spec in specs}, [*found.values()])
        for line in dict.fromkeys(study.report_command for study in studies.values()):
            show("")
            where = "" if store.is_local else " --out report.md"
            show(f"For a report: {line} {shlex.quote(store.path)}{where}")
    failed = len({record.cell for record in records if record.status == "failed"})
    if failed:
        say(f"{count(failed, 'cell')} failed; the records say why")
        return SOME_FAILED
    return 0


def default_out(spec: StudyRequest) -> str:
    """`runs/<date>-<short digest>`: the same request on the same day finds its folder again."""
    return f"runs/{datetime.date.today().isoformat()}-{spec.digest()}"


def check_folder(specs: Sequence[StudyRequest], studies: Mapping[str, Study], store: Store) -> None:
    """Raises LongEvalError for a damaged spec.yaml, for requests that the folder can't hold, and if it isn't usable."""
    from longeval.store.plan import stored_requests

    stored_requests(store)
    store.plan()  # a damaged one is told before anything is computed
    for name, study in studies.items():
        study.check([spec for spec in specs if spec.command == name], store)
    store.check_usable()


def _planned(make: Callable[[RunProgress], list[Plan]], quiet: bool) -> list[Plan]:
    """The plans that `make` makes; tells the progress of it, then their notes."""
    from longeval.cli.progress import RunProgress

    with RunProgress(quiet=quiet) as progress:
        progress.preparing("loading libraries")
        plans = make(progress)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        _say(note, quiet)
    return plans


def _run(
    plan: Plan,
    store: Store,
    progress: RunProgress,
    executor: Executes,
    *,
    fresh: bool,
    under_way: bool,
    told: Callable[[Outcome], None],
) -> RunResult:
    """Runs a plan; on Ctrl-C says how much of it is stored."""
    from longeval.run.engine import run

    with progress:
        try:
            return run(plan, store, progress, executor=executor, fresh=fresh, under_way=under_way, told=told)
        except KeyboardInterrupt:
            parts = [count(progress.num_finished, "cell")] if progress.num_finished else []
            parts += ["a checkpoint"] if store.has_checkpoints() else []
            stored = f"{' and '.join(parts)} stored in {store.path}; the same command goes on from there"
            progress.note(stored if parts else "nothing is stored yet")
            raise


def _outcome(result: RunResult) -> str:
    """`3 cells computed, 1 skipped, 2 stored already`."""
    parts = [f"{count(result.computed - result.taken - result.skipped, 'cell')} computed"]
    parts += [f"{result.taken} taken from other stored cells"] if result.taken else []
    parts += [f"{result.skipped} skipped"] if result.skipped else []
    parts += [f"{result.reused} stored already"] if result.reused else []
    return ", ".join(parts)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        say(text)


def _show_plans(plans: Sequence[Plan], store: Store, fresh: bool, quiet: bool) -> None:
    """Prints what runs would do."""
    from longeval.run.host import Host, Silent, backend_of
    from longeval.run.reuse import find_reusable

    screen = _wide_console()
    screen.print("Dry run: nothing is computed.\n")
    for number, plan in enumerate(plans):
        if number:
            screen.print()
        stored = {} if fresh else plan.stored(store)
        left = plan.left(stored)
        reused, notes = find_reusable(plan, left, store, fresh=fresh)
        for note in notes:
            _say(note, quiet)
        host = Host(store=store, progress=Silent(), load=backend_of(plan.request), fresh=fresh, reused=reused)
        _show_overview(plan.overview(host, left, stored), screen)
        for note in plan.stored_notes(store, stored):
            _say(note, quiet)


def _num_shown(asked: str, specs: Sequence[StudyRequest]) -> int:
    """The number of `--show`; LongEvalError where a request has nothing to show."""
    from longeval.values import parse_count

    for spec in specs:
        if not spec.can_show:
            raise LongEvalError(f"--show {asked}: would be ignored, {spec.command} has no prompts", "Leave it out.")
    return parse_count(asked, flag="--show")


def _show_examples(plans: Sequence[Plan], store: Store, number: int | None, file: TextIO) -> None:
    """Prints the first inputs of each plan, with what is stored of their answers."""
    if number is None:
        return
    for plan in plans:
        for examples in plan.examples(number, store):
            print(file=file)
            for line in examples.lines():
                print(line, file=file)


def _show_overview(overview: Overview, screen: Console) -> None:
    """Prints one plan: the table of its cells, and what they cost."""
    from rich.table import Table

    table = Table(title=overview.title, title_justify="left")
    for column in overview.columns:
        table.add_column(column, justify="left" if column in overview.words else "right")
    for section in overview.sections:
        table.add_section()
        if section.title is not None:
            table.add_row(f"[bold]{as_markup(section.title)}[/bold]")
        for row in section.rows:
            table.add_row(*map(as_markup, row))
    screen.print(table)
    screen.print()
    for line in overview.costs:
        screen.print(line, highlight=False, markup=False)


def _show_summaries(studies: Mapping[str, Study], asked: Container[str], found: Sequence[tuple[str, Record]]) -> None:
    """Prints the tables of each study, unless it was not asked for and another one shows its records."""
    shown = {name for study in studies.values() for name in study.sums_up if name not in asked}
    screen = _wide_console()
    for name, study in studies.items():
        if name not in shown:
            records = [record for command, record in found if command in (name, *study.sums_up)]
            for table in study.summary(records, screen.width):
                screen.print()
                screen.print(table)


def _wide_console() -> Console:
    """Stdout; wide enough for every column where no terminal sets the width."""
    return console() if sys.stdout.isatty() else console(width=_WIDTH)


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A run folder, or a request file such as its spec.yaml.")],
    pe: Annotated[str | None, typer.Option(help="Only these of its methods; comma list.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder.", show_default="the file's own folder if that is one, else runs/<date>-<digest>"
        ),
    ] = None,
    json_path: Json = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code from models' repositories and the request's task files."),
    ] = False,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    executor: Executor = "local",
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    track: Track = None,
    examples: Show = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Repeat a written-down request; only what is missing is computed.

    [bold]Examples[/bold]

    longeval run runs/demo

    longeval run runs/demo/spec.yaml --pe yarn --out runs/again

    longeval run request.yaml --dry-run
    """
    from longeval.bounded_yaml import read_text
    from longeval.request import requests_from_yaml
    from longeval.run.study import request_from_mapping
    from longeval.values import split_list

    if os.path.isdir(file) or ("://" in file and not file.endswith((".yaml", ".yml"))):
        file = os.path.join(file, "spec.yaml")
    try:
        text = _text_elsewhere(file) if "://" in file else read_text(file)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "not a text file, or far too large"
        raise LongEvalError(f"{file}: can't be read ({why})", "Give a request file, such as RUN/spec.yaml.") from None
    requests = requests_from_yaml(text, origin=file)
    if any("command" not in request and ("task" in request or "group" in request) for request in requests):
        raise LongEvalError(f"{file}: defines a task, and is no request", f"Use longeval tasks --tasks {file}.")
    specs = [request_from_mapping(request, origin=file) for request in requests]
    specs = _trusted(specs, trust_remote_code, file)
    if pe is not None:
        specs = _only(specs, split_list(pe, flag="--pe"), file)
    return carry_out(
        specs,
        out=out or _own_folder(file),
        json_path=json_path,
        dry_run=dry_run,
        fresh=fresh,
        quiet=quiet,
        verbose=verbose,
        executor=executor,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        track=track,
        examples=examples,
    )


def _trusted(specs: Sequence[StudyRequest], flag: bool, file: str) -> list[StudyRequest]:
    """The requests with the user's word that code may run: a file alone can't say so."""
    from longeval.request import ModelRequest

    own = [spec for spec in specs if isinstance(spec, ModelRequest)]
    if any(spec.trust_remote_code for spec in own) and not flag:
        raise LongEvalError(
            f"{file}: trust_remote_code: true: a file alone can't let code of models or of task files run",
            f"If you trust that code: longeval run {file} --trust-remote-code.",
        )
    if flag and not own:
        raise LongEvalError(
            f"--trust-remote-code: would be ignored, no request of {file} runs such code", "Leave it out."
        )
    return [spec.replaced(trust_remote_code=flag) if isinstance(spec, ModelRequest) else spec for spec in specs]


def _only(specs: Sequence[StudyRequest], methods: tuple[str, ...], file: str) -> list[StudyRequest]:
    """The requests with only some of their methods; a factor that followed from the lengths stays the same."""
    from longeval.rope.build import listed_names, parse_method_name, with_parameters

    asked = {name for spec in specs for name in listed_names(dict(spec).get("pe", ()))}
    missing = [name for name in methods if name not in asked]
    if missing:
        raise LongEvalError(f"--pe {missing[0]}: not in {file}", f"It has {', '.join(sorted(asked))}.")
    chosen = []
    for spec in specs:
        settings = dict(spec)
        kept = tuple(name for name in listed_names(settings.get("pe", ())) if name in methods)
        changes: dict[str, object] = {"pe": kept}
        if "pe_args" in settings:
            bases = with_parameters(map(parse_method_name, kept))
            changes["pe_args"] = {base: values for base, values in settings["pe_args"].items() if base in bases}
        if kept:
            chosen.append(spec.replaced(**changes))
    return chosen


def _text_elsewhere(file: str) -> str:
    """A request file at an fsspec URL."""
    from longeval.store.folder import Store

    folder, name = os.path.split(file)
    text = Store(folder).read_text(name)
    if text is None:
        raise FileNotFoundError(2, "No such file", file)
    return text


def _own_folder(file: str) -> str | None:
    """The folder of a run folder's spec.yaml; one whose first cell is under way has no cells yet."""
    from longeval.store.folder import Store

    folder, name = os.path.split(file)
    if name == "spec.yaml" and any(map(Store(folder or ".").has, ("plan.json", "cells", "checkpoints", "weights"))):
        return folder or "."
    return None
