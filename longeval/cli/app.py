"""The `longeval` program: its commands, and the one place where errors become messages and exit statuses.

0 all done; 1 a bug or anything unforeseen (traceback); 2 the request was wrong (one message, nothing computed);
3 some cells failed (their records say why); 130 Ctrl-C (finished cells are stored).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO

import typer

from longeval.cli import doctor, export, models, posgen, ppl, report, rope, serve, tasks
from longeval.cli import run as run_command
from longeval.errors import LongEvalError

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

app = typer.Typer(
    name="longeval",
    help="How well does a RoPE language model work once its context is stretched?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("ppl")(ppl.ppl)
app.command("tasks")(tasks.tasks)
app.add_typer(posgen.posgen, name="posgen")
app.command("run")(run_command.run)
app.command("serve")(serve.serve)
app.command("report")(report.report)
app.command("rope")(rope.rope)
app.command("export")(export.export)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """Runs one command line and returns its exit status; messages go to stderr."""
    logger, messages = logging.getLogger("longeval"), _Stderr()
    messages.setFormatter(logging.Formatter("longeval: %(message)s"))
    logger.setLevel(logging.INFO)
    logger.addHandler(messages)
    try:
        return _run(arguments)
    finally:
        logger.removeHandler(messages)


class _Stderr(logging.StreamHandler[TextIO]):
    """Log lines on what is stderr when they are written: under a live progress line, that puts them above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.StreamHandler`."""
        self.stream = sys.stderr
        super().emit(record)


def _run(arguments: list[str]) -> int:
    """A command line's exit status, its errors turned into messages."""
    if not arguments:
        with contextlib.redirect_stdout(sys.stderr):
            app(args=["--help"], prog_name="longeval", standalone_mode=False)
        return 2
    try:
        status = app(args=arguments, prog_name="longeval", standalone_mode=False)
    except LongEvalError as error:
        print(f"longeval: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:
        # typer carries a click of its own: its errors are not those of the package click.
        print(f"longeval: {error.format_message().rstrip('.')}. Try --help.", file=sys.stderr)
        return 2
    except typer.Abort as abort:
        if isinstance(abort.__context__, EOFError):  # typer takes any for Ctrl-D at a prompt, and there are none
            raise abort.__context__ from None
        status = INTERRUPTED
    if status == INTERRUPTED:  # typer's answer to Ctrl-C
        print("longeval: interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0
