"""Builds a RopeTable from the names and settings that users write, for every command and backend.

A method's dataclass alone declares its parameters, their types and defaults; see `longeval.parameters`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.errors import LongEvalError, did_you_mean
from longeval.parameters import ParameterFlag
from longeval.rope.base import METHODS, Geometry, Method, RopeTable, check_table
from longeval.rope.resonance import resonate

ALL = "all"
"""In a list of methods: every method, with and without resonance, as far as it can be used."""

_PREFIX = "resonance_"


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodName:
    """The parts of a method name of `--pe`."""

    base: str
    """The registered method."""
    resonance: bool
    """Whether its wavelengths are rounded."""

    @property
    def canonical(self) -> str:
        """The method's only valid name, such as `none`, `resonance`, `yarn`, `resonance_yarn`."""
        if not self.resonance:
            return self.base
        return "resonance" if self.base == "none" else _PREFIX + self.base

    @property
    def method(self) -> Method:
        """The registered method."""
        return METHODS[self.base]


def method_names() -> tuple[str, ...]:
    """All canonical names: every method, followed by its resonance form."""
    return tuple(
        MethodName(base=base, resonance=resonance).canonical for base in METHODS for resonance in (False, True)
    )


def listed_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a list of methods, with every method in place of `all`, without repeats."""
    return tuple(dict.fromkeys(each for name in names for each in (method_names() if name == ALL else (name,))))


def usable(
    names: Sequence[str], given: Container[str], build: Callable[[MethodName], object]
) -> tuple[list[MethodName], str | None]:
    """The methods of a list; of `all`, those that can't be used are left out.

    A method that is named beside `all`, or that has parameters, is not left out: what is wrong with it is an error.

    Args:
        names: Methods as the user listed them, with `all` among them.
        given: Methods, without resonance, whose parameters the user gave.
        build: Builds whatever is needed of a method; raises LongEvalError where the method can't be used.

    Returns:
        The methods in order, and a note that names those that were left out, with reasons; None where none was.

    Raises:
        LongEvalError: By `build`, if a method that the user named can't be used, or if no method can.
    """
    found: list[MethodName] = []
    why: dict[str, list[str]] = {}
    first: LongEvalError | None = None
    for name in map(parse_method_name, listed_names(names)):
        try:
            build(name)
        except LongEvalError as error:
            if name.canonical in names or name.base in given:
                raise
            first = first or error
            why.setdefault(re.sub(r"^--pe \w+: ", "", error.problem), []).append(name.canonical)
        else:
            found.append(name)
    if first is not None and not found:
        raise first
    left_out = "; ".join(f"{', '.join(methods)} ({problem})" for problem, methods in why.items())
    return found, f"'{ALL}' leaves out {left_out}" if why else None


def parse_method_name(name: str, *, flag: str = "--pe") -> MethodName:
    """Splits a canonical method name into method and resonance.

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


def build_table(name: str, geometry: Geometry, parameters: Any = None, seq_len: int | None = None) -> RopeTable:
    """Builds the table of a method; if the name says resonance, rounds its wavelengths at the end.

    Args:
        name: Canonical method name.
        geometry: Rotary geometry, native length and factor.
        parameters: The method's parameters dataclass; its defaults if None.
        seq_len: Current sequence length n in tokens, at least 1; only length-dependent methods use it. Default: the
            target length s·L.

    Returns:
        Frequencies of shape (F,), attention factor, and periods if wavelengths are rounded.

    Raises:
        LongEvalError: Unknown name, a parameter that is missing, or a setting for which the method is undefined.
    """
    parsed = parse_method_name(name)
    if parameters is None:
        parameters = make_parameters(parsed.base, {})
    if seq_len is None:
        seq_len = geometry.target_length
    assert isinstance(parameters, parsed.method.parameters) and seq_len >= 1
    settings = _settings(parsed, geometry, parameters, seq_len)
    try:
        with np.errstate(all="ignore"):  # check_table finds overflows
            table = parsed.method.compute(geometry, parameters, seq_len)
    except (ArithmeticError, ValueError) as error:
        raise LongEvalError(f"{settings}: {error}", "Use a less extreme value.") from error
    if geometry.start is not None:
        table = dataclasses.replace(table, attention_factor=table.attention_factor * geometry.start_attention_factor)
    check_table(table, max(seq_len, geometry.native_length), settings)
    return resonate(table) if parsed.resonance else table


def _settings(name: MethodName, geometry: Geometry, parameters: Any, seq_len: int) -> str:
    """The flags of a table, for messages; parameters with their default value are left out."""
    own = [
        f"--pe-arg {name.base}.{item.name}={getattr(parameters, item.name)}"[:100]
        for item in dataclasses.fields(parameters)
        if getattr(parameters, item.name) != item.default
    ]
    given = f"--theta {geometry.theta:g}, --native {geometry.native_length}, --factor {geometry.factor:g}"
    return ", ".join((f"--pe {name.canonical}", *own, given, f"length {seq_len}"))


_PE_ARG = ParameterFlag(
    flag="--pe-arg",
    names_flag="--pe",
    noun="method",
    example="yarn.beta_fast=32",
    known=METHODS,
    kind=lambda base: METHODS[base].parameters,
)


def parse_pe_args(items: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the values of the repeatable flag `--pe-arg METHOD.PARAMETER=VALUE`.

    Args:
        items: The values, e.g. `yarn.beta_fast=16` or `longrope.long_factor=@factors.json`.
        names: The methods of `--pe`; a parameter of `yarn` applies to `yarn` and `resonance_yarn`.

    Returns:
        Base method → parameter name → value (float, tuple of floats, word or None).

    Raises:
        LongEvalError: See `ParameterFlag.parse`.
    """
    for item in items:
        base = item.partition(".")[0].strip()
        if base.startswith(_PREFIX) and (plain := base.removeprefix(_PREFIX)) in METHODS:
            raise LongEvalError(
                f"--pe-arg {item}: parameters belong to the method without resonance",
                f"Write --pe-arg {plain}.…: it also goes to {base}.",
            )
    return _PE_ARG.parse(items, {parse_method_name(name).base for name in listed_names(names)})


def make_parameters(base: str, values: Mapping[str, Any]) -> Any:
    """Makes the parameters dataclass of a method from its defaults and `values`.

    Args:
        base: A registered method's name, without resonance.
        values: Parameter name → value, either typed (numbers, lists) or text as in `--pe-arg`.

    Raises:
        LongEvalError: Unknown parameter, unreadable or impossible value, or a missing parameter without default.
    """
    for field in dataclasses.fields(METHODS.lookup(base).parameters):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise LongEvalError(
                f"--pe {base}: needs {field.name}, which has no default",
                f"Give it as --pe-arg {base}.{field.name}=@file.json (a JSON list) or as a comma list of numbers; "
                "a model's config.json holds it.",
            )
    return _PE_ARG.make(base, values)
