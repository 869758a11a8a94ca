"""`longeval doctor`: what works on this machine, and remedies for what doesn't."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from longeval.cli import options
from longeval.cli.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.doctor.checks import Check

PARITY = "With --parity"

_STYLES = {"ok": "green", "warn": "yellow", "missing": "bold red"}


def doctor(
    context: typer.Context,
    parity: Annotated[
        bool, typer.Option("--parity", help="Instead: does vLLM compute what transformers computes? Needs --model.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Short name, hub id, folder or .gguf file; comma list.", rich_help_panel=PARITY)
    ] = None,
    pe: Annotated[
        str | None,
        typer.Option(help="Methods; comma list.", show_default="none,yarn,resonance_yarn", rich_help_panel=PARITY),
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Tokens to compare on.", show_default="1k", rich_help_panel=PARITY)
    ] = None,
    factor: Annotated[
        str | None, typer.Option(help="s = target / native length.", show_default="4", rich_help_panel=PARITY)
    ] = None,
    native: Annotated[str | None, options.under(PARITY, options.Native)] = None,
    pe_arg: Annotated[list[str] | None, options.under(PARITY, options.PeArg)] = None,
    scale_from: Annotated[str | None, options.under(PARITY, options.ScaleFromText, show_default="plain")] = None,
    layers: Annotated[str | None, options.under(PARITY, options.LayersText, show_default="global")] = None,
    pin_length: Annotated[str | None, options.under(PARITY, options.PinLength, show_default="--length")] = None,
    vllm_arg: Annotated[list[str] | None, options.under(PARITY, options.VllmArg)] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Others than float32 hide differences as small as resonance.",
            show_default="float32",
            rich_help_panel=PARITY,
        ),
    ] = None,
    device: Annotated[str | None, options.under(PARITY, options.Device, show_default="auto")] = None,
    revision: Annotated[str | None, options.under(PARITY, options.Revision)] = None,
    trust_remote_code: Annotated[bool, options.under(PARITY, options.TrustRemoteCode)] = False,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of lines; - is stdout.")
    ] = None,
) -> int:
    """What works on this machine, and how to mend what doesn't.

    Looks at Python, torch, processors, dtypes (each is tried and timed), attention, vLLM, the model hub, the cache and
    local data. Downloads nothing. The exit status is 0 also when optional parts are missing.

    With --parity it runs a model on transformers and on vLLM instead, and compares tables, log-probabilities and a
    greedy continuation; the exit status is 3 if they differ by more than rounding.

    [bold]Examples[/bold]

    longeval doctor

    longeval doctor --json - | jq '.[] | select(.status != "ok")'

    longeval doctor --parity --model smollm2-135m-q4 --pe resonance_yarn --factor 2
    """
    import dataclasses

    from longeval.cli.json_output import check_json_path, write_json
    from longeval.cli.parity import show_parity
    from longeval.errors import LongEvalError

    if json_path is not None:
        check_json_path(json_path)
    # The flags of a comparison by name, as far as they were given.
    asked = {
        name: value
        for name, value in context.params.items()
        if name not in ("parity", "json_path") and value not in (None, False, [], ())
    }
    if parity:
        return show_parity(asked, json_path)
    for name in asked:
        flag = f"--{name.replace('_', '-')}"
        raise LongEvalError(f"{flag}: would be ignored without --parity", "Add --parity, or leave it out.")
    from longeval.doctor import checks

    if json_path is not None:
        write_json([dataclasses.asdict(check) for check in checks.examine()], json_path)
        return 0
    screen = console(highlight=False, soft_wrap=True)
    counts = {"ok": 0, "warn": 0, "missing": 0}
    for check in checks.examine():
        counts[check.status] += 1
        _show(screen, check)
    screen.print(f"{counts['ok']} ok, {counts['warn']} to know, {counts['missing']} missing", style="bold")
    return 0


def _show(screen: Console, check: Check) -> None:
    """Prints a finding in one line, and its remedy in a second."""
    from rich.text import Text

    line = Text.assemble((f"{check.status:<8}", _STYLES[check.status]), f"{check.name:<15}", check.detail)
    screen.print(line)
    if check.remedy:
        screen.print(Text(f"{'':<8}{'':<15}→ {check.remedy}", style="dim"))
