"""Builds a RopeTable from the names and settings that users write, for every command and backend.

Parameters are given as text (`--pe-arg yarn.beta_fast=16`) or as typed values, as in YAML. A method's dataclass alone
declares its parameters, their types and defaults. Messages name a parameter in the form in which users set it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from longeval.errors import LongEvalError, did_you_mean, reason
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


def parse_pe_args(items: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the values of the repeatable flag `--pe-arg METHOD.PARAMETER=VALUE`.

    Args:
        items: The values, e.g. `yarn.beta_fast=16` or `longrope.long_factor=@factors.json`.
        names: The methods of `--pe`; a parameter of `yarn` applies to `yarn` and `resonance_yarn`.

    Returns:
        Base method → parameter name → value (float, tuple of floats, word or None).

    Raises:
        LongEvalError: An item has another form, an unknown method or one that is not among `names`, an unknown
            parameter or an unreadable value; or a parameter is given twice with different values.
    """
    asked = {parse_method_name(name).base for name in listed_names(names)}
    values: dict[str, dict[str, Any]] = {}
    for item in items:
        key, _, text = item.partition("=")
        base, _, parameter = key.strip().partition(".")
        if not (base and parameter and text.strip()):
            raise LongEvalError(
                f"--pe-arg {item}: not of the form METHOD.PARAMETER=VALUE", "Write --pe-arg yarn.beta_fast=32."
            )
        if base.startswith(_PREFIX) and base.removeprefix(_PREFIX) in METHODS:
            plain = base.removeprefix(_PREFIX)
            raise LongEvalError(
                f"--pe-arg {item}: parameters belong to the method without resonance",
                f"Write --pe-arg {plain}.…: it also goes to {base}.",
            )
        if base not in METHODS:
            raise LongEvalError(f"--pe-arg {item}: {base} is not a method with parameters", did_you_mean(base, METHODS))
        if base not in asked:
            raise LongEvalError(
                f"--pe-arg {item}: {base} is not among the methods asked for", f"Add {base} to --pe or leave this out."
            )
        value = _convert(base, parameter, text.strip())
        given = values.setdefault(base, {})
        if given.setdefault(parameter, value) != value:
            raise LongEvalError(
                f"--pe-arg {item}: {base}.{parameter} is given twice with different values", "Give it once."
            )
    return values


def make_parameters(base: str, values: Mapping[str, Any]) -> Any:
    """Makes the parameters dataclass of a method from its defaults and `values`.

    Args:
        base: A registered method's name, without resonance.
        values: Parameter name → value, either typed (numbers, lists) or text as in `--pe-arg`.

    Raises:
        LongEvalError: Unknown parameter, unreadable or impossible value, or a missing parameter without default.
    """
    converted = {name: _convert(base, name, value) for name, value in values.items()}
    kind = METHODS.lookup(base).parameters
    for field in dataclasses.fields(kind):
        if field.name not in converted and field.default is dataclasses.MISSING:
            raise LongEvalError(
                f"--pe {base}: needs {field.name}, which has no default",
                f"Give it as --pe-arg {base}.{field.name}=@file.json (a JSON list) or as a comma list of numbers; "
                "a model's config.json holds it.",
            )
    try:
        return kind(**converted)
    except LongEvalError as error:
        raise LongEvalError(f"--pe-arg {base}.{error.problem}", error.remedy) from error


def _convert(base: str, name: str, value: Any) -> Any:
    """Converts a value to the type of parameter `name` of method `base`: float, tuple of floats, word or None.

    Text may be a number, a comma list, or `@file.json`.
    """
    hints = get_type_hints(METHODS.lookup(base).parameters)
    if name not in hints:
        remedy = did_you_mean(name, hints) if hints else f"{base} has no parameters."
        raise LongEvalError(f"--pe-arg {base}.{name}: unknown parameter", remedy)
    label = f"--pe-arg {base}.{name}={_shown(value)}"
    if isinstance(value, str) and value.startswith("@"):
        value = _read_json(label, value[1:])
    annotation = hints[name]
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise LongEvalError(f"{label}: unknown", did_you_mean(str(value), get_args(annotation)))
        return value
    if get_origin(annotation) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise LongEvalError(
                f"{label}: not a list", "Write a comma list of numbers, or @file.json with a JSON list."
            )
        return tuple(_number(label, item) for item in items)
    if annotation is not float and (value is None or value == "none"):
        return None
    return _number(label, value)


def _number(label: str, value: Any) -> float:
    """A finite float from a number or text; booleans are not numbers."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = "" if label.endswith(f"={value}") else f" {_shown(value)} is"
        raise LongEvalError(f"{label}:{shown} not a finite number", "Write it as 32 or 0.5.")
    return number


def _read_json(label: str, path: str) -> Any:
    """The JSON value in a file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise LongEvalError(
            f"{label}: can't read {path} as JSON ({reason(error)})",
            "Give a JSON file that holds the bare value, such as [1.0, 1.05].",
        ) from error


def _shown(value: Any) -> str:
    """A value for a message: one line of at most 40 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."
