"""`longeval doctor`: what works on this machine, and how to mend what doesn't."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.doctor import Check

_STYLES = {"ok": "green", "warn": "yellow", "missing": "bold red"}


def doctor(
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of lines; - is stdout.")
    ] = None,
) -> None:
    """What works on this machine, and how to mend what doesn't.

    Looks at Python, torch, processors, dtypes (each is tried and timed), attention, vLLM, the model hub, the cache and
    local data. Downloads nothing. The exit status is 0 also when optional parts are missing.

    [bold]Examples[/bold]

    longeval doctor

    longeval doctor --json - | jq '.[] | select(.status != "ok")'
    """
    import dataclasses

    from longeval.cli.json_output import check_json_path, write_json
    from longeval.doctor import examine

    if json_path is not None:
        check_json_path(json_path)
        write_json([dataclasses.asdict(check) for check in examine()], json_path)
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    counts = {"ok": 0, "warn": 0, "missing": 0}
    for check in examine():
        counts[check.status] += 1
        _show(console, check)
    console.print(f"{counts['ok']} ok, {counts['warn']} to know, {counts['missing']} missing", style="bold")


def _show(console: Console, check: Check) -> None:
    """One line, and a second one with the remedy."""
    from rich.text import Text

    line = Text.assemble((f"{check.status:<8}", _STYLES[check.status]), f"{check.name:<15}", check.detail)
    console.print(line)
    if check.remedy:
        console.print(Text(f"{'':<8}{'':<15}→ {check.remedy}", style="dim"))
