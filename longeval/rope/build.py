"""Builds a RopeTable from the names and settings that users write, for every command and backend.

A method's dataclass alone declares its parameters, their types and defaults; see `longeval.parameters`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from longeval.errors import LongEvalError, did_you_mean
from longeval.parameters import ParameterFlag
from longeval.rope.base import METHODS, Geometry, Method, RopeTable, check_table
from longeval.rope.resonance import RESONANCE, ResonanceParameters, resonate

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

    @property
    def parameter_fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The parameters that this method has, by name: its own, and in a resonance form those of resonance."""
        kinds = (self.method.parameters, *((ResonanceParameters,) if self.resonance else ()))
        return {field.name: field for kind in kinds for field in dataclasses.fields(kind)}

    def arguments(self, pe_args: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Those parameters of `--pe-arg`, as `parse_pe_args` returns them, that apply to this method."""
        return {**pe_args.get(self.base, {}), **(pe_args.get(RESONANCE, {}) if self.resonance else {})}


class Parameters(NamedTuple):
    """All parameters of a method of `--pe`."""

    method: Any
    """The method's dataclass."""
    resonance: ResonanceParameters
    """Those of the rounding; their defaults for a method without resonance."""

    def to_mapping(self) -> dict[str, Any]:
        """Name → value, as records hold them; of resonance only what is not the default, as cells had none before."""
        own, usual = dataclasses.asdict(self.resonance), dataclasses.asdict(ResonanceParameters())
        return dataclasses.asdict(self.method) | {name: own[name] for name in own if own[name] != usual[name]}


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


def build_table(
    name: str,
    geometry: Geometry,
    parameters: Any = None,
    seq_len: int | None = None,
    *,
    resonance: ResonanceParameters | None = None,
) -> RopeTable:
    """Builds the table of a method; if the name says resonance, lets its features repeat exactly at the end.

    Args:
        name: Canonical method name.
        geometry: Rotary geometry, native length and factor.
        parameters: The method's parameters dataclass; its defaults if None.
        seq_len: Current sequence length n in tokens, at least 1; only length-dependent methods use it. Default: the
            target length s·L.
        resonance: The parameters of resonance, if the name says it; its defaults if None.

    Returns:
        Frequencies of shape (F,), attention factor, and periods if the name says resonance.

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
    if not parsed.resonance:
        return table
    return resonate(table, (resonance or ResonanceParameters()).longest_period(geometry.native_length))


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
    known=(*METHODS, RESONANCE),
    kind=lambda base: ResonanceParameters if base == RESONANCE else METHODS[base].parameters,
)


def parse_pe_args(items: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the values of the repeatable flag `--pe-arg METHOD.PARAMETER=VALUE`.

    Args:
        items: The values, e.g. `yarn.beta_fast=16` or `longrope.long_factor=@factors.json`.
        names: The methods of `--pe`; a parameter of `yarn` applies to `yarn` and `resonance_yarn`, one of `resonance`
            to every resonance form.

    Returns:
        Base method or `resonance` → parameter name → value (number, tuple of floats, word or None).

    Raises:
        LongEvalError: See `ParameterFlag.parse`.
    """
    asked = with_parameters(map(parse_method_name, listed_names(names)))
    for item in items:
        base = item.partition(".")[0].strip()
        if base == RESONANCE and base not in asked:
            raise LongEvalError(
                f"--pe-arg {item}: none of the methods asked for is a resonance form",
                f"Ask for one, such as {_PREFIX}yarn, or leave this out.",
            )
        if base.startswith(_PREFIX) and (plain := base.removeprefix(_PREFIX)) in METHODS:
            raise LongEvalError(
                f"--pe-arg {item}: parameters belong to the method without resonance",
                f"Write --pe-arg {plain}.…: it also goes to {base}. Those of resonance itself are "
                f"--pe-arg {RESONANCE}.…, for every {_PREFIX}X.",
            )
    return _PE_ARG.parse(items, asked)


def with_parameters(names: Iterable[MethodName]) -> set[str]:
    """The names before the dot of `--pe-arg` that apply to some methods: their bases, and `resonance` if one has it."""
    names = list(names)
    return {name.base for name in names} | ({RESONANCE} if any(name.resonance for name in names) else set())


def read_arguments(name: MethodName, arguments: Mapping[str, Any]) -> Parameters:
    """Makes all parameters of a method from its defaults and `arguments`, typed or text, as `MethodName.arguments` has.

    Raises:
        LongEvalError: See `make_parameters`.
    """
    of_resonance = {field.name for field in dataclasses.fields(ResonanceParameters)} if name.resonance else set()
    method = {key: value for key, value in arguments.items() if key not in of_resonance}
    resonance = {key: value for key, value in arguments.items() if key in of_resonance}
    return Parameters(make_parameters(name.base, method), _PE_ARG.make(RESONANCE, resonance))


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
