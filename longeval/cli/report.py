"""`longeval report`: from run folders to a report. Reads only what runs stored, never a model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from longeval.cli.terminal import say, write_text
from longeval.errors import LongEvalError, reason
from longeval.printable import printable

if TYPE_CHECKING:
    from longeval.report.build import StudyReport, WrittenReport

RecordsFile = Annotated[
    str | None,
    typer.Option(metavar="PATH|-", help="Also write the array of records to this file, or to standard output."),
]
Title = Annotated[str | None, typer.Option(help="The report's heading.")]
PrefaceFile = Annotated[str | None, typer.Option(metavar="FILE", help="Markdown of your own to put under the heading.")]
QuietFiles = Annotated[bool, typer.Option("--quiet", "-q", help="Don't say which files were written.")]
"""Options of every command that makes a report."""


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
    json: RecordsFile = None,
    title: Title = None,
    preface: PrefaceFile = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add published numbers on the same tasks and data, with what differs.")
    ] = False,
    quiet: QuietFiles = False,
) -> None:
    """Make tables, curves and intervals from run folders, ready for a paper.

    Several folders give one report; a cell that is in several of them counts once.

    [bold]Examples[/bold]

    longeval report runs/demo

    longeval report runs/demo runs/yarn --out reports/demo.md

    longeval report runs/demo --title "YaRN on our model" --preface notes.md --json records.json
    """
    from longeval.report.build import write_report
    from longeval.report.document import Preface

    given = {"--out": out, "--title": title, "--preface": preface, "--json": json}
    flags = ["--published"] * published + given_flags(given)
    written = write_report(
        runs,
        studies=study_reports(),
        out=out,
        json_path=None if json == "-" else json,
        command=shlex.join(["longeval", "report", *runs, *flags]),
        published=published,
        preface=Preface(title=title or "", text="" if preface is None else read_preface(preface)),
    )
    tell(written, json, quiet=quiet)


def study_reports() -> tuple[StudyReport, ...]:
    """What each study says of its cells in `longeval report`, without those that have a command of their own."""
    from longeval.run.study import find_study, study_names

    found = map(find_study, study_names())
    return tuple(study.report() for study in found if study.report_command == "longeval report")


def given_flags(values: Mapping[str, str | None]) -> list[str]:
    """Flags with their values, as the report's own command line names them, without those that weren't given."""
    return [part for flag, value in values.items() if value is not None for part in (flag, value)]


def tell(written: WrittenReport, json: str | None, *, quiet: bool) -> None:
    """Notes, the records where standard output is to have them, and the files that were written."""
    from longeval.report.formats.json import records_json

    for note in written.notes:
        say(note)
    if json == "-":
        write_text(records_json(written.records))
    if not quiet:
        for path in written.files:
            print(printable(path), file=sys.stderr if json == "-" else sys.stdout)


def read_preface(path: str) -> str:
    """The text of a `--preface` file; LongEvalError if it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise LongEvalError(f"--preface {path}: can't be read ({reason(error)})", "Give a Markdown file.") from None
