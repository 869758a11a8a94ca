"""`longeval posgen`: small models trained on short sequences and tested on longer ones, from the data to the table."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli.command import study_command
from longeval.cli.options import Quiet, option
from longeval.cli.report import PrefaceFile, QuietFiles, RecordsFile, Title, write
from longeval.cli.terminal import check_json_path, reader_is_gone, say, write_output
from longeval.errors import LongEvalError
from longeval.request.setting import OUTPUT
from longeval.studies.posgen.request import PosGenRequest

if TYPE_CHECKING:
    from longeval.studies.posgen.data import DataSetting


_BYTES_PER_TOKEN = 24
"""A token twice as a 64-bit number while it is made, and as text."""

posgen = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")
"""The sub-commands; `app.py` hangs them under `longeval posgen`."""


def _setting(name: str, **changes: Any) -> Any:
    """The option of a setting of `train`; `changes` as for `option`."""
    return option(PosGenRequest, name, **changes)


@posgen.callback(invoke_without_command=True)
def describe(context: typer.Context) -> None:
    """PosGen: can a method read positions that it was not trained on? Small models, from the data to the table.

    Models train on short sequences and are tested on longer ones, whose next
    token is equally easy everywhere (Wang et al. 2024): what they lose beyond
    the training length, they lose to position alone.

    [bold]Examples[/bold]

    longeval posgen generate --task cot --json data.jsonl

    longeval posgen train --preset smoke-test

    longeval posgen train --task recursive,cot,semi_recursive --pe none,resonance,yarn,resonance_yarn --out runs/posgen

    longeval posgen table runs/posgen --out reports/posgen.md
    """
    if context.invoked_subcommand is None:
        with contextlib.redirect_stdout(sys.stderr):  # typer prints help by itself
            context.get_help()
        raise typer.Exit(2)


@posgen.command()
def generate(
    task: Annotated[str, _setting("tasks", help="The rule: recursive, cot, semi_recursive.", show_default=False)],
    json_path: Annotated[
        str,
        typer.Option(
            "--json",
            metavar="PATH",
            help="Sequences as JSON lines; - is stdout.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    num_train: Annotated[str, _setting("num_train")] = "10000",
    num_valid: Annotated[str, _setting("num_valid")] = "1000",
    num_test: Annotated[str, _setting("num_test")] = "1000",
    length: Annotated[str, _setting("length")] = "64",
    test_length: Annotated[str, _setting("test_length")] = "256",
    modulus: Annotated[str, _setting("modulus")] = "17",
    j: Annotated[str, _setting("j")] = "1",
    k: Annotated[str, _setting("k")] = "3",
    seed: Annotated[str, typer.Option(help="Seed of the random starts.", rich_help_panel=OUTPUT)] = "0",
    quiet: Quiet = False,
) -> None:
    """The sequences of a PosGen task, as JSON lines.

    A line is {"split": "train", "tokens": [5, 4, 5, 14, …]}; splits are train,
    valid and test. The first j + k tokens are random, and no two sequences of
    any split start alike. Each token after them is a sum modulo m. It sums

    recursive: the last j + k tokens;

    cot: the first j tokens of the sequence and the last k;

    semi_recursive: the j tokens from index ⌊(l − (j+k)) / 2⌋ on and the last k,
    for the token at index l, counted from 0.

    The same seed gives the same bytes on every machine. More training sequences
    leave the other splits as they are.

    [bold]Examples[/bold]

    longeval posgen generate --task cot --json data.jsonl

    longeval posgen generate --task recursive --modulus 10 --j 2 --k 2 --num-train 100 --num-valid 10 --num-test 10 --json -

    longeval posgen generate --task semi_recursive --length 128 --test-length 1k --seed 1 --json - | head -1
    """  # noqa: E501  # an example stands on one line
    from longeval.studies.posgen.data import DataSetting, generate, json_lines
    from longeval.values import parse_count, parse_length, split_list

    names = split_list(task, flag="--task")
    if len(names) != 1:
        raise LongEvalError(
            f"--task {task}: one rule at a time", "Run it once for each, with --json files of their own."
        )
    numbers = {"modulus": modulus, "j": j, "k": k, "seed": seed}
    numbers |= {"num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    setting = DataSetting(
        task=names[0],
        length=parse_length(length, flag="--length"),
        test_length=parse_length(test_length, flag="--test-length"),
        **{
            name: parse_count(text, flag=f"--{name.replace('_', '-')}", least=2 if name == "modulus" else 0)
            for name, text in numbers.items()
        },
    )
    check_json_path(json_path)
    _check_memory(setting)
    lines = json_lines(generate(setting))
    if json_path == "-":
        for line in lines:
            print(line)
            if reader_is_gone():
                break
        return
    write_output("--json", json_path, "".join(f"{line}\n" for line in lines).encode())
    if not quiet:
        sizes = ", ".join(f"{size} {split}" for split, size in setting.sizes.items())
        say(f"{json_path}: {setting.task}, {sizes}")


posgen.command("train")(study_command(PosGenRequest))


@posgen.command()
def table(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders, or folders that hold run folders.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="posgen.md: Markdown, with CSV, JSON, LaTeX and figures beside it; posgen.html: one page with charts.",
            show_default="posgen.md in the first RUN",
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
    write(runs, "longeval posgen table", out=out, json=json, title=title, preface=preface, quiet=quiet)


def _check_memory(setting: DataSetting) -> None:
    """Sequences are all held at once; more than the machine holds are refused before the first is made."""
    import psutil

    needed, there = setting.num_tokens * _BYTES_PER_TOKEN, int(psutil.virtual_memory().total)
    if needed > there:
        raise LongEvalError(
            f"--num-train {setting.num_train}, --num-valid {setting.num_valid}, --num-test {setting.num_test}: "
            f"{setting.num_tokens:,} tokens need about {needed / 2**30:,.0f} GiB of {there / 2**30:.1f} GiB",
            "Ask for fewer or shorter sequences.",
        )
