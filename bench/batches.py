"""What it brings that windows of equal length share a pass: single windows against batches, in turn in one run.

    python -m bench.batches --device cuda                    # models of random weights, in the device's best dtype
    python -m bench.batches --device cuda --shapes 7b --lengths 256,2k --batch-sizes 8,16,64

`make bench` has the same table for its own model.

Shapes: B windows, T tokens of a window.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.models import SIZES, make_model
from bench.timing import Timed, alternate

if TYPE_CHECKING:
    from rich.table import Table

    from longeval.backends.base import Backend

LENGTHS = (256, 512, 2048)
CPU_TOKENS = 2048
"""Tokens of a batch on a CPU, where more would only take longer: about 8k elsewhere, as `--batch-size auto` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The same windows, every token after the first scored: one a pass first, all in one pass second."""

    model: str
    dtype: str
    length: int
    batch_size: int
    timed: Timed
    largest_difference: float | None
    """Largest |NLL difference| of a token between the two, nats; None where one ran out of memory."""

    @property
    def tokens_per_s(self) -> float | None:
        """Of the batch."""
        took = self.timed.second.median_s
        return None if took is None else self.batch_size * self.length / took


def usual_sizes(length: int, device: str) -> tuple[int, ...]:
    """The batch that is measured where none is asked for: as many windows as auto takes on a GPU, at least two."""
    from longeval.run.cost import PASS_TOKENS

    return (max(2, (CPU_TOKENS if device == "cpu" else PASS_TOKENS) // length),)


def measure_batches(
    backend: Backend,
    model: str,
    *,
    vocab_size: int,
    lengths: Sequence[int],
    device: str,
    sizes: Sequence[int] = (),
    repeats: int,
) -> list[Batch]:
    """Times random tokens at each length in batches of each size; without `sizes`, of the usual one.

    Args:
        backend: Serves a table that reaches the longest length.
        model: What to call it.
        vocab_size: Token ids are drawn below it.
        lengths: Window lengths in tokens.
        device: As `models.device.resolve_device` returns it.
        sizes: Windows in a batch.
        repeats: Of each timing.
    """
    import numpy as np

    rows = []
    for length in lengths:
        for size in sizes or usual_sizes(length, device):
            tokens_BT = np.random.default_rng(0).integers(0, vocab_size, (size, length)).astype(np.int32)
            single: list[Any] = []
            batched: list[Any] = []
            timed = alternate(
                lambda tokens_BT=tokens_BT, kept=single: kept.append([backend.score(one_T, 1) for one_T in tokens_BT]),
                lambda tokens_BT=tokens_BT, kept=batched: kept.append(
                    backend.score_batch(tokens_BT, [1] * len(tokens_BT))
                ),
                repeats=repeats,
                warm_up=device != "cpu",
            )
            difference = None if timed.ratio is None else float(np.abs(np.subtract(single[-1], batched[-1])).max())
            rows.append(
                Batch(
                    model=model,
                    dtype=backend.dtype,
                    length=length,
                    batch_size=size,
                    timed=timed,
                    largest_difference=difference,
                )
            )
    return rows


def random_backend(size: str, dtype: str, device: str, length: int) -> Backend:
    """A Llama of random weights with the sizes of a known model, which serves its own table up to `length` tokens."""
    from longeval.backends.hf.backend import HFBackend

    backend = HFBackend(make_model(size, device=device, dtype=dtype))
    backend.serve(backend.shipped.table(length), length)
    return backend


def batches_table(rows: Sequence[Batch]) -> Table:
    """Seconds of both, and their ratio."""
    from bench.show import _number, _table
    from longeval.values import format_length

    table = _table("Windows that share a pass", ("model", "dtype", "length", "windows"))
    for column in ("single", "batch", "tokens/s", "batch / single", "difference"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds = (_number(side.median_s, ".3f", " s") for side in row.timed)
        table.add_row(
            row.model,
            row.dtype,
            format_length(row.length),
            str(row.batch_size),
            *seconds,
            _number(row.tokens_per_s, ",.0f"),
            _number(row.timed.ratio, ".2f", "×"),
            _number(row.largest_difference, ".1g"),
        )
    return table


def batches_meaning(rows: Sequence[Batch]) -> str:
    """What the table says, and what ran out of memory."""
    lines = [
        "The same windows one a pass and all in one pass, in turn, every token scored. Above 1× the batch is faster; "
        "the difference is the largest of a token's NLL, nats.",
    ]
    for row in rows:
        sides = (("single", row.timed.first), ("batch", row.timed.second))
        lines += [
            f"{row.model} {row.length} × {row.batch_size}: {name} {side.error}" for name, side in sides if side.error
        ]
    return "\n".join(lines)


def main(
    device: Annotated[str, typer.Option(help="As longeval's --device.")] = "auto",
    dtype: Annotated[str, typer.Option(help="As longeval's --dtype.")] = "auto",
    shapes: Annotated[
        str | None,
        typer.Option(help=f"Comma list of {', '.join(SIZES)}; 135m on a CPU and 1b,7b elsewhere unless given."),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Window lengths in tokens; comma list.")] = "256,512,2k",
    batch_sizes: Annotated[
        str | None, typer.Option(help="Windows in a batch; comma list. Unless given, 8k tokens; on a CPU 2k.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Of each timing.")] = 5,
) -> None:
    """Times windows of equal length in single passes and in batches, on models of random weights."""
    from bench.show import open_console
    from longeval.errors import LongEvalError, check_word
    from longeval.models.device import device_name, resolve_device, resolve_dtype
    from longeval.values import parse_count, parse_lengths, split_list

    try:
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        names = split_list(shapes or ("135m" if device == "cpu" else "1b,7b"), flag="--shapes")
        for name in names:
            check_word("--shapes", name, SIZES)
        tokens = parse_lengths(lengths)
        sizes = (
            [parse_count(size, flag="--batch-sizes") for size in split_list(batch_sizes, flag="--batch-sizes")]
            if batch_sizes
            else []
        )
        parse_count(str(repeats), flag="--repeats")
    except LongEvalError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    rows: list[Batch] = []
    for name in names:
        print(f"bench: {name} in {dtype} on {device_name(device)}", file=sys.stderr, flush=True)
        backend = random_backend(name, dtype, device, max(tokens))
        vocab_size = SIZES[name]["vocab_size"]
        rows += measure_batches(
            backend, name, vocab_size=vocab_size, lengths=tokens, device=device, sizes=sizes, repeats=repeats
        )
        backend.close()
    console = open_console()
    console.print(batches_table(rows))
    console.print(batches_meaning(rows), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
