"""`longeval serve`: vLLM's OpenAI-compatible server with a RoPE method in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli import options

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel
    from longeval.rope.base import RopeTable

SERVER = "Server"

LOOPBACK = ("127.0.0.1", "::1", "localhost")

KEY_VARIABLE = "LONGEVAL_API_KEY"
"""Where a key of the user's own is read from: on a command line, everybody on the machine could read it."""


def serve(
    model: Annotated[str, typer.Option(help="Short name, hub id, folder or .gguf file.")],
    pe: Annotated[str, typer.Option(help="One method.", rich_help_panel=options.METHODS)] = "none",
    factor: Annotated[
        str | None,
        typer.Option(
            help="s = target / native length.",
            show_default="--length / native length, at least 1",
            rich_help_panel=options.METHODS,
        ),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            help="Longest prompt with its answer, tokens.", show_default="s × native", rich_help_panel=options.METHODS
        ),
    ] = None,
    native: options.Native = None,
    pe_arg: options.PeArg = None,
    scale_from: options.ScaleFromText = "plain",
    layers: options.LayersText = "global",
    pin_length: options.PinLength = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.", rich_help_panel=SERVER)] = 8000,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name there.", show_default="--model", rich_help_panel=SERVER)
    ] = None,
    no_api_key: Annotated[
        bool,
        typer.Option(
            "--no-api-key",
            help=f"Ask for no key; otherwise {KEY_VARIABLE}, or a new one that is printed.",
            rich_help_panel=SERVER,
        ),
    ] = False,
    vllm_arg: options.VllmArg = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show vLLM's command line and start nothing.", rich_help_panel=SERVER)
    ] = False,
) -> None:
    """Serve a model with a RoPE method: vLLM's OpenAI-compatible server.

    It listens on this machine alone and asks for a key, unless told otherwise. Ctrl-C ends it.

    [bold]Examples[/bold]

    longeval serve --model smollm2-135m-q4 --pe resonance_yarn --factor 2

    longeval serve --model ./my-model --pe yarn --length 32k --vllm-arg gpu_memory_utilization=0.8

    LONGEVAL_API_KEY=… longeval tasks --backend openai --base-url http://127.0.0.1:8000/v1 --model smollm2-135m-q4
    --pe none --tasks passkey --lengths 4k
    """
    import os
    import secrets
    import sys

    from longeval.backends.vllm_options import check_installed, check_known, engine_arguments, engine_device
    from longeval.errors import LongEvalError
    from longeval.models.prepare import prepare
    from longeval.spec import format_length
    from longeval.spec.engine import parse_vllm_args

    check_installed()
    args = parse_vllm_args(vllm_arg or [])
    for name in ("host", "port", "api_key", "served_model_name", "uvicorn_log_level"):
        if name in args:
            raise LongEvalError(f"--vllm-arg {name}: not an option of the engine", "See longeval serve --help.")
    check_known(args)
    prepared = prepare(
        model,
        revision=revision,
        native=options.native(native),
        scale_from=scale_from,
        layers=layers,
        bos=None,
        dtype=dtype,
        device=device,
        device_map=None,
        attn=None,
        trust_remote_code=trust_remote_code,
        backend="vllm",
    )
    engine_device(prepared.device)  # refuses one that vLLM doesn't compute on
    tokens, s, table = _table(prepared, pe, factor, length, pe_arg or [], options.pin_length(pin_length))
    # One more: vLLM generates at least one token, and a prompt that fills the window is scored too.
    engine = engine_arguments(prepared, table, tokens + 1, args, share_prefixes=True)
    del engine["worker_extension_cls"]  # nobody would ask it
    name = served_model or prepared.name
    # Not `vllm serve`: that asks for a package called vllm, and the build for CPUs is called otherwise.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags(engine)]
    command += ["--host", host, "--port", str(port), "--served-model-name", name]
    if dry_run:
        import shlex

        print(shlex.join(["python", *command[1:]]))
        return
    environment = dict(os.environ)
    environment.pop("VLLM_API_KEY", None)
    if not no_api_key:
        environment["VLLM_API_KEY"] = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24)
    elif host not in LOOPBACK:
        print(f"longeval: --no-api-key on {host}: whoever reaches this machine can use the model", file=sys.stderr)
    stretched = "" if s is None else f", s = {s:g}"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    print(
        f"longeval: serving {name} with {pe}{stretched}, up to {format_length(tokens)} tokens, at {url}",
        file=sys.stderr,
    )
    if not no_api_key and not os.environ.get(KEY_VARIABLE):
        print(f"longeval: its key: export {KEY_VARIABLE}={environment['VLLM_API_KEY']}", file=sys.stderr)
    sys.stderr.flush()
    os.execve(command[0], command, environment)  # noqa: S606 (our own list; signals then reach vLLM itself)


def _table(
    model: PreparedModel, pe: str, factor: str | None, length: str | None, pe_arg: list[str], pin: int | None
) -> tuple[int, float | None, RopeTable]:
    """The server's length in tokens, s where the method uses it, and the one table that it gets."""
    import dataclasses

    from longeval.errors import LongEvalError
    from longeval.rope.build import parse_method_name, parse_pe_args
    from longeval.spec import parse_factor, parse_length

    name = parse_method_name(pe)
    arguments = parse_pe_args(pe_arg, [pe]).get(name.base, {})
    s = None if factor is None else parse_factor(factor)
    tokens = None if length is None else parse_length(length, flag="--length")
    if tokens is None:
        tokens = round((s or 1.0) * model.native_length)
    s = max(1.0, tokens / model.native_length) if s is None else s
    table = model.rope.tables(name, dataclasses.replace(model.geometry, factor=s), arguments)
    if not model.rope.length_dependent(name):
        if pin is not None:
            raise LongEvalError(f"--pin-length: would be ignored, {pe} has one table for all lengths", "Leave it out.")
        pin = tokens
    elif pin is None:
        if not table(tokens).same_as(table(2)):
            raise LongEvalError(
                f"--pe {pe}: has another table at every length, and a vLLM engine holds one",
                "Pin it to one length: --pin-length 16k.",
            )
        pin = tokens
    return tokens, s if model.rope.uses_factor(name) else None, table(pin)


def _flags(engine: Mapping[str, Any]) -> list[str]:
    """Engine options as vLLM's command line has them."""
    flags = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict | list):
            flags += [f"--{flag}", json.dumps(value)]
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags
