"""`longeval tasks`: downstream long-text tasks by method and length, and the list of what tasks there are."""

from __future__ import annotations

import typer

from longeval.cli.command import Given, parameter, study_command
from longeval.cli.task_list import list_tasks
from longeval.errors import LongEvalError
from longeval.request import TasksRequest


def _list_instead(asked: Given, others: Given) -> int | None:
    """Shows the list if it is asked for; LongEvalError if neither that nor a whole request is."""
    if others["list_"]:
        unread = {flag: asked.get(flag[2:]) for flag in ("--model", "--pe", "--lengths")} | {"--out": others["out"]}
        for flag, value in unread.items():
            if value is not None:
                raise LongEvalError(f"{flag} {value}: would be ignored beside --list", "Leave one of the two out.")
        return list_tasks(others["json_path"], asked.get("tasks"), asked.get("include", []))
    for name in ("model", "pe", "tasks", "lengths"):
        if name not in asked:
            raise LongEvalError(f"--{name}: missing", "Give it, or --list to see what tasks there are.")
    return None


tasks = study_command(
    TasksRequest,
    more=[parameter("list_", bool, typer.Option("--list", help="Show the tasks and groups there are."), False)],
    instead=_list_instead,
)
