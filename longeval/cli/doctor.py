"""`longeval doctor`: what works on this machine, and remedies for what doesn't; with --parity, vLLM's numbers too."""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli.command import Given, make_request
from longeval.cli.options import model_option
from longeval.cli.terminal import check_json_path, console, say, write_json
from longeval.errors import LongEvalError
from longeval.request import ModelRequest

if TYPE_CHECKING:
    from rich.console import Console

    from longeval.doctor.checks import Check
    from longeval.doctor.parity import Parity
    from longeval.models.scaling import ModelRope
    from longeval.studies.ppl.plan import PplPlan
    from longeval.studies.ppl.request import PplRequest

DIFFERENT = 3
"""The exit status where vLLM and transformers differ by more than rounding."""

_STYLES = {"ok": "green", "warn": "yellow", "missing": "bold red"}


def _of_parity(name: str, **changes: Any) -> Any:
    """The option of a setting of requests, in the panel of the comparison."""
    return model_option(name, rich_help_panel="With --parity", **changes)


def doctor(
    context: typer.Context,
    parity: Annotated[
        bool, typer.Option("--parity", help="Instead: does vLLM compute what transformers computes? Needs --model.")
    ] = False,
    model: Annotated[str | None, _of_parity("model")] = None,
    pe: Annotated[str | None, _of_parity("pe", show_default="none,yarn,resonance_yarn")] = None,
    length: Annotated[
        str | None, _of_parity("lengths", flags="--length", help="Tokens to compare on.", show_default="1k")
    ] = None,
    factor: Annotated[str | None, _of_parity("factor", help="s = target / native length.", show_default="4")] = None,
    native: Annotated[str | None, _of_parity("native")] = None,
    pe_args: Annotated[list[str] | None, _of_parity("pe_args")] = None,
    scale_from: Annotated[str | None, _of_parity("scale_from", show_default="plain")] = None,
    layers: Annotated[str | None, _of_parity("layers", show_default="global")] = None,
    pin_length: Annotated[str | None, _of_parity("pin_length", show_default="--length")] = None,
    vllm_args: Annotated[list[str] | None, _of_parity("vllm_args")] = None,
    dtype: Annotated[
        str | None,
        _of_parity("dtype", help="Others than float32 hide differences as small as resonance.", show_default="float32"),
    ] = None,
    device: Annotated[str | None, _of_parity("device", show_default="auto")] = None,
    revision: Annotated[str | None, _of_parity("revision")] = None,
    trust_remote_code: Annotated[bool, _of_parity("trust_remote_code")] = False,
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
    check_json_path(json_path)
    asked = {
        name: value
        for name, value in context.params.items()
        if name not in ("parity", "json_path") and value not in (None, False, [], ())
    }
    if parity:
        return _compare(asked, json_path)
    for name in asked:
        flag = "--length" if name == "length" else ModelRequest.flag(name)
        raise LongEvalError(f"{flag}: would be ignored without --parity", "Add --parity, or leave it out.")
    from longeval.doctor.checks import examine

    if json_path is not None:
        write_json([dataclasses.asdict(check) for check in examine()], json_path)
        return 0
    screen = console(highlight=False, soft_wrap=True)
    counts = {"ok": 0, "warn": 0, "missing": 0}
    for check in examine():
        counts[check.status] += 1
        _show_check(screen, check)
    screen.print(f"{counts['ok']} ok, {counts['warn']} to know, {counts['missing']} missing", style="bold")
    return 0


def _show_check(screen: Console, check: Check) -> None:
    """Prints a finding in one line, and its remedy in a second."""
    from rich.text import Text

    screen.print(Text.assemble((f"{check.status:<8}", _STYLES[check.status]), f"{check.name:<15}", check.detail))
    if check.remedy:
        screen.print(Text(f"{'':<8}{'':<15}→ {check.remedy}", style="dim"))


def _compare(asked: Given, json_path: str | None) -> int:
    """Compares vLLM with transformers, prints the result, and returns the exit status."""
    from longeval.cli.progress import RunProgress
    from longeval.doctor.parity import parity

    plan, notes = _plan(asked)
    for note in (*plan.notes, *notes):
        say(note)
    with RunProgress(quiet=json_path == "-") as progress:
        found = list(parity(plan, progress))
    if json_path is not None:
        write_json([dataclasses.asdict(one) | {"verdict": one.verdict} for one in found], json_path)
    else:
        _show_parity(found)
    return 0 if all(one.verdict == "same" for one in found) else DIFFERENT


def _plan(asked: Given) -> tuple[PplPlan, list[str]]:
    """Plans one window of real text for each method; also returns notes on methods whose table depends on length."""
    from longeval.backends.vllm.options import check_installed
    from longeval.rope.build import parse_method_name
    from longeval.studies.ppl.plan import plan_ppl
    from longeval.values import format_length

    request = _request(asked)
    check_installed("--parity")  # before a model is fetched
    ropes = [_rope(name, request) for name in request.model]
    dependent = [pe for pe in request.pe if any(rope.length_dependent(parse_method_name(pe)) for rope in ropes)]
    if not dependent:
        return plan_ppl(request), []
    pin = request.lengths[0] if request.pin_length is None else request.pin_length
    note = f"{', '.join(dependent)}: another table at every length; both have that at {format_length(pin)} tokens here"
    return plan_ppl(request.replaced(pin_length=pin)), [note]  # an engine holds one table


def _request(asked: Given) -> PplRequest:
    """The comparison as a request of `longeval ppl`."""
    from longeval.doctor.parity import NEW_TOKENS, in_chunks
    from longeval.rope.build import parse_method_name
    from longeval.studies.ppl.request import PplRequest
    from longeval.values import parse_length, split_list

    if "model" not in asked:
        raise LongEvalError("--parity: no model is named", "Add --model smollm2-135m-q4, or any other.")
    settings = {"pe": "none,yarn,resonance_yarn", "length": "1k", "dtype": "float32", **asked}
    tokens = parse_length(settings.pop("length"), flag="--length", least=2 * NEW_TOKENS)  # half of it is continued
    if any(parse_method_name(name).method.uses_factor for name in split_list(settings["pe"], flag="--pe")):
        settings.setdefault("factor", "4")
    fixed = {"lengths": (tokens,), "data": "stdlib", "docs": 1, "backend": "vllm"}
    request = make_request(PplRequest, settings | fixed)
    return request.replaced(vllm_args=in_chunks(tokens, request.vllm_args))


def _rope(model: str, request: PplRequest) -> ModelRope:
    """A model's position encoding; the scaling that it comes with may depend on the length too."""
    from longeval.models.load import load_config
    from longeval.models.resolve import resolve
    from longeval.models.scaling import model_rope

    config = load_config(resolve(model, revision=request.revision), trust_remote_code=request.trust_remote_code)
    return model_rope(model, config, native=request.native, scale_from=request.scale_from, layers=request.layers)


def _show_parity(found: Sequence[Parity]) -> None:
    """Prints a paragraph for each comparison."""
    from rich.text import Text

    from longeval.values import format_length

    screen = console(highlight=False, soft_wrap=True)
    for one in found:
        s = "" if one.factor is None else f", s = {one.factor:g}"
        title = f"{one.model} · {one.pe}{s} · {format_length(one.length)} tokens · {one.dtype}"
        screen.print(Text(title, style="bold"))
        table = f"{one.digest_hf} (hf), {one.digest_vllm} (vllm)"
        if one.digest_hf == one.digest_vllm:
            table = f"the same, {str(one.digest_hf)[:16]}…"
        rows = {
            "table": table,
            "log-probability": f"differs by {one.mean_difference:.1e} nats a token on average, "
            f"{one.max_difference:.1e} at most ({one.tokens:,} tokens)",
            "perplexity": f"{one.perplexity_hf:.6g} (hf), {one.perplexity_vllm:.6g} (vllm)",
            "continuation": _answers(one),
        }
        for name, text in rows.items():
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
    common = len(os.path.commonprefix([a, b]))  # noqa: RUF071  (texts, no paths)
    parted = f"parts after {common} characters: {a[common : common + 20]!r} (hf), {b[common : common + 20]!r} (vllm)"
    return parted if one.answer_gap is None else f"{parted}; to hf its own is {one.answer_gap:.1e} nats likelier"
