"""The `longeval` program: its commands, and the one place where errors become messages and exit statuses.

0 all done; 1 a bug or anything unforeseen (traceback); 2 the request was wrong (one message, nothing computed);
3 some cells failed (their records say why); 130 Ctrl-C, 143 SIGTERM (finished cells are stored).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Annotated, TextIO

import typer

from longeval.cli import diff, doctor, export, models, posgen, report, rope, serve, status, tasks, view
from longeval.cli import run as run_command
from longeval.cli.command import study_command
from longeval.cli.process import INTERRUPTED, leave, leave_on_interrupt, raise_on_interrupt
from longeval.cli.terminal import say, show
from longeval.errors import LongEvalError
from longeval.printable import printable
from longeval.run.study import find_study, study_names

app = typer.Typer(
    name="longeval",
    help="How well does a RoPE language model work once its context is stretched?",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def show_version(wanted: bool) -> None:
    """Prints the version, with the commit where the program runs from a checkout, and ends."""
    if wanted:
        from longeval import __version__
        from longeval.store.records import running_commit

        commit = running_commit()
        of = "" if commit.commit is None else f" ({commit.commit[:12]}{', changed' if commit.dirty else ''})"
        show(f"longeval {__version__}{of}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """How well does a RoPE language model work once its context is stretched?"""


for name in study_names():
    if name not in ("tasks", "posgen"):  # they do more than carry out a request
        app.command(name)(study_command(find_study(name).Request))
app.command("tasks")(tasks.tasks)
app.add_typer(posgen.posgen, name="posgen")
app.command("run")(run_command.run)
app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("report")(report.report)
app.command("view")(view.view)
app.command("diff")(diff.diff)
app.command("rope")(rope.rope)
app.command("export")(export.export)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Runs the command line of this process; `longeval.__main__` comes before it."""
    try:
        raise_on_interrupt()
        status = run_app(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted")
        status = INTERRUPTED
    except LongEvalError as error:  # of the last flush
        say(str(error))
        status = error.status
    if status == INTERRUPTED:  # a second Ctrl-C while Python tidies up would be a traceback, or another status
        leave()
    leave_on_interrupt()
    sys.exit(status)


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

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Handler`; engines' logs and tracebacks have several lines."""
        return printable(super().format(record), keep="\n\t")


def _run(arguments: list[str]) -> int:
    """A command line's exit status, its errors turned into messages."""
    if not arguments and "_LONGEVAL_COMPLETE" not in os.environ:  # a shell that completes gives no arguments
        with contextlib.redirect_stdout(sys.stderr):
            app(args=["--help"], prog_name="longeval", standalone_mode=False)
        return 2
    try:
        _check_surroundings(arguments)
        status = app(args=arguments, prog_name="longeval", standalone_mode=False)
    except LongEvalError as error:
        say(str(error))
        return error.status
    except typer.TyperException as error:
        # typer carries a click of its own: its errors are not those of the package click.
        unquoted = "unexpected extra argument" in error.format_message() and "--data" in arguments
        hint = "Put a pattern in quotes: --data 'docs/*.txt'" if unquoted else "Try --help"
        say(f"{error.format_message().rstrip('.')}. {hint}.")
        return 2
    except typer.Abort as abort:
        if isinstance(abort.__context__, EOFError):  # typer takes any for Ctrl-D at a prompt, and there are none
            raise abort.__context__ from None
        status = INTERRUPTED
    if status == INTERRUPTED:  # typer's answer to Ctrl-C
        say("interrupted")
    return status if isinstance(status, int) else 0


def _check_surroundings(arguments: list[str]) -> None:
    """Raises LongEvalError for what no command can work with: arguments that are no text, a folder that is gone."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise LongEvalError(f"{argument}: not UTF-8", "Rename the file, or set a UTF-8 locale.") from error
    try:
        os.getcwd()
    except OSError as error:
        raise LongEvalError("the current folder no longer exists", "Change to another one.") from error
