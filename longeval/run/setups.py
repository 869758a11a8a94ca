"""Sets up each method on a model for each length: its table, the parameters of its cells, and notes for the user.

Settings that would be ignored are refused here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from longeval.backends.base import AnyRequest, Server, capabilities
from longeval.backends.served import ServedMethod
from longeval.errors import LongEvalError
from longeval.request import ModelRequest
from longeval.rope.base import METHODS, RopeTable
from longeval.rope.build import ALL, MethodName, listed_names, parse_method_name, usable, with_parameters
from longeval.rope.resonance import RESONANCE
from longeval.run.cell import Follows
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


_Request = TypeVar("_Request", bound=ModelRequest)
FOLLOWS_FACTOR = Follows(
    setting="factor",
    of="pe",
    says="s is {new} now, since it follows from the longest length; stored cells were computed with s = {old}, another "
    "table, so they don't serve here. {flag} {old} keeps it",
)
"""What methods that stretch say where stored cells have another factor."""


def ask_server(spec: AnyRequest) -> tuple[AnyRequest, Server | None]:
    """Asks the server of a request, if its backend has one, for its model.

    Returns:
        The request, with the model's name and address at the server; and the server, or None if the model runs here.

    Raises:
        LongEvalError: The server can't be reached, or doesn't have the model.
    """
    connect = capabilities(spec.backend).connect
    return (spec, None) if connect is None else connect(spec)


def check_pin(spec: ModelRequest, names: Sequence[MethodName], models: Sequence[PreparedModel]) -> None:
    """Raises LongEvalError for `--pin-length` if no method is length-dependent."""
    if spec.pin_length is not None and not any(m.rope.length_dependent(name) for m in models for name in names):
        raise LongEvalError(
            f"--pin-length {format_length(spec.pin_length)}: would be ignored, "
            f"{', '.join(name.canonical for name in names)} have one table for all lengths",
            "Leave it out.",
        )


def method_names(
    pe: Sequence[str], pe_args: Mapping[str, Any], factor: float | Literal["each"] | None
) -> list[MethodName]:
    """The methods of a request, whose parameters and factor must not be ignored.

    Args:
        pe: Their names; `all` stands for every method.
        pe_args: Parameters by name of the method, without resonance, or by `resonance`.
        factor: The factor s, where it is given.
    """
    names = [parse_method_name(name) for name in listed_names(pe)]
    asked = with_parameters(names)
    for base in pe_args:
        if base not in asked:
            if base != RESONANCE:
                METHODS.lookup(base)
            raise LongEvalError(f"--pe-arg {base}.…: {base} is not among --pe {','.join(pe)}", "Remove one.")
    if factor is not None and not any(name.method.uses_factor for name in names):
        shown = factor if isinstance(factor, str) else f"{factor:g}"
        raise LongEvalError(
            f"--factor {shown}: would be ignored, it changes nothing under --pe {', '.join(pe)}",
            "Leave it out, or ask for a method that it stretches, such as yarn, as well.",
        )
    return names


def usable_methods(
    spec: _Request, names: list[MethodName], models: Sequence[PreparedModel]
) -> tuple[_Request, list[MethodName], list[str]]:
    """The request with the methods that all its models can have in place of `all`, those methods, and notes.

    Raises:
        LongEvalError: No method can be used, or one that the user named or gave parameters for can't.
    """
    if ALL not in spec.pe:
        return spec, names, []

    def build(name: MethodName) -> None:
        for model in models:
            try:
                for setup in setups(spec, model, [name]):
                    setup.table(setup.length)
            except LongEvalError as error:
                of = f" on {model.name}" if len(models) > 1 else ""
                raise LongEvalError(f"{error.problem}{of}", error.remedy) from error

    found, note = usable(spec.pe, spec.pe_args, build)
    return spec.replaced(pe=[name.canonical for name in found]), found, [] if note is None else [note]


def setting_notes(
    spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel, server: Server | None = None
) -> list[str]:
    """What a user should know of the settings before anything starts.

    Args:
        spec: The request.
        names: Its methods.
        model: One of its models.
        server: Where that runs; None: here.

    Raises:
        LongEvalError: The server says that it computes with another method.
    """
    remote = capabilities(spec.backend).remote
    notes = [
        None if remote else _stretch_note(spec, names, model),  # a server's factor is unknown
        _pin_note(spec, names, model),
        None if server is None else _server_note(spec, names, model, server),
    ]
    return [note for note in notes if note]


def _stretch_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> str | None:
    """A note if the factor is 1, so that methods with a factor change nothing."""
    stretched = [name.canonical for name in names if name.method.uses_factor]
    if not stretched or set(factors(spec, model.native_length).values()) != {1.0}:
        return None
    return (
        f"{', '.join(stretched)}: s = 1 at these lengths, nothing is stretched (the native length is "
        f"{format_length(model.native_length)}; --factor or longer --lengths would)"
    )


def _pin_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> str | None:
    """A note if a method is pinned to a length that is shorter than the longest window."""
    pinned = [name.canonical for name in names if model.rope.length_dependent(name)]
    if spec.pin_length is None or not pinned or spec.pin_length >= spec.lengths[-1]:
        return None
    return (
        f"--pin-length {format_length(spec.pin_length)}: is shorter than the longest window, "
        f"{format_length(spec.lengths[-1])}; longer ones get that table too ({', '.join(pinned)})"
    )


def _server_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel, server: Server) -> str:
    """Says what a method is where a server computes: proven by what it says of itself, or a label."""
    asked = [
        (
            ServedMethod(
                pe=one.pe.canonical,
                parameters=one.params["method"],
                factor=one.factor,
                native_length=model.native_length,
                length=one.length,
            ),
            one.table(one.length),
        )
        for one in setups(spec, model, names)
    ]
    proven = [server.proves(method, table) for method, table in asked]  # each of them may be refused
    if all(proven):
        return (
            f"--backend {spec.backend}: {spec.served_model} at {spec.base_url} says that it computes with "
            f"{asked[0][0].described()}, and its engine holds the table of --pe: the digest is recorded"
        )
    stretch = ", ".join(f"{s:g}" for s in sorted(set(factors(spec, model.native_length).values())))
    labels = [f"{name.canonical} (s = {stretch})" if name.method.uses_factor else name.canonical for name in names]
    return (
        f"--backend {spec.backend}: {spec.served_model} at {spec.base_url} rotates as it was started. longeval applies "
        f"nothing of --pe there and can't check what is: {', '.join(labels)} only labels the results, right or wrong"
    )


def dtype_of(spec: ModelRequest, model: PreparedModel) -> str:
    """The precision in records; that of a server is unknown."""
    return "unknown" if capabilities(spec.backend).remote else model.dtype


def factors(spec: ModelRequest, native_length: int) -> dict[int, float]:
    """The factor s for each length."""
    if spec.factor == "each":
        return {length: max(1.0, length / native_length) for length in spec.lengths}
    one = max(1.0, spec.lengths[-1] / native_length) if spec.factor is None else spec.factor
    return dict.fromkeys(spec.lengths, one)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One method on one model, set up for one length."""

    pe: MethodName
    factor: float | None
    """None for methods that don't use it."""
    length: int
    """Window length in tokens."""
    table: Callable[[int], RopeTable]
    """Returns the table for a sequence length."""
    static: bool
    """Whether the table is the same for every sequence up to the window's length."""
    params: dict[str, Any]
    """The settings of model and method that determine a value."""


