"""`longeval posgen table`: from run folders to PosGen's table and figures. Reads only what training stored."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer


def table(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Run folders, as `longeval posgen train` wrote them.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="The Markdown file; CSV, JSON, LaTeX and figures go beside it. Default: posgen.md in the first RUN."
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Don't say which files were written.")] = False,
) -> None:
    """Make the table of accuracies over seeds, beside the published one, and the figures by position and epoch.

    Regimes and other settings stand in tables of their own; cells that are missing or failed are named.

    [bold]Examples[/bold]

    longeval posgen table runs/posgen --out reports/posgen.md

    longeval posgen table runs/trained runs/swapped --out reports/posgen.md --title "PosGen in two regimes"
    """
    from longeval.cli.report import read_preface
    from longeval.report.flat import records_json
    from longeval.report.markdown import Preface
    from longeval.report.posgen_write import write_posgen_table

    given = {"--out": out, "--title": title, "--preface": preface, "--json": json}
    flags = [part for flag, value in given.items() if value is not None for part in (flag, value)]
    written = write_posgen_table(
        runs,
        out=out,
        json_path=None if json == "-" else json,
        command=shlex.join(["longeval", "posgen", "table", *runs, *flags]),
        preface=Preface(title or "", "" if preface is None else read_preface(preface)),
    )
    for note in written.notes:
        typer.echo(f"longeval: {note}", err=True)
    if json == "-":
        sys.stdout.write(records_json(written.records))
    if not quiet:
        for path in written.files:
            typer.echo(path, err=json == "-")
