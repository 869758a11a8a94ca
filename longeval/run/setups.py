"""One method on one model, set up for one length: its table, what decides a value, and what to say of it first.

A setting that nothing would heed is refused here, and what a user should know of the others is said before anything
starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from longeval.backends.base import AnyRequest, Server, capabilities
from longeval.errors import LongEvalError
from longeval.request import ModelRequest
from longeval.rope.base import METHODS, RopeTable
from longeval.rope.build import MethodName, parse_method_name
from longeval.run.cell import Follows
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


FOLLOWS_FACTOR = Follows(
    setting="factor",
    of="pe",
    says="s is {new} now, since it follows from the longest length; stored cells were computed with s = {old}, another "
    "table, so they don't serve here. {flag} {old} keeps it",
)
"""What methods that stretch say where stored cells have another factor."""


def ask_server(spec: AnyRequest) -> tuple[AnyRequest, Server | None]:
    """The request with what its server says of itself, and the server; as it is and None where the model runs here.

    Raises:
        LongEvalError: The server can't be reached, or doesn't have what the request names.
    """
    connect = capabilities(spec.backend).connect
    return (spec, None) if connect is None else connect(spec)


def check_pin(spec: ModelRequest, names: Sequence[MethodName], models: Sequence[PreparedModel]) -> None:
    """Raises LongEvalError for `--pin-length` where no method has more than one table."""
    if spec.pin_length is not None and not any(m.rope.length_dependent(name) for m in models for name in names):
        raise LongEvalError(
            f"--pin-length {format_length(spec.pin_length)}: would be ignored, "
            f"{', '.join(name.canonical for name in names)} have one table for all lengths",
            "Leave it out.",
        )


def method_names(
    pe: Sequence[str], pe_args: Mapping[str, Any], factor: float | Literal["each"] | None
) -> list[MethodName]:
    """The methods of a request; a factor or parameters that none of them takes would be ignored: an error.

    Args:
        pe: Their names.
        pe_args: Parameters by name of the method, without resonance.
        factor: The factor s, where it is given.
    """
    names = [parse_method_name(name) for name in pe]
    asked = {name.base for name in names}
    for base in pe_args:
        METHODS.lookup(base)
        if base not in asked:
            raise LongEvalError(f"--pe-arg {base}.…: {base} is not among --pe {','.join(pe)}", "Remove one.")
    if factor is not None and not any(name.method.uses_factor for name in names):
        shown = factor if isinstance(factor, str) else f"{factor:g}"
        raise LongEvalError(
            f"--factor {shown}: would be ignored, it changes nothing under --pe {', '.join(pe)}",
            "Leave it out, or ask for a method that it stretches, such as yarn, as well.",
        )
    return names


def setting_notes(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> list[str]:
    """What a user should know of the settings before anything starts."""
    remote = capabilities(spec.backend).remote
    notes = [
        None if remote else _stretch_note(spec, names, model),  # a server's own stretch isn't known
        _pin_note(spec, names, model),
        _server_note(spec, names, model) if remote else None,
    ]
    return [note for note in notes if note]


def _stretch_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> str | None:
    """Says where methods that stretch have nothing to stretch."""
    stretched = [name.canonical for name in names if name.method.uses_factor]
    if not stretched or set(factors(spec, model.native_length).values()) != {1.0}:
        return None
    return (
        f"{', '.join(stretched)}: s = 1 at these lengths, nothing is stretched (the native length is "
        f"{format_length(model.native_length)}; --factor or longer --lengths would)"
    )


def _pin_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> str | None:
    """Says where a method is pinned to less than what it is measured at."""
    pinned = [name.canonical for name in names if model.rope.length_dependent(name)]
    if spec.pin_length is None or not pinned or spec.pin_length >= spec.lengths[-1]:
        return None
    return (
        f"--pin-length {format_length(spec.pin_length)}: is shorter than the longest window, "
        f"{format_length(spec.lengths[-1])}; longer ones get that table too ({', '.join(pinned)})"
    )


def _server_note(spec: ModelRequest, names: Sequence[MethodName], model: PreparedModel) -> str:
    """Says what a method is where a server computes."""
    stretch = ", ".join(f"{s:g}" for s in sorted(set(factors(spec, model.native_length).values())))
    labels = [f"{name.canonical} (s = {stretch})" if name.method.uses_factor else name.canonical for name in names]
    return (
        f"--backend {spec.backend}: {spec.served_model} at {spec.base_url} rotates as it was started. longeval applies "
        f"nothing of --pe there and can't check what is: {', '.join(labels)} only labels the results, right or wrong"
    )


def dtype_of(spec: ModelRequest, model: PreparedModel) -> str:
    """The precision that results are recorded with: a server's own isn't known, and this machine's decides nothing."""
    return "unknown" if capabilities(spec.backend).remote else model.dtype


def factors(spec: ModelRequest, native_length: int) -> dict[int, float]:
    """The factor s of every length."""
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
    """Sequence length → table."""
    static: bool
    """Whether that is the same table for every sequence up to the window's length."""
    params: dict[str, Any]
    """The settings of model and method that decide a value."""


def setups(spec: ModelRequest, model: PreparedModel, names: Sequence[MethodName]) -> Iterator[Setup]:
    """Every method at every length, in this order; LongEvalError where a method can't have its parameters."""
    factor_of, backend = factors(spec, model.native_length), capabilities(spec.backend)
    for name in names:
        for length in spec.lengths:
            arguments = spec.pe_args.get(name.base, {})
            geometry = dataclasses.replace(model.geometry, factor=factor_of[length])
            table = model.rope.tables(name, geometry, arguments)
            dependent = model.rope.length_dependent(name)
            # Their tables change with n in one direction only: equal at both ends is equal in between.
            static = not dependent or table(length).same_as(table(2))
            # A pin holds at every length, also where the method alone would still be what it is at short ones.
            if backend.one_table and dependent and (spec.pin_length is not None or not static):
                table, static = _pinned(spec, name, length, table), True
            yield Setup(
                pe=name,
                factor=geometry.factor if name.method.uses_factor else None,
                length=length,
                table=table,
                static=static,
                params=_model_params(spec, model, dataclasses.asdict(model.rope.parameters(name, arguments)))
                | backend.params(spec, dependent),
            )


def _pinned(
    spec: ModelRequest, name: MethodName, length: int, table: Callable[[int], RopeTable]
) -> Callable[[int], RopeTable]:
    """The one table that an engine can hold of a method that has another one at every length."""
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
        "shipped_rope": None if rope.shipped.base == "none" else rope.shipped.rope_type,
        "scale_from": None if rope.shipped.base == "none" else rope.scale_from,
        "layers": rope.layers if rope.config.by_layer_type else None,
        "bos": model.bos,
        **({} if model.has_usual_prefix else {"prefix": list(model.prefix)}),
        **({"parse_special": True} if spec.parse_special else {}),
        "seed": spec.seed,
        "attn": model.attn,
        "weights": model.weights_digest,
        "tokenizer": model.tokenizer_digest,
    }
