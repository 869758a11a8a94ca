"""`longeval rope`: the frequency tables of methods, for a geometry or for a model, as a table, JSON or a picture.

Of a model only the configuration is read (of a GGUF, the header), not the weights or the tokenizer. An embedded model
is fetched first if it isn't there yet.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli.command import refuse_beside
from longeval.cli.options import model_option, read
from longeval.cli.terminal import check_json_path, check_writable, say, write_json, write_output
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.models.scaling import ModelRope
    from longeval.rope.base import Geometry
    from longeval.rope.build import MethodName


def rope(
    context: typer.Context,
    names: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME[,NAME…]",
            help="Methods: none, resonance, yarn, resonance_yarn, …; all; with --model none if left out.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="Read head dimensions, base and native length from this model's configuration."),
    ] = None,
    head_dim: Annotated[str | None, typer.Option(metavar="D", help="Rotary dimensions of a head: 64, 128, …")] = None,
    theta: Annotated[str | None, typer.Option(metavar="B", help="The base, rope_theta: 10000, …")] = None,
    native: Annotated[
        str | None,
        typer.Option(metavar="L", help="Native length in tokens: 4096 or 4k.", show_default="with --model its own"),
    ] = None,
    factor: Annotated[str, typer.Option(metavar="S", help="s = target / native length.")] = "1",
    length: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Current sequence length, which only length-dependent methods use.", show_default="s·L"
        ),
    ] = None,
    pe_arg: Annotated[list[str] | None, model_option("pe_args", rich_help_panel=None)] = None,
    scale_from: Annotated[str | None, model_option("scale_from", rich_help_panel=None, show_default="plain")] = None,
    revision: Annotated[str | None, model_option("revision", rich_help_panel=None)] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")
    ] = False,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of a table; - is stdout.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also draw a page of plots: .png, .svg or .pdf.")
    ] = None,
    list_methods: Annotated[
        bool, typer.Option("--list", help="List the methods with their parameters, and stop.")
    ] = False,
) -> None:
    """What RoPE methods do to each feature of a head, and to positions beyond the native length.

    Wavelengths, interpolation, feature gaps, collisions, decay and floating-point
    error. The feature gap is the largest change of a feature between an unseen
    position and the nearest seen one; with Resonance it is exactly 0 for every
    feature whose wavelength fits into the native length.

    [bold]Examples[/bold]

    longeval rope resonance_yarn --head-dim 128 --theta 10000 --native 4k --factor 8

    longeval rope none,resonance,yarn,resonance_yarn --model smollm2-135m-q4 --factor 2 --plot methods.png

    longeval rope --model ./my-model

    longeval rope yarn --head-dim 64 --theta 1e5 --native 8k --factor 2 --pe-arg yarn.beta_fast=16 --json -

    longeval rope --list
    """
    by_hand: dict[str, object] = {"--head-dim": head_dim, "--theta": theta}
    of_model: dict[str, object] = {
        "--revision": revision,
        "--trust-remote-code": trust_remote_code,
        "--scale-from": scale_from,
    }
    if list_methods:
        refuse_beside("--list", context, "list_methods", "json_path")
        _list_methods(json_path)
        return
    from longeval.rope.build import ALL, listed_names, parse_method_name, parse_pe_args, usable
    from longeval.rope.plot.figure import draw, plot_format
    from longeval.rope.text import show
    from longeval.values import parse_factor, parse_length, split_list

    if names is None and model is None:
        raise LongEvalError("NAME: no method given", "Give one or more, such as yarn,resonance_yarn; --list shows all.")
    listed = split_list("none" if names is None else names, flag="NAME")
    methods = [parse_method_name(name, flag="NAME") for name in listed_names(listed)]
    values = parse_pe_args(pe_arg or [], listed)
    stretch = parse_factor(factor)
    current = None if length is None else parse_length(length, flag="--length")
    image_format = None if plot is None else plot_format(plot)
    check_json_path(json_path)
    if plot is not None:
        check_writable("--plot", plot)
    shipped = None
    if model is None:
        _refuse_ignored("without --model", of_model, "Name the model with --model.")
        geometry = _geometry(head_dim, theta, native, stretch)
    else:
        remedy = "The model's configuration says it; leave one of the two out."
        _refuse_ignored(f"--model {model}", by_hand, remedy)
        shipped = _read_model(model, native, revision, trust_remote_code, scale_from or "plain")
        geometry = dataclasses.replace(shipped.geometry, factor=stretch)
    n = current or geometry.target_length
    describe = functools.cache(lambda name: _describe(name, name.arguments(values), n, geometry, shipped))
    if ALL in listed:
        methods, left_out = usable(listed, values, describe)
        if left_out is not None:
            say(left_out)
    descriptions = [describe(method) for method in methods]
    if shipped is not None:
        _introduce(shipped, geometry)
    if plot is not None and image_format is not None:
        write_output("--plot", plot, draw(descriptions, image_format))
        say(f"wrote {plot}")
    if json_path is None:
        show(descriptions)
        return
    write_json(descriptions[0] if len(descriptions) == 1 else descriptions, json_path)
    if json_path != "-":
        say(f"wrote {json_path}")


def _refuse_ignored(beside: str, settings: Mapping[str, object], remedy: str) -> None:
    """Raises LongEvalError for a setting that was given, but has no effect together with `beside`."""
    for flag, value in settings.items():
        if value not in (None, False, []):
            raise LongEvalError(f"{beside}: {flag} would be ignored", remedy)


def _list_methods(json_path: str | None) -> None:
    """Prints or writes all methods with parameters, defaults and source."""
    from longeval.rope.text import list_methods, show_methods

    check_json_path(json_path)
    if json_path is None:
        show_methods()
    else:
        write_json(list_methods(), json_path)


def _geometry(head_dim: str | None, theta: str | None, native: str | None, factor: float) -> Geometry:
    """Reads the geometry from the flags; raises LongEvalError for a missing or unreadable one."""
    from longeval.rope.base import Geometry
    from longeval.values import parse_count, parse_length

    if head_dim is None or theta is None or native is None:
        needed = {"--head-dim": head_dim, "--theta": theta, "--native": native}
        missing = [flag for flag, value in needed.items() if value is None]
        raise LongEvalError(
            f"{', '.join(missing)}: missing", "Llama 2, for example, has --head-dim 128 --theta 10000 --native 4k."
        )
    try:
        base = float(theta)
    except ValueError:
        raise LongEvalError(f"--theta {theta!r}: not a number", "10000 is the usual base.") from None
    return Geometry(
        head_dim=parse_count(head_dim, flag="--head-dim", least=2),
        theta=base,
        native_length=parse_length(native, flag="--native"),
        factor=factor,
    )


def _read_model(
    name: str, native: str | None, revision: str | None, trust_remote_code: bool, scale_from: str
) -> ModelRope:
    """Reads the position encoding of a model from its configuration."""
    length = read("native", native)
    read("scale_from", scale_from)
    # After the checks: transformers takes seconds to import.
    from longeval.models import load
    from longeval.models.resolve import resolve
    from longeval.models.scaling import model_rope

    ref = resolve(name, revision=revision, weights=False)
    if ref.kind == "gguf":
        from longeval.export.gguf import config_of  # from the file's header: its weights aren't dequantised for this

        config = config_of(ref, ref.location)
    else:
        config = load.load_config(ref, trust_remote_code=trust_remote_code)
    return model_rope(name, config, native=length, scale_from=scale_from)


def _introduce(model: ModelRope, geometry: Geometry) -> None:
    """Says on stderr what was read of a model, and notes about it."""
    from longeval.values import format_length

    native, shipped = geometry.native_length, model.shipped
    own = shipped.reach if model.scale_from == "shipped" else model.own_native_length
    aside = "" if own in (None, native) else f" (its configuration says {format_length(own)})"
    say(
        f"{model.model}: {model.model_type}, d {geometry.head_dim}, base {geometry.theta:.10g}, "
        f"L {format_length(native)}{aside}, {shipped.describe()}"
    )
    for note in model.notes:
        say(note)
    if geometry.factor == 1 and shipped.reach > native:
        say(
            f"shown up to {format_length(native)}; --factor {shipped.reach / native:g} shows it up to the "
            f"{format_length(shipped.reach)} that it was stretched to"
        )


def _describe(
    name: MethodName, arguments: Mapping[str, Any], length: int, geometry: Geometry, model: ModelRope | None
) -> dict[str, Any]:
    """Describes a method with the given parameters at a sequence length.

    On a model, `none` is the encoding that the model ships with.
    """
    from longeval.rope.analysis.description import describe, describe_tables
    from longeval.rope.build import MethodName, read_arguments

    if model is None:
        method, resonance = read_arguments(name, arguments)
        return describe(name.canonical, geometry, method, length, resonance=resonance)
    # A model may be shipped with rounded wavelengths; this is the same model without rounding.
    unrounded = dataclasses.replace(model, shipped=model.shipped.unrounded())
    base = MethodName(base=name.base, resonance=False)
    own = {key: value for key, value in arguments.items() if key in base.parameter_fields}
    return describe_tables(
        name.canonical,
        geometry,
        unrounded=unrounded.tables(base, geometry, own)(length),
        table=model.tables(name, geometry, arguments)(length),
        length=length,
    )
