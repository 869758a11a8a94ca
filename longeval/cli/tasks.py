"""`longeval tasks`: downstream long-text tasks by method and length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from longeval.cli import options
from longeval.cli.task_list import list_tasks
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.request import ChatTemplate, Layers, Overlong, ScaleFrom

SAMPLES = "Samples and prompts"


def tasks(
    model: Annotated[str | None, typer.Option(help="Short name, hub id, folder or .gguf file; comma list.")] = None,
    pe: Annotated[str | None, typer.Option(help="Methods: none, yarn, resonance_yarn, …; comma list.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, groups (leval, niah, longbench, …), patterns ('arc*') or .yaml files; comma list."),
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Window lengths in tokens: 4k,8k,16k.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the tasks and groups there are.")] = False,
    limit: Annotated[
        str | None,
        typer.Option(
            help="At most so many samples of each task; synthetic tasks make as many.",
            show_default="all; 100 of synthetic tasks",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    overlong: Annotated[
        str,
        typer.Option(
            help="A sample longer than the window: cut its document's middle, left (its beginning), right (its end), "
            "skip the sample, or error.",
            rich_help_panel=SAMPLES,
        ),
    ] = "middle",
    same_samples: Annotated[
        bool,
        typer.Option("--same-samples", help="Skip a sample at every length if it is at one.", rich_help_panel=SAMPLES),
    ] = False,
    chat_template: Annotated[
        str, typer.Option(help="on, off, or auto: if the tokenizer has one.", rich_help_panel=SAMPLES)
    ] = "auto",
    num_fewshot: Annotated[
        str | None,
        typer.Option(help="Examples before each question.", show_default="the task's", rich_help_panel=SAMPLES),
    ] = None,
    max_new_tokens: Annotated[
        str | None,
        typer.Option(help="Most tokens of an answer.", show_default="the task's", rich_help_panel=SAMPLES),
    ] = None,
    haystack: Annotated[
        str | None,
        typer.Option(
            help="What needles are hidden in: noise, stdlib, or any --data of ppl.",
            show_default="noise",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Folder with task files of your own; may be repeated.", rich_help_panel=SAMPLES),
    ] = None,
    factor: options.Factor = None,
    native: options.Native = None,
    pe_arg: options.PeArg = None,
    scale_from: options.ScaleFromText = "plain",
    layers: options.LayersText = "global",
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos",
            help="Start every input with BOS, or what else the tokenizer puts in front.",
            show_default="as the tokenizer does",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    parse_special: Annotated[bool, options.under(SAMPLES, options.ParseSpecial)] = False,
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
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code from the model's repository, and functions that your task files name.",
            rich_help_panel=options.MACHINE,
        ),
    ] = False,
    seed: Annotated[
        str, typer.Option(help="Seed of what is drawn: synthetic samples, the bootstrap.", rich_help_panel=SAMPLES)
    ] = "0",
    out: options.Out = None,
    json_path: options.Json = None,
    dry_run: options.DryRun = False,
    fresh: options.Fresh = False,
    quiet: options.Quiet = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="A line a sample.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> int:
    """Downstream long-text tasks, by RoPE method and window length.

    Every combination of model, method, length and task is a cell. Finished
    cells are stored at once; the same command goes on where it stopped.

    [bold]Examples[/bold]

    longeval tasks --list

    longeval tasks --model smollm2-135m-q4 --pe none,yarn --tasks passkey,niah --lengths 4k,8k,12k --limit 20

    longeval tasks --model llama2-7b-chat --pe ntk,yarn,resonance_yarn --tasks leval --lengths 8k,16k,32k
    """
    from longeval.request import TasksRequest
    from longeval.request.engine import parse_vllm_args
    from longeval.values import parse_count, parse_lengths, split_list, split_paths

    if list_:
        for flag, value in (("--model", model), ("--pe", pe), ("--lengths", lengths), ("--out", out)):
            if value is not None:
                raise LongEvalError(f"{flag} {value}: would be ignored beside --list", "Leave one of the two out.")
        return list_tasks(json_path, tasks, include or [])
    for flag, value in (("--model", model), ("--pe", pe), ("--tasks", tasks), ("--lengths", lengths)):
        if value is None:
            raise LongEvalError(f"{flag}: missing", "Give it, or --list to see what tasks there are.")
    assert model is not None and pe is not None and tasks is not None and lengths is not None
    from longeval.cli.request import carry_out
    from longeval.rope.build import parse_pe_args

    methods = split_list(pe, flag="--pe")
    spec = TasksRequest(
        model=split_paths(model, flag="--model"),
        pe=methods,
        lengths=parse_lengths(lengths),
        tasks=split_paths(tasks, flag="--tasks"),
        include=tuple(include or ()),
        limit=None if limit is None else parse_count(limit, flag="--limit"),
        overlong=cast("Overlong", overlong),  # the spec refuses other words
        same_samples=same_samples,
        chat_template=cast("ChatTemplate", chat_template),
        num_fewshot=None if num_fewshot is None else parse_count(num_fewshot, flag="--num-fewshot", least=0),
        max_new_tokens=None if max_new_tokens is None else parse_count(max_new_tokens, flag="--max-new-tokens"),
        haystack=haystack,
        factor=options.factor(factor),
        native=options.native(native),
        pe_args=parse_pe_args(pe_arg or [], methods),
        scale_from=cast("ScaleFrom", scale_from),
        layers=cast("Layers", layers),
        bos=bos,
        parse_special=parse_special,
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
