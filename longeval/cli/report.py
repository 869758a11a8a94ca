"""`longeval report`: from run folders to a report. Reads only what runs stored, never a model."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from longeval.errors import LongEvalError


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Run folders, as `longeval ppl` and `longeval tasks` wrote them.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="The Markdown file; CSV, JSON, LaTeX and figures go beside it. Default: report.md in the first RUN."
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Also write the array of records to this file, or to standard output."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The report's heading.")] = None,
    preface: Annotated[
        str | None, typer.Option(metavar="FILE", help="Markdown of your own to put under the heading.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add published numbers on the same tasks and data, with what differs.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Don't say which files were written.")] = False,
) -> None:
    """Make tables, curves and intervals from run folders, ready for a paper.

    Several folders give one report; a cell that is in several of them counts once.

    [bold]Examples[/bold]

    longeval report runs/demo

    longeval report runs/demo runs/yarn --out reports/demo.md

    longeval report runs/demo --title "YaRN on our model" --preface notes.md --json records.json
    """
    from longeval.report.flat import records_json
    from longeval.report.markdown import Preface
    from longeval.report.write import write_report

    given = {"--out": out, "--title": title, "--preface": preface, "--json": json}
    flags = ["--published"] * published
    flags += [part for flag, value in given.items() if value is not None for part in (flag, value)]
    written = write_report(
        runs,
        out=out,
        json_path=None if json == "-" else json,
        command=shlex.join(["longeval", "report", *runs, *flags]),
        published=published,
        preface=Preface(title or "", "" if preface is None else read_preface(preface)),
    )
    for note in written.notes:
        typer.echo(f"longeval: {note}", err=True)
    if json == "-":
        sys.stdout.write(records_json(written.records))
    if not quiet:
        for path in written.files:
            typer.echo(path, err=json == "-")


def read_preface(path: str) -> str:
    """The text of a `--preface` file; LongEvalError if it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise LongEvalError(f"--preface {path}: can't be read ({reason})", "Give a Markdown file.") from None
