"""`longeval status`: what is done in a run folder, what runs now and where, what failed and what is left."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli.terminal import check_json_path, console, say, write_json
from longeval.errors import LongEvalError
from longeval.printable import as_markup
from longeval.values import format_duration, format_length

if TYPE_CHECKING:
    from rich.console import RenderableType

    from longeval.run.leases import Runner
    from longeval.run.status import FolderStatus
    from longeval.store.plan import PlannedCell

REFRESH_S = 3.0
"""Seconds between two looks with --watch, at least; a folder that takes long to read is read more seldom."""

_LOOK_S = 0.5
"""Seconds between two looks whether a run has begun."""

_MOST = 5
"""Most names in a list; further ones are counted."""
_MOST_ROWS = 20
"""Most rows of running cells and of reasons."""
_SILENT_S = 30.0
"""A process that has said nothing for so long stands still, or its machine is overloaded."""
_WIDTH = 160
"""Columns where no terminal sets the width."""


def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, here or at an address such as s3://….")],
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show it anew every few seconds until nothing runs in it any more, from when it is there.",
        ),
    ] = False,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of tables; - is stdout.")
    ] = None,
) -> None:
    """What is done in a run folder, what runs now, what failed and what is left.

    It only reads the folder, so it works from any machine that reaches it, while commands compute in it.

    [bold]Examples[/bold]

    longeval status runs/demo

    longeval status s3://bucket/demo --watch

    longeval status runs/demo --json - | jq .cells
    """
    from longeval.run.status import read_status

    if watch and json_path is not None:
        raise LongEvalError("--watch: would be ignored, --json writes the state once", "Leave one of the two out.")
    check_json_path(json_path)
    if json_path is not None:
        write_json(read_status(run).to_json(), json_path)
    elif watch:
        _watch(run)
    else:
        _screen().print(_shown(read_status(run)))


def wait_for_run(path: str) -> None:
    """Waits until a run has begun in a folder where nothing is yet, and says so; returns at once where something is."""
    from longeval.run.status import has_begun
    from longeval.store.folder import Store

    store = Store(path)
    if not store.is_empty():
        return
    say(f"waiting for a run to begin in {path}, where nothing is yet; Ctrl-C ends this")
    while not has_begun(store):
        time.sleep(_LOOK_S)


def _watch(run: str) -> None:
    """Shows the state of a folder until nothing runs in it."""
    from rich.live import Live

    from longeval.run.status import read_status

    wait_for_run(run)
    with Live(console=_screen(), auto_refresh=False) as live:
        while True:
            started = time.monotonic()
            found = read_status(run)
            live.update(_shown(found), refresh=True)
            if not found.alive:
                return
            time.sleep(max(REFRESH_S, 5 * (time.monotonic() - started)))


def _screen() -> Any:
    return console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def _shown(found: FolderStatus) -> RenderableType:
    """The tables of a folder."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text.from_markup(f"[bold]{as_markup(found.path)}[/bold]: {sum_text(found)}")]
    for lines in (_requests(found), _running(found), _processes(found), _failures(found)):
        if lines:
            parts += [Text(), *lines]
    if not found.has_plan:
        parts += [
            Text(),
            Text("There is no plan.json here, so what is left is not known. A run writes it with its first cell."),
        ]
    if found.damaged:
        parts += [Text(), Text(f"Damaged: {_listed(found.damaged)}. The next run computes them again.")]
    return Group(*parts)


def sum_text(found: FolderStatus) -> str:
    """`12 of 20 cells done, 2 running, 6 left`."""
    from longeval.run.overview import count

    total = sum(found.states.values())
    others = [f"{number} {state}" for state, number in found.states.items() if number and state != "done"]
    done = (
        f"{found.states['done']} of {count(total, 'cell')}" if found.has_plan else count(found.states["done"], "cell")
    )
    return ", ".join([f"{done} done", *others])


