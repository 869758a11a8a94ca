"""`longeval export`: one model with one method, in a form that stock engines load without longeval."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from longeval.cli.options import model_option, read
from longeval.cli.terminal import console, say, show
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.export.encoding import Encoding, StockError
    from longeval.export.folder import WrittenFolder
    from longeval.export.gguf import WrittenGguf


def export(
    model: Annotated[str, typer.Option(help="Short name, hub id, folder or .gguf file.")],
    pe: Annotated[str, typer.Option(metavar="NAME", help="The method: none, yarn, resonance_yarn, …")],
    out: Annotated[
        str, typer.Option(metavar="PATH", help="Folder to write, or FILE.gguf for a model that comes as GGUF.")
    ],
    factor: Annotated[str | None, typer.Option(metavar="S", help="s = target / native length.")] = None,
    native: Annotated[str | None, model_option("native", rich_help_panel=None)] = None,
    pe_arg: Annotated[list[str] | None, model_option("pe_args", rich_help_panel=None)] = None,
    scale_from: Annotated[str, model_option("scale_from", rich_help_panel=None)] = "plain",
    layers: Annotated[str, model_option("layers", rich_help_panel=None)] = "global",
    revision: Annotated[str | None, model_option("revision", rich_help_panel=None)] = None,
    adapter: Annotated[str | None, model_option("adapter", rich_help_panel=None)] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.")] = False,
) -> None:
    """Write a model with a method's frequencies for stock engines.

    A folder goes to transformers and vLLM: same weights, and a config.json that gives
    every feature its frequency in the standard longrope form. A .gguf file goes to
    llama.cpp: same tensors, and one more with a divisor for every feature.

    Stock engines round angles to float32. The message says by how much.

    [bold]Examples[/bold]

    longeval export --model llama2-7b --pe resonance_yarn --factor 4 --out llama2-7b-16k

    longeval export --model smollm2-135m-q4 --pe resonance_yarn --factor 2 --out smollm2-16k.gguf

    longeval export --model ./my-model --pe yarn --factor 8 --pe-arg yarn.beta_fast=16 --out my-model-8x
    """
    from longeval.export.encoding import encode
    from longeval.export.folder import check_folder, write_folder
    from longeval.export.gguf import check_file, check_source, config_of, write_gguf
    from longeval.export.stock import check_stock_type
    from longeval.models.load import check_weights, load_config
    from longeval.models.resolve import resolve
    from longeval.models.scaling import model_rope
    from longeval.rope.build import parse_method_name, parse_pe_args
    from longeval.values import parse_factor

    logging.getLogger("longeval").setLevel(logging.WARNING if quiet else logging.INFO)
    own_native = read("native", native)
    read("scale_from", scale_from)
    read("layers", layers)
    for flag, value in (("--pe", pe), ("--model", model)):
        if "," in value and not os.path.exists(value):
            raise LongEvalError(f"{flag} {value}: an export is of one model with one method", "Export them one by one.")
    if "://" in out:
        raise LongEvalError(f"--out {out}: an export goes to a local folder or file", "Copy it from there.")
    name = parse_method_name(pe)
    arguments = parse_pe_args(pe_arg or [], [name.canonical])
    s = None if factor is None else parse_factor(factor)
    to_gguf = out.lower().endswith(".gguf")
    (check_file if to_gguf else check_folder)(out)
    ref = resolve(model, revision=revision, adapter=adapter)
    if to_gguf and adapter is not None:
        raise LongEvalError(
            f"--adapter {adapter}: a GGUF can't be written with an adapter merged in",
            "Export a folder; or merge it with peft, convert the result with llama.cpp's convert_hf_to_gguf.py, and "
            "export from that file.",
        )
    if to_gguf:
        check_source(ref, out)
        config = config_of(ref, out)
    else:
        check_stock_type(ref)
        config = load_config(ref)
        if ref.adapter is not None:
            check_weights(ref, config)  # before the model is loaded to merge it
    rope = model_rope(ref.name, config, native=own_native, scale_from=scale_from, layers=layers)
    encoding = encode(rope, name.canonical, factor=s, arguments=name.arguments(arguments))
    if not quiet:
        for note in encoding.rope.notes:
            say(note)
        if (advice := encoding.advice()) is not None:
            say(advice)
        say(f"writing {encoding.describe()} …")
    if to_gguf:
        with _bar(quiet) as progress:
            file = write_gguf(ref, encoding, out, progress)
        if not quiet:
            _tell_gguf(file, encoding, out)
    else:
        with _bar(quiet) as progress:
            folder = write_folder(ref, config, encoding, out, progress)
        if not quiet:
            _tell_folder(folder, encoding, out)


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback for the bytes copied so far and in all; it draws a bar if stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        task = bars.add_task("")
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _tell_folder(written: WrittenFolder, encoding: Encoding, out: str) -> None:
    """Prints what a folder holds, how exact it is, and how to load it."""
    from longeval.export.stock import vllm_reason

    for name in written.changed:
        say(f"{name}: its limit on length is now {encoding.target_length}")
    if written.other_class is not None and written.is_replaced:
        say(f"tokenizer_config.json: it named {written.other_class}, which splits texts otherwise than tokenizer.json")
    elif written.other_class is not None:
        say(
            f"AutoTokenizer makes a {written.other_class} of this folder, which splits texts otherwise than "
            f'tokenizer.json: use transformers.PreTrainedTokenizerFast.from_pretrained("{out}")'
        )
    say(
        "stock engines multiply positions in float32, without longeval's exact periods: "
        + _error(written.stock.error, encoding)
    )
    if encoding.table.local is not None:
        say("transformers 4 would leave the sliding-window layers as they were: load it with transformers 5")
    show(f"{out}: {encoding.rope.model}, {encoding.describe()}; {written.num_files} files, {_size(written.num_bytes)}")
    say("transformers 5 warns about short_mscale and long_mscale at loading: vLLM needs them, nothing is amiss")
    show(f'transformers: AutoModelForCausalLM.from_pretrained("{out}", dtype="auto")')
    if (reason := vllm_reason(encoding.rope.model_type)) is not None:
        say(reason)
        return
    show(f"vllm: vllm serve {shlex.quote(out)} --max-model-len {encoding.target_length}")


def _tell_gguf(written: WrittenGguf, encoding: Encoding, out: str) -> None:
    """Prints what a GGUF holds, how exact it is, and how to load it."""
    say(
        "llama.cpp computes angles by a running float32 product, without longeval's exact periods: "
        + _error(written.error, encoding)
    )
    size = f"{written.num_tensors} tensors, {_size(written.num_bytes)}"
    show(f"{out}: {encoding.rope.model}, {encoding.describe()}; {size}")
    show(f"llama.cpp: llama-cli -m {shlex.quote(out)} -c {encoding.target_length}")


def _error(error: StockError, encoding: Encoding) -> str:
    """`cos and sin are off by up to 0.0012 (at position 16383, feature 3) below 16k`."""
    from longeval.values import format_length

    return (
        f"cos and sin are off by up to {error.largest:.2g} (at position {error.position}, feature {error.feature}) "
        f"below {format_length(encoding.target_length)}"
    )


def _size(num_bytes: int) -> str:
    """`538 MB`, `13.5 GB`."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.3g} MB"
