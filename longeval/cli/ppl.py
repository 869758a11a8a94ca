"""`longeval ppl`: perplexity at growing context lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from longeval.cli import options

if TYPE_CHECKING:
    from longeval.request import Layers, ScaleFrom

DATA = "Documents"


def ppl(
    model: Annotated[str, typer.Option(help="Short name, hub id, folder or .gguf file; comma list.")],
    pe: Annotated[str, typer.Option(help="Methods: none, yarn, resonance_yarn, …; comma list.")],
    lengths: Annotated[str, typer.Option(help="Window lengths in tokens: 4k,8k,16k.")],
    data: Annotated[
        str,
        typer.Option(
            help="gov_report, pg19, proof_pile, leval:NAME, stdlib, files, folders; comma list (\\, for one in a path)."
        ),
    ] = "gov_report",
    protocol: Annotated[
        str, typer.Option(help="What is scored: prefix, sliding, sliding_window_mean, stream.")
    ] = "prefix",
    factor: options.Factor = None,
    native: options.Native = None,
    pe_arg: options.PeArg = None,
    scale_from: options.ScaleFromText = "plain",
    layers: options.LayersText = "global",
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
            help="Start every window with BOS, or what else the tokenizer puts in front.",
            show_default="as the tokenizer does",
            rich_help_panel=DATA,
        ),
    ] = None,
    parse_special: Annotated[bool, options.under(DATA, options.ParseSpecial)] = False,
    text_field: Annotated[
        str | None, typer.Option(help="Field of JSON, CSV, parquet files with the text.", rich_help_panel=DATA)
    ] = None,
    backend: options.BackendName = "hf",
    vllm_arg: options.VllmArg = None,
    pin_length: options.PinLength = None,
    base_url: options.BaseUrl = None,
    served_model: options.ServedModel = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: Annotated[str, typer.Option(help="Seed of the bootstrap.", rich_help_panel=options.OUTPUT)] = "0",
    out: options.Out = None,
    json_path: options.Json = None,
    dry_run: options.DryRun = False,
    fresh: options.Fresh = False,
    quiet: options.Quiet = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="A line a window.", rich_help_panel=options.OUTPUT)
    ] = False,
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
    from longeval.request import PplRequest
    from longeval.request.engine import parse_vllm_args
    from longeval.rope.build import parse_pe_args
    from longeval.values import parse_count, parse_length, parse_lengths, split_list, split_paths

    methods = split_list(pe, flag="--pe")
    spec = PplRequest(
        model=split_paths(model, flag="--model"),
        pe=methods,
        lengths=parse_lengths(lengths),
        data=split_paths(data, flag="--data"),
        protocol=protocol,
        factor=options.factor(factor),
        pe_args=parse_pe_args(pe_arg or [], methods),
        stride=None if stride is None else parse_length(stride, flag="--stride", least=1),
        min_tokens=None if min_tokens is None else parse_length(min_tokens, flag="--min-tokens"),
        docs=None if docs is None else "all" if docs == "all" else parse_count(docs, flag="--docs"),
        bos=bos,
        parse_special=parse_special,
        text_field=text_field,
        native=options.native(native),
        scale_from=cast("ScaleFrom", scale_from),  # the spec refuses other words
        layers=cast("Layers", layers),
        backend=backend,
        vllm_args=parse_vllm_args(vllm_arg or []),
        pin_length=options.pin_length(pin_length),
        base_url=base_url,
        served_model=served_model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn=attn,
        revision=revision,
        trust_remote_code=trust_remote_code,
        seed=parse_count(seed, flag="--seed", least=0),
    )
    return carry_out([spec], out=out, json_path=json_path, dry_run=dry_run, fresh=fresh, quiet=quiet, verbose=verbose)