def _table(*columns: str) -> Any:
    """A table; columns whose names begin with `>` hold numbers."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if column != name else "left", no_wrap=column != name, overflow="fold")
    return table


def _requests(found: FolderStatus) -> list[RenderableType]:
    """A row for each request."""
    from longeval.run.status import STATES

    table = _table("request", "", *(f">{state}" for state in STATES))
    for one in found.requests:
        numbers = [str(number) if number else "–" for number in one.states.values()]
        command = one.command or ("in no request" if found.has_plan else "")
        table.add_row(*map(as_markup, (command, _asked(one.cells), *numbers)))
    return [table] if table.row_count else []


def _running(found: FolderStatus) -> list[RenderableType]:
    """A row for each method that runs now; cells that share passes are one."""
    table = _table("running now", "lengths", "by", ">for")
    rows: dict[tuple[str, ...], list[int]] = {}
    for one in found.running:
        place = (_name(one.cell, with_length=False), _where(one.runner), _age(one.since, found.date))
        rows.setdefault(place, []).append(one.cell.length)
    for (name, where, age), lengths in list(rows.items())[:_MOST_ROWS]:
        table.add_row(*map(as_markup, (name, _lengths(lengths), where, age)))
    if len(rows) > _MOST_ROWS:
        table.add_row(f"and {len(rows) - _MOST_ROWS} more")
    return [table] if table.row_count else []


def _processes(found: FolderStatus) -> list[RenderableType]:
    """Two lines for each process that computes or has died: how far it is, and its command."""
    from rich.padding import Padding
    from rich.text import Text

    from longeval.run.overview import count

    lines: list[RenderableType] = [Text("processes", style="bold")] if found.alive or found.dead else []
    for runner in (*found.alive, *found.dead):
        finished, silent = (
            f"{count(runner.finished, 'cell')} finished",
            f"no sign of life for {_short(runner.silent_s)}",
        )
        if runner in found.dead:
            told = ["dead", silent, finished]
        else:
            told = [
                f"for {_age(runner.since, found.date)}",
                count(runner.workers, "worker"),
                finished,
                left_text(runner),
            ]
            told += [silent] if runner.silent_s > _SILENT_S else []
        style = "red" if runner in found.dead else ""
        lines.append(Text.from_markup(as_markup(f"{_where(runner)}: {', '.join(told)}"), style=style))
        lines.append(Padding(Text.from_markup(as_markup(runner.command), style="dim"), (0, 0, 0, 4)))
    return lines


def _failures(found: FolderStatus) -> list[RenderableType]:
    """A row for each reason for which cells failed."""
    table = _table(">failed", "reason", "cells")
    for one in found.failures[:_MOST_ROWS]:
        names = _listed([_name(cell) for cell in one.cells])
        table.add_row(*map(as_markup, (str(len(one.cells)), one.error, names)))
    if len(found.failures) > _MOST_ROWS:
        more = found.failures[_MOST_ROWS:]
        table.add_row(str(sum(len(one.cells) for one in more)), f"and {len(more)} more reasons")
    return [table] if table.row_count else []


def left_text(runner: Runner) -> str:
    """`2 min 05 s left (said 4 s ago)`."""
    if runner.seconds_left is None:
        return "time left not known yet"
    return f"{format_duration(runner.seconds_left)} left (said {_short(runner.silent_s)} ago)"


def _where(runner: Runner) -> str:
    return f"{runner.host}, {runner.pid}"


def _asked(cells: Sequence[PlannedCell]) -> str:
    """What cells ask for, in a few words: models, methods, lengths, data or tasks."""
    from longeval.run.overview import count

    def each(name: str) -> list[Any]:
        return list(dict.fromkeys(value for cell in cells if (value := getattr(cell, name)) is not None))

    seeds = {cell.params["seed"] for cell in cells if "seed" in cell.params}
    parts = [_listed(each("model")), _listed(each("pe")), _lengths(each("length")), _listed(each("data"))]
    parts += [_listed(each("task")), count(len(seeds), "seed") if len(seeds) > 1 else ""]
    return " · ".join(filter(None, parts))


def _name(cell: PlannedCell, *, with_length: bool = True) -> str:
    """`smollm2-135m-q4 yarn 1k on stdlib`."""
    length = f" {format_length(cell.length)}" if with_length else ""
    on = f" on {cell.task or cell.data}" if cell.task or cell.data else ""
    apart = [f"{name} {value}" for name, value in cell.params.items() if name in ("regime", "augment", "seed")]
    return f"{cell.model} {cell.pe}{length}{on}" + (f" ({', '.join(apart)})" if apart else "")


def _listed(values: Sequence[object]) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(map(str, values[:_MOST]))
    return shown if len(values) <= _MOST else f"{shown} and {len(values) - _MOST} more"


def _lengths(lengths: Sequence[int]) -> str:
    found = sorted(set(lengths))
    if len(found) <= _MOST:
        return ", ".join(map(format_length, found))
    return f"{format_length(found[0])} to {format_length(found[-1])} ({len(found)} lengths)"


def _age(since: str, now: str) -> str:
    """The time since a date; the clocks of two machines may differ."""
    ages = datetime.datetime.fromisoformat(now) - datetime.datetime.fromisoformat(since)
    return _short(max(0.0, ages.total_seconds()))


def _short(seconds: float) -> str:
    """`42 s`, `3 min`, `2 h 10 min`, `3 days`."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 60:.0f} min" if 60 <= seconds < 3600 else format_duration(seconds)
