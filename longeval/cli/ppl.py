"""`longeval ppl`: perplexity at growing context lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from longeval.spec import Layers, ScaleFrom

MODELS, METHODS, DATA, MACHINE, OUTPUT = "What", "Methods", "Documents", "Machine", "Output"


def ppl(
    model: Annotated[str, typer.Option(help="Short name, hub id, folder or .gguf file; comma list.")],
    pe: Annotated[str, typer.Option(help="Methods: none, yarn, resonance_yarn, …; comma list.")],
    lengths: Annotated[str, typer.Option(help="Window lengths in tokens: 4k,8k,16k.")],
    data: Annotated[
        str,
        typer.Option(help="gov_report, pg19, proof_pile, leval:NAME, stdlib, files or folders; comma list."),
    ] = "gov_report",
    protocol: Annotated[
        str, typer.Option(help="What is scored: prefix, sliding, sliding_window_mean, stream.")
    ] = "prefix",
    factor: Annotated[
        str | None,
        typer.Option(
            help="s = target / native length for all lengths; each: every length its own.",
            show_default="longest length / native length, at least 1",
            rich_help_panel=METHODS,
        ),
    ] = None,
    native: Annotated[
        str | None,
        typer.Option(help="Native length in tokens.", show_default="the model's own", rich_help_panel=METHODS),
    ] = None,
    pe_arg: Annotated[
        list[str] | None,
        typer.Option(
            help="A method's parameter, yarn.beta_fast=16; may be repeated.",
            metavar="METHOD.PARAM=VALUE",
            rich_help_panel=METHODS,
        ),
    ] = None,
    scale_from: Annotated[
        str,
        typer.Option(
            help="On a model that comes already scaled: plain (methods replace that) or shipped (they build on it).",
            rich_help_panel=METHODS,
        ),
    ] = "plain",
    layers: Annotated[
        str,
        typer.Option(
            help="Where a model rotates by layer type (Gemma 3): scale the global layers, or all.",
            rich_help_panel=METHODS,
        ),
    ] = "global",
    docs: Annotated[
        str | None,
        typer.Option(
            help="At most so many documents, or all.", show_default="what the data set says", rich_help_panel=DATA
        ),
    ] = None,
    min_tokens: Annotated[
        str | None,
        typer.Option(
            help="Skip documents with fewer tokens.",
            show_default="the longest length under prefix, else 2",
            rich_help_panel=DATA,
        ),
    ] = None,
    stride: Annotated[
        str | None,
        typer.Option(help="Tokens between windows (not under prefix).", show_default="256", rich_help_panel=DATA),
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos",
            help="Start every window with BOS.",
            show_default="as the tokenizer does",
            rich_help_panel=DATA,
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field of JSONL or parquet files with the text.", rich_help_panel=DATA)
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs the model: hf.", rich_help_panel=MACHINE)] = "hf",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=MACHINE)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)] = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="Spread over devices: auto, balanced, …", rich_help_panel=MACHINE)
    ] = None,
    attn: Annotated[
        str | None,
        typer.Option(help="Attention: sdpa, eager, flash_attention_2, …", rich_help_panel=MACHINE),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.", rich_help_panel=MACHINE)] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.", rich_help_panel=MACHINE)
    ] = False,
    seed: Annotated[str, typer.Option(help="Seed of the bootstrap.", rich_help_panel=OUTPUT)] = "0",
    out: Annotated[
        str | None,
        typer.Option(help="Run folder or fsspec URL.", show_default="runs/<date>-<digest>", rich_help_panel=OUTPUT),
    ] = None,
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Records as a JSON array; - is stdout.", rich_help_panel=OUTPUT),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, passes, time and memory.", rich_help_panel=OUTPUT)
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute stored cells again.", rich_help_panel=OUTPUT)] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.", rich_help_panel=OUTPUT)] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="A line a window.", rich_help_panel=OUTPUT)] = False,
) -> int:
    """Perplexity at growing context lengths, by RoPE method.

    Every combination of model, method, length and data set is a cell. Finished
    cells are stored at once; the same command goes on where it stopped.

    [bold]Examples[/bold]

    longeval ppl --model llama2-7b --pe resonance_yarn --lengths 4k,8k,16k

    longeval ppl --model smollm2-135m-q4 --pe none,yarn,resonance_yarn --lengths 4k,8k,12k --data stdlib --docs 2

    longeval ppl --model ./my-model --pe yarn --factor 4 --lengths 32k --data book.txt --protocol sliding --dry-run
    """
    from longeval.cli.request import carry_out
    from longeval.rope.build import parse_pe_args
    from longeval.spec import PplSpec, parse_count, parse_factor, parse_length, parse_lengths, split_list

    methods = split_list(pe, flag="--pe")
    spec = PplSpec(
        model=split_list(model, flag="--model"),
        pe=methods,
        lengths=parse_lengths(lengths),
        data=split_list(data, flag="--data"),
        protocol=protocol,
        factor=None if factor is None else "each" if factor == "each" else parse_factor(factor),
        pe_args=parse_pe_args(pe_arg or [], methods),
        stride=None if stride is None else parse_length(stride, flag="--stride", least=1),
        min_tokens=None if min_tokens is None else parse_length(min_tokens, flag="--min-tokens"),
        docs=None if docs is None else "all" if docs == "all" else parse_count(docs, flag="--docs"),
        bos=bos,
        text_field=text_field,
        native=None if native is None else parse_length(native, flag="--native"),
        scale_from=cast("ScaleFrom", scale_from),  # the spec refuses other words
        layers=cast("Layers", layers),
        backend=backend,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn=attn,
        revision=revision,
        trust_remote_code=trust_remote_code,
        seed=parse_count(seed, flag="--seed", least=0),
    )
    return carry_out([spec], out=out, json_path=json_path, dry_run=dry_run, fresh=fresh, quiet=quiet, verbose=verbose)
