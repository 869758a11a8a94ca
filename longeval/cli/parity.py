"""`longeval doctor --parity`: what was asked, the comparison, and how it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.doctor.parity import Parity
    from longeval.models.scaling import ModelRope
    from longeval.plan import Plan

DIFFERENT = 3
"""Exit status where the two differ by more than rounding."""


def show_parity(
    model: str | None,
    pe: str | None,
    factor: str | None,
    length: str | None,
    dtype: str | None,
    vllm_arg: Sequence[str],
    json_path: str | None,
) -> int:
    """Compares, shows, and returns the exit status."""
    if model is None:
        raise LongEvalError("--parity: which model?", "Add --model smollm2-135m-q4, or any other.")
    from longeval.cli.json_output import write_json
    from longeval.cli.progress import RunProgress
    from longeval.doctor.parity import parity

    plan = _plan(model, pe, factor, length, dtype, vllm_arg)
    with RunProgress(quiet=json_path == "-", verbose=False) as progress:
        found = list(parity(plan, progress))
    if json_path is not None:
        write_json([dataclasses.asdict(one) | {"verdict": one.verdict} for one in found], json_path)
    else:
        _show(found)
    return 0 if all(one.verdict == "same" for one in found) else DIFFERENT


def _plan(
    model: str, pe: str | None, factor: str | None, length: str | None, dtype: str | None, vllm_arg: Sequence[str]
) -> Plan:
    """One window of real text for each method."""
    from longeval.cells import check_backend
    from longeval.cli import options
    from longeval.doctor.parity import NEW_TOKENS, in_chunks
    from longeval.plan import plan_ppl
    from longeval.rope.build import parse_method_name
    from longeval.spec import PplSpec, parse_length, split_list
    from longeval.spec.engine import parse_vllm_args

    tokens = parse_length(length or "1k", flag="--length", least=2 * NEW_TOKENS)  # half of it is continued
    methods = split_list(pe or "none,yarn,resonance_yarn", flag="--pe")
    names = [parse_method_name(name) for name in methods]
    spec = PplSpec(
        model=split_list(model, flag="--model"),
        pe=methods,
        lengths=(tokens,),
        data=("stdlib",),
        docs=1,
        factor=options.factor(factor or "4"),
        backend="vllm",
        vllm_args=in_chunks(tokens, parse_vllm_args(vllm_arg)),
        dtype=dtype or "float32",
    )
    check_backend(spec)  # before a model is fetched
    if any(_rope(one).length_dependent(name) for one in spec.model for name in names):
        spec = dataclasses.replace(spec, pin_length=tokens)  # at one length such a method has one table
    return plan_ppl(spec)


def _rope(model: str) -> ModelRope:
    """A model's position encoding: a scaling that it came with may depend on the length too."""
    from longeval.models.load import load_config, resolve
    from longeval.models.scaling import model_rope

    return model_rope(model, load_config(resolve(model)))


def _show(found: Sequence[Parity]) -> None:
    """A paragraph for each comparison."""
    from rich.console import Console
    from rich.text import Text

    from longeval.spec import format_length

    console = Console(highlight=False, soft_wrap=True)
    for one in found:
        s = "" if one.factor is None else f", s = {one.factor:g}"
        console.print(f"{one.model} · {one.pe}{s} · {format_length(one.length)} tokens · {one.dtype}", style="bold")
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
            console.print(Text(f"  {name:<17}{text}"))
        if one.reasons:
            console.print(Text(f"  different: {'; '.join(one.reasons)}", style="bold red"))
        else:
            console.print(Text("  the same within what rounding explains", style="green"))


def _answers(one: Parity) -> str:
    """Whether both continue alike, or where they part."""
    a, b = one.answer_hf, one.answer_vllm
    if a == b:
        return "the same, greedily"
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    parted = f"parts after {common} characters: {a[common : common + 20]!r} (hf), {b[common : common + 20]!r} (vllm)"
    return parted if one.answer_gap is None else f"{parted}; to hf its own is {one.answer_gap:.1e} nats likelier"
