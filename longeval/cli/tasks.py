"""`longeval tasks`: downstream long-text tasks by method and length; --list shows tasks without loading any of them."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any

import typer

from longeval.cli.command import Given, parameter, refuse_beside, study_command
from longeval.cli.terminal import check_json_path, console, show, write_json
from longeval.errors import LongEvalError
from longeval.printable import as_markup, printable
from longeval.studies.tasks.request import TasksRequest

if TYPE_CHECKING:
    from longeval.studies.tasks.definitions.entries import TaskEntry
    from longeval.studies.tasks.definitions.index import Index


def _list_instead(asked: Given, others: Given) -> int | None:
    """Shows the list if it is asked for, and refuses what would be ignored beside it."""
    if not others["list_"]:
        if "tasks" not in asked:
            raise LongEvalError(
                "--tasks: missing", "Give it, such as --tasks passkey; --list shows what tasks there are."
            )
        return None
    refuse_beside("--list", others["context"], "list_", "tasks", "include", "json_path")
    return _list_tasks(others["json_path"], asked.get("tasks"), asked.get("include", []))


tasks = study_command(
    TasksRequest,
    more=[
        parameter("list_", bool, typer.Option("--list", help="Show the tasks and groups there are."), False),
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
    ],
    instead=_list_instead,
)


def _list_tasks(json_path: str | None, names: str | None, include: Sequence[str]) -> int:
    """Shows tasks and groups: as a table those that are about long text, as JSON all.

    Args:
        json_path: Where the JSON goes; None: a table on stdout.
        names: Only these; a comma list, with `*` and `?`. A group shows its members too.
        include: Folders with more tasks.
    """
    from longeval.studies.tasks.definitions.index import LONG_CONTEXT, Index
    from longeval.values import split_paths

    check_json_path(json_path)
    index = Index(include)
    chosen = index.listed() if names is None else _matching(index, split_paths(names, flag="--tasks"))
    if json_path is not None:
        write_json([_plain(entry) for entry in chosen], json_path)
    elif names is not None:
        _show(chosen)
    else:
        shown = [entry for entry in chosen if entry.source != "lm_eval" or entry.name in LONG_CONTEXT]
        _show(shown)
        show("")
        show(
            f"And {len(chosen) - len(shown):,} tasks and groups of lm-eval, all by their own names: "
            "longeval tasks --list --tasks 'arc*' finds some, --list --json - shows all."
        )
    return 0


def _matching(index: Index, patterns: Sequence[str]) -> list[TaskEntry]:
    """Entries whose names match, each group followed by those of its members that have a name of their own."""
    found: dict[str, TaskEntry] = {}
    for pattern in patterns:
        for entry in index.matching(pattern):
            members = (index.find(index.scoped(entry, member)) for member in entry.members)
            for each in (entry, *members):
                if each is not None and each.within is None:
                    found.setdefault(each.name, each)
    return list(found.values())


def _plain(entry: TaskEntry) -> dict[str, Any]:
    """An entry as JSON; the first four keys are the contract."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "source": entry.source,
        "needs": entry.needs,
        "description": entry.description,
        "members": list(entry.members),
    }


def _show(entries: Sequence[TaskEntry]) -> None:
    """Two columns on a terminal, however narrow, by source; tab-separated columns for other programs."""
    from rich.table import Table

    screen = console()
    if not screen.is_terminal:
        show("\t".join(("name", "kind", "source", "needs", "description")))
        for entry in entries:
            columns = (entry.name, entry.kind, entry.source, entry.needs, entry.description)
            show("\t".join(printable(column) for column in columns))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold", max_width=screen.width // 2)
    table.add_column(overflow="fold", ratio=1)
    source = None
    for entry in entries:
        if entry.source != source:
            if source is not None:
                table.add_row()
            table.add_row(f"[bold]{as_markup(entry.source)}[/bold]")
            source = entry.source
        table.add_row(
            f"  {as_markup(entry.name)}", as_markup(_said(entry)), style="bold" if entry.kind == "group" else None
        )
    screen.print(table)


def _said(entry: TaskEntry) -> str:
    """What an entry is and needs, in words."""
    from longeval.studies.tasks.definitions.needs import NOTHING

    kind = "group: " if entry.kind == "group" else ""
    refused = entry.needs.startswith("not run:")
    needs = "" if entry.needs == NOTHING else entry.needs if refused else f"needs {entry.needs}"
    return kind + "; ".join(filter(None, (entry.description, needs)))