def setups(spec: ModelRequest, model: PreparedModel, names: Sequence[MethodName]) -> Iterator[Setup]:
    """Yields a setup for every method at every length, method by method.

    Raises:
        LongEvalError: A method can't have its parameters.
    """
    factor_of, backend = factors(spec, model.native_length), capabilities(spec.backend)
    for name in names:
        for length in spec.lengths:
            arguments = name.arguments(spec.pe_args)
            geometry = dataclasses.replace(model.geometry, factor=factor_of[length])
            table = model.rope.tables(name, geometry, arguments)
            dependent = model.rope.length_dependent(name)
            # Tables change monotonically with n, so tables that are equal at both ends are equal in between.
            static = not dependent or table(length).same_as(table(2))
            # A pinned length applies to every window, even to short ones for which the table would be static.
            if backend.one_table and dependent and (spec.pin_length is not None or not static):
                table, static = _pinned(spec, name, length, table), True
            yield Setup(
                pe=name,
                factor=geometry.factor if name.method.uses_factor else None,
                length=length,
                table=table,
                static=static,
                params=_model_params(spec, model, model.rope.parameters(name, arguments).to_mapping())
                | backend.params(spec, dependent),
            )


def _pinned(
    spec: ModelRequest, name: MethodName, length: int, table: Callable[[int], RopeTable]
) -> Callable[[int], RopeTable]:
    """The table function of a length-dependent method that is pinned to one length, for engines with one table."""
    if spec.pin_length is None:
        raise LongEvalError(
            f"--pe {name.canonical}: has another table at every length, and --backend {spec.backend} holds one "
            f"(asked for up to {format_length(length)})",
            "Pin it to one length, --pin-length 16k (recorded; other windows then get that table too), or use "
            "--backend hf.",
        )
    pin = spec.pin_length
    return lambda _: table(pin)


def _model_params(spec: ModelRequest, model: PreparedModel, method: dict[str, Any]) -> dict[str, Any]:
    rope = model.rope
    return {
        "native_length": model.native_length,
        "own_native_length": rope.own_native_length,
        "theta": model.geometry.theta,
        "head_dim": model.geometry.head_dim,
        "method": method,
        "shipped_rope": None if rope.shipped.is_plain else rope.shipped.label,
        "scale_from": None if rope.shipped.is_plain else rope.scale_from,
        "layers": rope.layers if rope.config.by_layer_type else None,
        "bos": model.bos,
        **({} if model.has_usual_prefix else {"prefix": list(model.prefix)}),
        **({"parse_special": True} if spec.parse_special else {}),
        "seed": spec.seed,
        "attn": model.attn,
        **({} if model.quantisation is None else {"quantization": model.quantisation.params}),
        "weights": model.weights_digest,
        **({} if model.ref.adapter is None else model.ref.adapter.params),
        "tokenizer": model.tokenizer_digest,
    }
