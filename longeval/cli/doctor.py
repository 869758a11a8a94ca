"""`longeval doctor`: what works on this machine, and remedies for what doesn't."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli import options
from longeval.cli.terminal import console, say
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.doctor.checks import Check
    from longeval.doctor.parity import Parity
    from longeval.models.scaling import ModelRope
    from longeval.studies.ppl.plan import PplPlan
    from longeval.studies.ppl.request import PplRequest


# `longeval doctor --parity`: runs the comparison of vLLM with transformers, and prints it.

DIFFERENT = 3
"""The exit status where the two differ by more than rounding."""


Asked = Mapping[str, Any]
"""The flags of a comparison that were given, by name: `{"model": "a,b", "pe_arg": ["yarn.beta_fast=16"]}`."""


def show_parity(asked: Asked, json_path: str | None) -> int:
    """Compares the two backends, prints the result, and returns the exit status."""
    from longeval.cli.progress import RunProgress
    from longeval.cli.terminal import write_json
    from longeval.doctor.parity import parity

    plan, notes = _plan(asked)
    for note in (*plan.notes, *notes):
        say(note)
    with RunProgress(quiet=json_path == "-", verbose=False) as progress:
        found = list(parity(plan, progress))
    if json_path is not None:
        write_json([dataclasses.asdict(one) | {"verdict": one.verdict} for one in found], json_path)
    else:
        _show(found)
    return 0 if all(one.verdict == "same" for one in found) else DIFFERENT


def _plan(asked: Asked) -> tuple[PplPlan, list[str]]:
    """Plans one window of real text for each method; also returns notes on methods whose table depends on length."""
    from longeval.backends.vllm.options import check_installed
    from longeval.studies.ppl.plan import plan_ppl
    from longeval.values import format_length

    if "model" not in asked:
        raise LongEvalError("--parity: no model is named", "Add --model smollm2-135m-q4, or any other.")
    spec = _spec(asked)
    check_installed("--parity")  # before a model is fetched
    tokens = spec.lengths[0]
    dependent = _length_dependent(spec)
    notes = []
    if dependent:
        pin = tokens if spec.pin_length is None else spec.pin_length
        spec = spec.replaced(pin_length=pin)  # an engine holds one table
        at = format_length(pin)
        notes.append(f"{', '.join(dependent)}: another table at every length; both have that at {at} tokens here")
    return plan_ppl(spec), notes


def _spec(asked: Asked) -> PplRequest:
    """The comparison as a request of `longeval ppl`."""
    from longeval.backends.vllm.options import parse_vllm_args
    from longeval.cli import options
    from longeval.doctor.parity import NEW_TOKENS, in_chunks
    from longeval.rope.build import parse_method_name, parse_pe_args
    from longeval.studies.ppl.request import PplRequest
    from longeval.values import parse_length, split_list, split_paths

    tokens = parse_length(asked.get("length", "1k"), flag="--length", least=2 * NEW_TOKENS)  # half of it is continued
    methods = split_list(asked.get("pe", "none,yarn,resonance_yarn"), flag="--pe")
    stretched = any(parse_method_name(name).method.uses_factor for name in methods)
    return PplRequest(
        model=split_paths(asked["model"], flag="--model"),
        pe=methods,
        lengths=(tokens,),
        data=("stdlib",),
        docs=1,
        factor=options.read("factor", asked.get("factor", "4" if stretched else None)),
        native=options.read("native", asked.get("native")),
        pe_args=parse_pe_args(asked.get("pe_arg", ()), methods),
        scale_from=asked.get("scale_from", "plain"),
        layers=asked.get("layers", "global"),
        backend="vllm",
        vllm_args=in_chunks(tokens, parse_vllm_args(asked.get("vllm_arg", ()))),
        pin_length=options.read("pin_length", asked.get("pin_length")),
        dtype=asked.get("dtype", "float32"),
        device=asked.get("device", "auto"),
        revision=asked.get("revision"),
        trust_remote_code=asked.get("trust_remote_code", False),
    )


def _length_dependent(spec: PplRequest) -> list[str]:
    """The methods that have another table at every length on at least one of the models."""
    from longeval.rope.build import parse_method_name

    ropes = [_rope(name, spec) for name in spec.model]
    return [pe for pe in spec.pe if any(rope.length_dependent(parse_method_name(pe)) for rope in ropes)]


def _rope(model: str, spec: PplRequest) -> ModelRope:
    """A model's position encoding; the scaling that it comes with may depend on the length too."""
    from longeval.models.load import load_config
    from longeval.models.resolve import resolve
    from longeval.models.scaling import model_rope

    config = load_config(resolve(model, revision=spec.revision), trust_remote_code=spec.trust_remote_code)
    return model_rope(model, config, native=spec.native, scale_from=spec.scale_from, layers=spec.layers)


def _show(found: Sequence[Parity]) -> None:
    """Prints a paragraph for each comparison."""
    from rich.text import Text

    from longeval.values import format_length

    screen = console(highlight=False, soft_wrap=True)
    for one in found:
        s = "" if one.factor is None else f", s = {one.factor:g}"
        title = f"{one.model} · {one.pe}{s} · {format_length(one.length)} tokens · {one.dtype}"
        screen.print(Text(title, style="bold"))
        same = one.digest_hf == one.digest_vllm
        table = f"the same, {str(one.digest_hf)[:16]}…" if same else f"{one.digest_hf} (hf), {one.digest_vllm} (vllm)"
        rows = [
            ("table", table),
            (
                "log-probability",
                f"differs by {one.mean_difference:.1e} nats a token on average, {one.max_difference:.1e} at most "
                f"({one.tokens:,} tokens)",
            ),
            ("perplexity", f"{one.perplexity_hf:.6g} (hf), {one.perplexity_vllm:.6g} (vllm)"),
            ("continuation", _answers(one)),
        ]
        for name, text in rows:
            screen.print(Text(f"  {name:<17}{text}"))
        if one.reasons:
            screen.print(Text(f"  different: {'; '.join(one.reasons)}", style="bold red"))
        else:
            screen.print(Text("  the same within what rounding explains", style="green"))


def _answers(one: Parity) -> str:
    """Says whether both continue the text in the same way, or where they part."""
    a, b = one.answer_hf, one.answer_vllm
    if a == b:
        return "the same, greedily"
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    parted = f"parts after {common} characters: {a[common : common + 20]!r} (hf), {b[common : common + 20]!r} (vllm)"
    return parted if one.answer_gap is None else f"{parted}; to hf its own is {one.answer_gap:.1e} nats likelier"


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

    from longeval.cli.terminal import check_json_path, write_json
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
        _show_parts(screen, check)
    screen.print(f"{counts['ok']} ok, {counts['warn']} to know, {counts['missing']} missing", style="bold")
    return 0


def _show_parts(screen: Console, check: Check) -> None:
    """Prints a finding in one line, and its remedy in a second."""
    from rich.text import Text

    line = Text.assemble((f"{check.status:<8}", _STYLES[check.status]), f"{check.name:<15}", check.detail)
    screen.print(line)
    if check.remedy:
        screen.print(Text(f"{'':<8}{'':<15}→ {check.remedy}", style="dim"))
