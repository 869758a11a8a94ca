"""`longeval report`: from run folders to a report. Reads only what runs stored, never a model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from longeval.cli.terminal import say, write_text
from longeval.errors import LongEvalError, reason
from longeval.printable import printable

if TYPE_CHECKING:
    from longeval.report.build import StudyReport

RecordsFile = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Records as a JSON array; - is stdout."),
]
Title = Annotated[str | None, typer.Option(help="The report's heading.")]
PrefaceFile = Annotated[str | None, typer.Option(metavar="FILE", help="Markdown of your own to put under the heading.")]
QuietFiles = Annotated[bool, typer.Option("--quiet", "-q", help="Don't say which files were written.")]
"""Options of every command that makes a report."""


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders, or folders that hold run folders.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="report.md: Markdown, with CSV, JSON, LaTeX and figures beside it; report.html: one page with charts.",
            show_default="report.md in the first RUN",
        ),
    ] = None,
    json: RecordsFile = None,
    title: Title = None,
    preface: PrefaceFile = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add published numbers on the same tasks and data, with what differs.")
    ] = False,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="A:B[,A:B…]",
            help="Rows to compare on the same tokens or samples: none:yarn, MODEL/yarn:MODEL/yarn, none@hf:none@vllm.",
            show_default="each method with its resonance form",
        ),
    ] = None,
    quiet: QuietFiles = False,
) -> None:
    """Make tables, curves and intervals from run folders, ready for a paper.

    Several folders give one report; a cell that is in several of them counts once.

    [bold]Examples[/bold]

    longeval report runs/demo

    longeval report runs --out reports/all.md

    longeval report runs/demo --out demo.html

    longeval report runs/demo --pairs none:yarn,yarn:ntk

    longeval report runs/demo runs/yarn --out reports/demo.md

    longeval report runs/demo --title "YaRN on our model" --preface notes.md --json records.json
    """
    write(
        runs,
        "longeval report",
        out=out,
        json=json,
        title=title,
        preface=preface,
        published=published,
        pairs=pairs,
        quiet=quiet,
    )


def write(
    runs: list[str],
    command: str,
    *,
    out: str | None,
    json: str | None,
    title: str | None,
    preface: str | None,
    published: bool = False,
    pairs: str | None = None,
    quiet: bool,
) -> None:
    """Writes a report, and tells its notes, its files, and its records where standard output is to have them.

    Args:
        runs: The run folders.
        command: The command, `longeval report`: it tells which studies say something.
        out: As the user gave `--out`; so are the others.
        json: `--json`.
        title: `--title`.
        preface: `--preface`.
        published: `--published`.
        pairs: `--pairs`.
        quiet: `--quiet`.
    """
    from longeval.report.build import write_report
    from longeval.report.document import Preface
    from longeval.report.formats.json import records_json
    from longeval.values import split_list

    given = {"--out": out, "--title": title, "--preface": preface, "--json": json, "--pairs": pairs}
    flags = ["--published"] if published else []
    flags += [part for flag, value in given.items() if value is not None for part in (flag, value)]
    written = write_report(
        runs,
        studies=study_reports(command),
        out=out,
        json_path=None if json == "-" else json,
        command=shlex.join([*command.split(), *runs, *flags]),
        published=published,
        pairs=() if pairs is None else split_list(pairs, flag="--pairs"),
        preface=Preface(title=title or "", text="" if preface is None else read_preface(preface)),
    )
    for note in written.notes:
        say(note)
    if json == "-":
        write_text(records_json(written.records))
    if not quiet:
        for path in written.files:
            print(printable(path), file=sys.stderr if json == "-" else sys.stdout)


def study_reports(command: str = "longeval report") -> tuple[StudyReport, ...]:
    """What each study says of its cells in the report that a command makes."""
    from longeval.run.study import find_study, study_names

    found = map(find_study, study_names())
    return tuple(study.report() for study in found if study.report_command == command)


def report_command_of(runs: Sequence[str]) -> str:
    """The command that reports the cells of run folders: `longeval report` if it has any, else another one."""
    from longeval.report.collect import LONGEVAL_REPORT, collect, report_command

    commands = {report_command(cell.records[0]) for cell in collect(runs, None).cells}
    return LONGEVAL_REPORT if LONGEVAL_REPORT in commands else min(commands)


def read_preface(path: str) -> str:
    """The text of a `--preface` file; LongEvalError if it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise LongEvalError(f"--preface {path}: can't be read ({reason(error)})", "Give a Markdown file.") from None
