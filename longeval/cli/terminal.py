"""How commands talk: messages on stderr, results on stdout, nothing that comes from data can steer the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from longeval.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """One message on stderr, after the program's name."""
    print(f"longeval: {printable(text)}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """One line of results on stdout."""
    print(printable(text, keep="\t"))


def reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as after `| head`."""
    return getattr(sys.stdout, "reader_gone", False)


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A rich console for tables and progress.

    Args:
        stderr: Write there instead of stdout.
        options: As for `rich.console.Console`.
    """
    from longeval.cli.console import PrintableConsole

    return PrintableConsole(stderr=stderr, **options)
