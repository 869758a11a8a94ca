"""The method of a server: one table for all prompts, chosen before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One method, set up for one length."""

    table: RopeTable
    length: int
    """Longest prompt with its answer, tokens."""
    description: str
    """Method, factor, pin and length, for people."""
    notes: tuple[str, ...]
    """What a user should know."""


def served_method(
    model: PreparedModel,
    name: MethodName,
    *,
    factor: float | None,
    length: int | None,
    arguments: Mapping[str, Any],
    pin: int | None,
) -> Served:
    """The method as a server has it.

    Args:
        model: The model.
        name: The method.
        factor: s; None: length / native length, at least 1.
        length: Longest prompt with its answer, tokens; None: s times native.
        arguments: The method's own parameters.
        pin: The length, in tokens, whose table a length-dependent method has for all prompts.

    Raises:
        LongEvalError: A factor or a pin that nothing heeds, or a method that needs a pin.
    """
    if factor is not None and length is not None and not model.rope.uses_factor(name):
        raise LongEvalError(
            f"--factor {factor:g}: would be ignored, --length {length} is given and {name.canonical} isn't stretched",
            "Leave one of the two out.",
        )
    tokens = round((factor or 1.0) * model.native_length) if length is None else length
    s = max(1.0, tokens / model.native_length) if factor is None else factor
    tables = model.rope.tables(name, dataclasses.replace(model.geometry, factor=s), arguments)
    dependent = model.rope.length_dependent(name)
    if pin is not None and not dependent:
        raise LongEvalError(
            f"--pin-length {format_length(pin)}: would be ignored, {name.canonical} has one table for all lengths",
            "Leave it out.",
        )
    if pin is None and dependent and not tables(tokens).same_as(tables(2)):
        raise LongEvalError(
            f"--pe {name.canonical}: has another table at every length, and a vLLM engine holds one",
            "Pin it to one length: --pin-length 16k.",
        )
    parts = [name.canonical]
    parts += [f"s = {s:g}"] if model.rope.uses_factor(name) else []
    parts += [f"pinned to its table at {format_length(pin)}"] if pin is not None else []
    return Served(
        table=tables(tokens if pin is None else pin),
        length=tokens,
        description=", ".join((*parts, f"up to {format_length(tokens)} tokens")),
        notes=(*_stretch_notes(name, s, model), *_pin_notes(pin, tokens)),
    )


def _stretch_notes(name: MethodName, s: float, model: PreparedModel) -> tuple[str, ...]:
    """A note where a method that stretches has nothing to stretch."""
    if not model.rope.uses_factor(name) or s != 1:
        return ()
    return (
        f"{name.canonical}: s = 1, nothing is stretched (the native length is {format_length(model.native_length)}; "
        "--factor or a longer --length would)",
    )


def _pin_notes(pin: int | None, tokens: int) -> tuple[str, ...]:
    """A note where prompts may be longer than what their table is of."""
    if pin is None or pin >= tokens:
        return ()
    return (
        f"--pin-length {format_length(pin)}: is shorter than the longest prompt, {format_length(tokens)}; prompts "
        "beyond it get that table too",
    )
