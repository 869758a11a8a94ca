"""`longeval run FILE`: repeats a written-down request; only what is missing is computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from longeval.cli import options
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.request import Request


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A request: a run folder's spec.yaml, or one like it.")],
    pe: Annotated[str | None, typer.Option(help="Only these of its methods; comma list.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder.", show_default="the file's own folder if that is one, else runs/<date>-<digest>"
        ),
    ] = None,
    json_path: options.Json = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code from models' repositories and the request's task files."),
    ] = False,
    dry_run: options.DryRun = False,
    fresh: options.Fresh = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Repeat a written-down request; only what is missing is computed.

    [bold]Examples[/bold]

    longeval run runs/demo/spec.yaml

    longeval run runs/demo/spec.yaml --pe yarn --out runs/again

    longeval run request.yaml --dry-run
    """
    from longeval.bounded_yaml import read_text
    from longeval.cli.request import carry_out
    from longeval.request import request_from_mapping, requests_from_yaml
    from longeval.values import split_list

    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file, or far too large"
        raise LongEvalError(
            f"{file}: can't be read ({reason})", "Give a request file, such as RUN/spec.yaml."
        ) from None
    requests = requests_from_yaml(text, origin=file)
    if any("command" not in request and ("task" in request or "group" in request) for request in requests):
        raise LongEvalError(f"{file}: defines a task, and is no request", f"Use longeval tasks --tasks {file}.")
    specs = [request_from_mapping(request, origin=file) for request in requests]
    specs = _trusted(specs, trust_remote_code, file)
    if pe is not None:
        specs = _only(specs, split_list(pe, flag="--pe"), file)
    return carry_out(
        specs,
        out=out or _own_folder(file),
        json_path=json_path,
        dry_run=dry_run,
        fresh=fresh,
        quiet=quiet,
        verbose=verbose,
    )


def _trusted(specs: Sequence[Request], flag: bool, file: str) -> list[Request]:
    """The requests with the user's word that code may run: a file alone can't say so."""
    from longeval.request import ModelRequest

    own = [spec for spec in specs if isinstance(spec, ModelRequest)]
    if any(spec.trust_remote_code for spec in own) and not flag:
        raise LongEvalError(
            f"{file}: trust_remote_code: true: a file alone can't let code of models or of task files run",
            f"If you trust that code: longeval run {file} --trust-remote-code.",
        )
    if flag and not own:
        raise LongEvalError("--trust-remote-code: would be ignored, posgen runs no such code", "Leave it out.")
    return [spec.replaced(trust_remote_code=flag) if isinstance(spec, ModelRequest) else spec for spec in specs]


def _only(specs: Sequence[Request], methods: tuple[str, ...], file: str) -> list[Request]:
    """The requests with only some of their methods; a factor that followed from the lengths stays the same."""
    asked = {name for spec in specs for name in spec.pe}
    missing = [name for name in methods if name not in asked]
    if missing:
        raise LongEvalError(f"--pe {missing[0]}: not in {file}", f"It has {', '.join(sorted(asked))}.")
    chosen: list[Request] = []
    for spec in specs:
        kept = tuple(name for name in spec.pe if name in methods)
        bases = {name.removeprefix("resonance_") for name in kept}
        if kept:
            pe_args = {base: values for base, values in spec.pe_args.items() if base in bases}
            chosen.append(spec.replaced(pe=kept, pe_args=pe_args))
    return chosen


def _own_folder(file: str) -> str | None:
    """The folder of a run folder's spec.yaml; one whose first training is under way has no cells yet."""
    folder = os.path.dirname(os.path.abspath(file))
    written = any(os.path.isdir(os.path.join(folder, kind)) for kind in ("cells", "checkpoints", "weights"))
    if os.path.basename(file) == "spec.yaml" and written:
        return os.path.dirname(file) or "."
    return None
