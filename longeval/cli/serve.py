"""`longeval serve`: vLLM's OpenAI-compatible server with a RoPE method in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from longeval.cli.options import model_option, read
from longeval.cli.terminal import check_loudness, say, show
from longeval.errors import LongEvalError
from longeval.request.setting import METHODS, OUTPUT

SERVER = "Server"

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Annotated[str, typer.Option(help="Short name, hub id, folder or .gguf file.")],
    pe: Annotated[
        str, typer.Option(help="The method: none, yarn, resonance_yarn, …", rich_help_panel=METHODS)
    ] = "none",
    factor: Annotated[
        str | None,
        model_option(
            "factor",
            help="s = target / native length.",
            show_default="--length / native length, at least 1",
        ),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            help="Longest prompt with its answer, tokens.", show_default="s × native", rich_help_panel=METHODS
        ),
    ] = None,
    native: Annotated[str | None, model_option("native")] = None,
    pe_arg: Annotated[list[str] | None, model_option("pe_args")] = None,
    scale_from: Annotated[str, model_option("scale_from")] = "plain",
    layers: Annotated[str, model_option("layers")] = "global",
    pin_length: Annotated[str | None, model_option("pin_length")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.", rich_help_panel=SERVER)] = 8000,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name at the server.", show_default="--model", rich_help_panel=SERVER)
    ] = None,
    no_api_key: Annotated[
        bool,
        typer.Option(
            "--no-api-key",
            help="Ask for no key; otherwise LONGEVAL_API_KEY, or a new one that is printed.",
            rich_help_panel=SERVER,
        ),
    ] = False,
    vllm_arg: Annotated[list[str] | None, model_option("vllm_args")] = None,
    dtype: Annotated[str, model_option("dtype")] = "auto",
    device: Annotated[str, model_option("device")] = "auto",
    revision: Annotated[str | None, model_option("revision")] = None,
    adapter: Annotated[str | None, model_option("adapter")] = None,
    trust_remote_code: Annotated[
        bool, model_option("trust_remote_code", help="Run code from the model's repository.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show vLLM's command line; start nothing.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("-q", "--quiet", help="Only errors, and a key that is new.", rich_help_panel=OUTPUT),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="vLLM's log, and a line for each request.", rich_help_panel=OUTPUT),
    ] = False,
) -> int:
    """Serve a model with a RoPE method: vLLM's OpenAI-compatible server.

    It listens on this machine alone and asks for a key, unless told otherwise. Ctrl-C ends it.

    [bold]Examples[/bold]

    longeval serve --model smollm2-135m-q4 --pe resonance_yarn --factor 2

    longeval serve --model ./my-model --pe yarn --length 32k --vllm-arg gpu_memory_utilization=0.8

    LONGEVAL_API_KEY=… longeval tasks --backend openai --base-url http://127.0.0.1:8000/v1 --model smollm2-135m-q4
    --pe none --tasks passkey --lengths 4k
    """
    import dataclasses

    from longeval.backends.base import capabilities
    from longeval.backends.openai.client import own_key
    from longeval.backends.vllm.card import CONFIG_KEY, KEEPS_OTHERS
    from longeval.backends.vllm.card import NAME as MIDDLEWARE
    from longeval.backends.vllm.options import (
        OWNED_BY_SERVE,
        check_installed,
        check_known,
        engine_arguments,
        engine_device,
        parse_vllm_args,
    )
    from longeval.backends.vllm.server import base_url, check_address, run_server, served_method
    from longeval.models.prepare import prepare
    from longeval.rope.build import parse_method_name, parse_pe_args
    from longeval.values import format_length, parse_factor, parse_length

    check_loudness(quiet=quiet, verbose=verbose)
    check_installed("serve")
    args = parse_vllm_args(vllm_arg or [], OWNED_BY_SERVE)
    if "," in pe:
        raise LongEvalError(f"--pe {pe}: a server has one method", "Start a server for each, on a --port of its own.")
    own = None if no_api_key else own_key()
    if not dry_run:  # whose line may be for another machine
        check_address(host, port)
    check_known(args)
    prepared = prepare(
        model,
        revision=revision,
        adapter=adapter,
        native=read("native", native),
        scale_from=scale_from,
        layers=layers,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        backend=capabilities("vllm"),
        dry_run=dry_run,
    )
    prepared = dataclasses.replace(prepared, trust_remote_code=trust_remote_code)
    engine_device(prepared.device, serving=True)  # refuses one that vLLM doesn't compute on
    method = parse_method_name(pe)
    served = served_method(
        prepared,
        method,
        factor=None if factor is None else parse_factor(factor),
        length=None if length is None else parse_length(length, flag="--length"),
        arguments=method.arguments(parse_pe_args(pe_arg or [], [pe])),
        pin=read("pin_length", pin_length),
    )
    # One more: vLLM generates at least one token, and a prompt that fills the window is scored too.
    engine = engine_arguments(prepared, served.table, served.method.length + 1, args, share_prefixes=True)
    partly = prepared.rope.config.by_layer_type and served.table.local is None
    engine["hf_overrides"][CONFIG_KEY] = dataclasses.asdict(served.method) | {KEEPS_OTHERS: partly}
    name = served_model or prepared.name
    if adapter is not None and served_model is None:  # so that clients can tell it from the base model
        name += f"+{os.path.basename(adapter.rstrip('/'))}"
    flags = [*_flags(engine), "--host", host, "--port", str(port), "--served-model-name", name]
    flags += ["--middleware", MIDDLEWARE]
    if not verbose:
        flags.append("--disable-uvicorn-access-log")
    for note in () if quiet else (*prepared.notes, *served.notes):
        say(note)
    if no_api_key and host not in LOOPBACK and not quiet:
        say(f"--no-api-key on {host}: whoever reaches this machine can use the model")
    what = f"{name} with {served.method.described()}, up to {format_length(served.method.length)} tokens"
    if dry_run:
        _show_line(flags, what, no_api_key, quiet)
        return 0
    environment, key = _environment(own, no_api_key)

    def announce() -> None:
        if not quiet or (own is None and not no_api_key):
            say(f"ready: {base_url(host, port)} serves {what}; Ctrl-C ends it; {key}")

    if not quiet:
        say(f"starting vLLM's server: {what} (a minute or more on a CPU{'' if verbose else '; -v shows its log'})")
    return run_server(
        flags,
        environment,
        name=prepared.name,
        host=host,
        port=port,
        show_log=verbose,
        drain_s=float(args.get("shutdown_timeout") or 0),
        announce=announce,
    )


def _flags(engine: Mapping[str, Any]) -> list[str]:
    """Engine options as vLLM's command line has them."""
    flags = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            flags += [f"--{flag}", json.dumps(value)]
        elif isinstance(value, list) and name == "device_ids":  # the one list that vLLM takes as one word
            flags += [f"--{flag}", ",".join(map(str, value))]
        elif isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)]
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags


def _show_line(flags: list[str], what: str, no_api_key: bool, quiet: bool) -> None:
    """Prints vLLM's command line on stdout, and on stderr what it doesn't say."""
    import shlex

    from longeval.backends.vllm.server import COMMAND

    if not quiet:
        say(f"this line serves {what}, with a Python that has longeval and vLLM installed")
    if not no_api_key and not quiet:
        say("its key isn't on the line: set VLLM_API_KEY in its environment, or it asks for none")
    show(shlex.join(["python", *COMMAND, *flags]))


def _environment(own: str | None, no_api_key: bool) -> tuple[dict[str, str], str]:
    """The server's environment, with the key in it, and what to tell of the key."""
    import secrets

    from longeval.backends.openai.client import KEY_VARIABLE

    environment = dict(os.environ)
    environment.pop("VLLM_API_KEY", None)
    if no_api_key:
        return environment, "it asks for no key"
    environment["VLLM_API_KEY"] = own or secrets.token_urlsafe(24)
    if own:
        return environment, f"its key is the one in {KEY_VARIABLE}"
    return environment, f"its key: export {KEY_VARIABLE}={environment['VLLM_API_KEY']}"
