"""`longeval rope`: the frequency table of methods for a geometry, as a table, JSON or a picture. No model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from longeval.cli.json_output import check_json_path, check_writable, write_json, write_output
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.rope.base import Geometry


N = TypeVar("N", int, float)


def rope(
    names: Annotated[
        str | None, typer.Argument(metavar="NAME[,NAME…]", help="Methods: none, resonance, yarn, resonance_yarn, …")
    ] = None,
    head_dim: Annotated[
        str | None, typer.Option("--head-dim", metavar="D", help="Rotary dimensions of a head: 64, 128, …")
    ] = None,
    theta: Annotated[str | None, typer.Option("--theta", metavar="B", help="The base, rope_theta: 10000, …")] = None,
    native: Annotated[
        str | None, typer.Option("--native", metavar="L", help="Native length in tokens: 4096 or 4k.")
    ] = None,
    factor: Annotated[
        str, typer.Option("--factor", metavar="S", help="s = target length / native length, at least 1.")
    ] = "1",
    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            metavar="N",
            help="Current sequence length, which only the dynamic methods use.",
            show_default="s·L",
        ),
    ] = None,
    pe_arg: Annotated[
        list[str] | None,
        typer.Option("--pe-arg", metavar="METHOD.PARAM=VALUE", help="A method's parameter; may be repeated."),
    ] = None,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of a table; - is stdout.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Also draw wavelengths and gaps: .png or .svg.")
    ] = None,
    list_methods: Annotated[
        bool, typer.Option("--list", help="List the methods with their parameters, and stop.")
    ] = False,
) -> None:
    """Frequencies, wavelengths and feature gaps of RoPE methods.

    The feature gap is the largest change of a feature between an unseen position and the nearest seen one.
    With Resonance it is exactly 0 for every feature whose wavelength fits into the native length.

    [bold]Examples[/bold]

    longeval rope resonance_yarn --head-dim 128 --theta 10000 --native 4k --factor 8

    longeval rope none,resonance,yarn --head-dim 128 --theta 1e4 --native 4k --factor 8 --plot tables.png

    longeval rope yarn --head-dim 64 --theta 1e5 --native 8k --factor 2 --pe-arg yarn.beta_fast=16 --json -

    longeval rope --list
    """
    if list_methods:
        _refuse_ignored({"NAME": names, "--head-dim": head_dim, "--theta": theta, "--native": native})
        _refuse_ignored({"--length": length, "--pe-arg": pe_arg, "--plot": plot})
        _refuse_ignored({"--factor": None if factor == "1" else factor})
        _list_methods(json_path)
        return
    from longeval.rope.analysis import check_target, describe
    from longeval.rope.build import make_parameters, parse_method_name, parse_pe_args
    from longeval.rope.plot import draw, plot_format
    from longeval.rope.text import show
    from longeval.spec import parse_length, split_list

    if names is None:
        raise LongEvalError("NAME: no method given", "Give one or more, such as yarn,resonance_yarn; --list shows all.")
    parsed = [parse_method_name(name, flag="NAME") for name in split_list(names, flag="NAME")]
    geometry = _geometry(head_dim, theta, native, factor)
    check_target(geometry)
    current = geometry.target_length if length is None else parse_length(length, flag="--length")
    values = parse_pe_args(pe_arg or [], [name.canonical for name in parsed])
    image_format = None if plot is None else plot_format(plot)
    for flag, path in (("--json", json_path), ("--plot", plot)):
        if path is not None and path != "-":
            check_writable(flag, path)
    descriptions = [
        describe(name.canonical, geometry, make_parameters(name.base, values.get(name.base, {})), current)
        for name in parsed
    ]
    if plot is not None and image_format is not None:
        write_output(plot, draw(descriptions, image_format))
        typer.echo(f"wrote {plot}", err=True)
    if json_path is not None:
        write_json(descriptions[0] if len(descriptions) == 1 else descriptions, json_path)
        if json_path != "-":
            typer.echo(f"wrote {json_path}", err=True)
    else:
        show(descriptions)


def _geometry(head_dim: str | None, theta: str | None, native: str | None, factor: str) -> Geometry:
    """The geometry from the options' texts; what is missing or unreadable raises LongEvalError."""
    from longeval.rope.base import Geometry
    from longeval.spec import parse_factor, parse_length

    if head_dim is None or theta is None or native is None:
        needed = {"--head-dim": head_dim, "--theta": theta, "--native": native}
        missing = [flag for flag, value in needed.items() if value is None]
        raise LongEvalError(
            f"{', '.join(missing)}: missing", "Llama 2, for example, has --head-dim 128 --theta 10000 --native 4k."
        )
    return Geometry(
        head_dim=_number(int, "--head-dim", head_dim, "a whole number", "64 or 128 are usual."),
        theta=_number(float, "--theta", theta, "a number", "10000 is the usual base."),
        native_length=parse_length(native, flag="--native"),
        factor=parse_factor(factor),
    )


def _number(kind: Callable[[str], N], flag: str, text: str, what: str, remedy: str) -> N:
    """A number from an option's text."""
    try:
        return kind(text)
    except ValueError:
        raise LongEvalError(f"{flag} {text!r}: not {what}", remedy) from None


def _refuse_ignored(settings: Mapping[str, object]) -> None:
    """Raises LongEvalError for what was given beside `--list`."""
    for flag, value in settings.items():
        if value:
            raise LongEvalError(f"--list: {flag} would be ignored", "Give --list alone, or with --json.")


def _list_methods(json_path: str | None) -> None:
    """`--list`: all methods with parameters, defaults and source."""
    from longeval.rope.text import list_methods, show_methods

    if json_path is None:
        show_methods()
        return
    check_json_path(json_path)
    write_json(list_methods(), json_path)
