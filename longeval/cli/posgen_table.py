"""`longeval posgen table`: from run folders to PosGen's table and figures. Reads only what training stored."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from longeval.cli.report import PrefaceFile, QuietFiles, RecordsFile, Title, given_flags, read_preface, tell


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
    json: RecordsFile = None,
    title: Title = None,
    preface: PrefaceFile = None,
    quiet: QuietFiles = False,
) -> None:
    """Make the table of accuracies over seeds, beside the published one, and the figures by position and epoch.

    Regimes and other settings stand in tables of their own; cells that are missing or failed are named.

    [bold]Examples[/bold]

    longeval posgen table runs/posgen --out reports/posgen.md

    longeval posgen table runs/trained runs/swapped --out reports/posgen.md --title "PosGen in two regimes"
    """
    from longeval.report.write import write_report
    from longeval.studies.posgen.report.cells import collect_posgen
    from longeval.studies.posgen.report.sections import REPORT, introduced

    given = {"--out": out, "--title": title, "--preface": preface, "--json": json}
    written = write_report(
        runs,
        studies=(REPORT,),
        read=collect_posgen,
        name="posgen",
        out=out,
        json_path=None if json == "-" else json,
        command=shlex.join(["longeval", "posgen", "table", *runs, *given_flags(given)]),
        preface=introduced(title or "", "" if preface is None else read_preface(preface)),
    )
    tell(written, json, quiet=quiet)
