"""Builds a RopeTable from names and settings as users write them, for every command and backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.errors import LongEvalError, did_you_mean
from longeval.rope.base import METHODS, Geometry, Method, RopeTable, check_table
from longeval.rope.parameters import convert_value, make_parameters
from longeval.rope.resonance import resonate

__all__ = ["MethodName", "build_table", "make_parameters", "method_names", "parse_method_name", "parse_pe_args"]

_PREFIX = "resonance_"


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodName:
    """A name of `--pe`, taken apart."""

    base: str
    """The registered method."""
    resonance: bool
    """Whether its wavelengths are rounded afterwards."""

    @property
    def canonical(self) -> str:
        """The one spelling: `none`, `resonance`, `yarn`, `resonance_yarn`."""
        if not self.resonance:
            return self.base
        return "resonance" if self.base == "none" else _PREFIX + self.base

    @property
    def method(self) -> Method:
        """The registered method."""
        return METHODS[self.base]


def method_names() -> tuple[str, ...]:
    """All canonical names: every method, and its resonance form right after it."""
    return tuple(
        MethodName(base=base, resonance=resonance).canonical for base in METHODS for resonance in (False, True)
    )


def parse_method_name(name: str, *, flag: str = "--pe") -> MethodName:
    """Takes a canonical method name apart.

    Raises:
        LongEvalError: `resonance_none` (its name is `resonance`), or an unknown name, with suggestions.
    """
    if name == "resonance":
        return MethodName(base="none", resonance=True)
    if name == _PREFIX + "none":
        raise LongEvalError(
            f"{flag} {name}: not a method's name", "Use resonance: the model's own frequencies, rounded."
        )
    base = name.removeprefix(_PREFIX)
    if base not in METHODS:
        raise LongEvalError(f"{flag} {name}: unknown method", did_you_mean(name, method_names()))
    return MethodName(base=base, resonance=name != base)


def parse_pe_args(items: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads repeated `--pe-arg METHOD.PARAMETER=VALUE`.

    Args:
        items: What was given, e.g. `yarn.beta_fast=16` or `longrope.long_factor=@factors.json`.
        names: The methods asked for; a setting of `yarn` goes to `yarn` and `resonance_yarn` alike.

    Returns:
        The given values: base method → parameter name → value (float, tuple of floats, word or None).

    Raises:
        LongEvalError: An item has another form, an unknown method, one that was not asked for, an unknown parameter, or
            an unreadable value; or a parameter has two values.
    """
    asked = {parse_method_name(name).base for name in names}
    values: dict[str, dict[str, Any]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        base, dot, parameter = key.strip().partition(".")
        if not (equals and dot and base and parameter and text.strip()):
            raise LongEvalError(
                f"--pe-arg {item}: not of the form METHOD.PARAMETER=VALUE", "Write --pe-arg yarn.beta_fast=32."
            )
        base = _settable(item, base, asked)
        value = convert_value(base, parameter, text.strip())
        given = values.setdefault(base, {})
        if parameter in given and given[parameter] != value:
            raise LongEvalError(
                f"--pe-arg {item}: {base}.{parameter} is given twice, with another value", "Give it once."
            )
        given[parameter] = value
    return values


def build_table(name: str, geometry: Geometry, parameters: Any = None, seq_len: int | None = None) -> RopeTable:
    """The table of a method, rounded last if the name says resonance.

    Args:
        name: Canonical method name.
        geometry: Rotary geometry, native length and factor.
        parameters: The method's parameters dataclass; its defaults if None.
        seq_len: Current sequence length n in tokens, at least 1; only length-dependent methods use it. Default: the
            target length s·L.

    Returns:
        Frequencies of shape (F,), attention factor, and periods where they were rounded.

    Raises:
        LongEvalError: Unknown name, a parameter that is missing, or a setting for which the method is undefined.
    """
    parsed = parse_method_name(name)
    if parameters is None:
        parameters = make_parameters(parsed.base, {})
    if seq_len is None:
        seq_len = geometry.target_length
    assert isinstance(parameters, parsed.method.parameters) and seq_len >= 1
    settings = _settings(name, geometry, parameters, seq_len)
    try:
        with np.errstate(all="ignore"):  # what overflows is found in the table
            table = parsed.method.compute(geometry, parameters, seq_len)
    except (ArithmeticError, ValueError) as error:
        raise LongEvalError(f"{settings}: {error}", "Use a less extreme value.") from error
    if geometry.start is not None:
        table = dataclasses.replace(table, attention_factor=table.attention_factor * geometry.start_attention_factor)
    check_table(table, max(seq_len, geometry.native_length), settings)
    return resonate(table) if parsed.resonance else table


def _settings(name: str, geometry: Geometry, parameters: Any, seq_len: int) -> str:
    """The flags that lead to a table: parameters that differ from their defaults, then the geometry."""
    base = parse_method_name(name).base
    own = [
        f"--pe-arg {base}.{item.name}={getattr(parameters, item.name)}"[:100]
        for item in dataclasses.fields(parameters)
        if getattr(parameters, item.name) != item.default
    ]
    given = f"--theta {geometry.theta:g}, --native {geometry.native_length}, --factor {geometry.factor:g}"
    return ", ".join((f"--pe {name}", *own, given, f"length {seq_len}"))


def _settable(item: str, base: str, asked: set[str]) -> str:
    """The base method of a setting, known and asked for; else LongEvalError."""
    if base.startswith(_PREFIX) or base == "resonance":
        meant = base.removeprefix(_PREFIX)
        remedy = f"Write --pe-arg {meant}.…: it also goes to {_PREFIX}{meant}." if meant in METHODS else ""
        raise LongEvalError(
            f"--pe-arg {item}: parameters belong to the method without resonance", remedy or "Resonance has none."
        )
    if base not in METHODS:
        raise LongEvalError(f"--pe-arg {item}: unknown method {base}", did_you_mean(base, METHODS))
    if base not in asked:
        raise LongEvalError(
            f"--pe-arg {item}: {base} is not among the methods asked for", f"Add {base} to --pe or leave this out."
        )
    return base
