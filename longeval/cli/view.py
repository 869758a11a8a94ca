"""`longeval view`: the report of run folders as a page in the browser, or of a run under way."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from typing import Annotated

import typer

from longeval.cli.report import report_command_of, study_reports
from longeval.cli.terminal import say, show
from longeval.errors import LongEvalError


def view(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders, or folders that hold run folders.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the page there.", show_default="a file in the temporary folder"),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser, only tell where the page is.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page to this machine alone, and renew it while a run goes on.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of --live.", show_default="a free one")
    ] = None,
) -> None:
    """Open the report of run folders as a page in the browser.

    It is the page that `longeval report RUN --out report.html` writes. With --live, it shows what is stored of a run
    under way, on this machine only, until Ctrl-C; a folder that isn't there yet is waited for.

    [bold]Examples[/bold]

    longeval view runs/demo

    longeval view runs/demo runs/yarn --out demo.html --no-open

    longeval view runs/demo --live
    """
    if live:
        if out is not None:
            raise LongEvalError("--out: would be ignored, --live writes no file", "Leave one of the two out.")
        from longeval.cli.live import serve_page

        serve_page(runs, port=port or 0, announce=lambda address: _open(address, no_open=no_open))
        return
    if port is not None:
        raise LongEvalError(f"--port {port}: would be ignored without --live", "Add --live, or leave --port out.")
    from longeval.report.build import write_report

    if out is not None and not out.endswith(".html"):
        raise LongEvalError(
            f"--out {out}: must end in .html", "Name the page: --out report.html; `longeval report` writes others."
        )
    command = report_command_of(runs)
    path = out or os.path.join(tempfile.mkdtemp(prefix="longeval-"), "report.html")
    try:
        written = write_report(
            runs,
            studies=study_reports(command),
            out=path,
            command=shlex.join([*command.split(), *runs, "--out", out or "report.html"]),
        )
    except BaseException:
        if out is None:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        raise
    for note in written.notes:
        say(note)
    _open(os.path.abspath(path), no_open=no_open)


def _open(place: str, *, no_open: bool) -> None:
    """Tells where the page is, and opens it."""
    import webbrowser

    show(place)
    if not no_open and not webbrowser.open(place if "://" in place else f"file://{place}"):
        say("found no browser to open it with: open the address above yourself")
