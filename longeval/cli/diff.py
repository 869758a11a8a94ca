"""`longeval diff`: what differs between two runs. Reads only what they stored, never a model."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from longeval.cli.terminal import check_json_path, check_writable, console, say, show, write_json, write_output
from longeval.errors import LongEvalError


def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run folder to compare with it.")],
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of tables; - is stdout.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the tables as Markdown; the name ends in .md.")
    ] = None,
) -> None:
    """Compare two runs: their settings, and the values of the same cells on the same tokens or samples.

    Cells are the same where method, length, data or task, and protocol are.
    Everything else may differ: another dtype, backend, version, seed, model.

    [bold]Examples[/bold]

    longeval diff runs/monday runs/tuesday

    longeval diff runs/float32 s3://bucket/runs/bfloat16 --json -

    longeval diff runs/float32 runs/bfloat16 --out reports/bfloat16.md
    """
    check_json_path(json_path)
    if out is not None:
        if not out.endswith(".md"):
            raise LongEvalError(f"--out {out}: must end in .md", "The tables are written as Markdown.")
        check_writable("--out", out)
    from longeval.report.diff import counts_text, diff_document, diff_runs, settings_table, value_tables
    from longeval.report.document import without_style
    from longeval.report.formats.terminal import terminal_table

    found = diff_runs(run_a, run_b)
    for note in found.notes:
        say(note)
    if out is not None:
        from longeval.report.formats.markdown import markdown_report

        command = shlex.join(["longeval", "diff", run_a, run_b, "--out", out])
        write_output("--out", out, markdown_report(diff_document(found, command)).encode())
    if json_path is not None:
        write_json(found.to_json(), json_path)
        return
    show(f"A: {run_a}")
    show(f"B: {run_b}")
    screen = console()
    tables = [settings_table(found)] if found.settings else []
    if not tables:
        show("No setting differs.")
    values = list(value_tables(found))
    for table in (*tables, *values):
        show("")
        screen.print(terminal_table(table))
    show("")
    captions = (without_style(table.caption).removeprefix(f"{table.title}.").strip() for table in values)
    for said in dict.fromkeys(filter(None, captions)):
        show(said)
    show(counts_text(found))
