"""Parameters of named things, such as methods and augmentations, that users set with a repeatable flag or in YAML.

A dataclass declares the parameters of one thing, their types and defaults; nothing else knows them. Values are text
(`--pe-arg yarn.beta_fast=16`) or typed, as in YAML. Messages name a parameter in the form in which users set it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from longeval.errors import LongEvalError, check_word, did_you_mean, reason
from longeval.values import parse_length


def parameter_texts(items: Sequence[str], *, flag: str, form: str, example: str) -> dict[str, dict[str, str]]:
    """Reads the values of a repeatable flag without knowing the parameters.

    Args:
        items: The values, such as `longce.context=1k`.
        flag: The flag, such as `--loss-arg`.
        form: What the values must look like, such as `LOSS.PARAMETER=VALUE`.
        example: A value for the remedy.

    Returns:
        Name → parameter → text.

    Raises:
        LongEvalError: An item has another form, or a parameter is given twice with different texts.
    """
    values: dict[str, dict[str, str]] = {}
    for name, parameter, text in _split(items, flag=flag, form=form, example=example):
        _keep(values, name, parameter, text, f"{flag} {name}.{parameter}={text}")
    return values


def _split(items: Sequence[str], *, flag: str, form: str, example: str) -> Iterator[tuple[str, str, str]]:
    """Yields the name, parameter and text of each item."""
    for item in items:
        key, _, text = item.partition("=")
        name, _, parameter = key.strip().partition(".")
        if not (name and parameter and text.strip()):
            raise LongEvalError(f"{flag} {item}: not of the form {form}", f"Write {flag} {example}.")
        yield name, parameter, text.strip()


def _keep(values: dict[str, dict[str, Any]], name: str, parameter: str, value: Any, item: str) -> None:
    """Keeps a value that may be given several times, if it is the same; `item` is the flag with the value."""
    if values.setdefault(name, {}).setdefault(parameter, value) != value:
        raise LongEvalError(f"{item}: {name}.{parameter} is given twice with different values", "Give it once.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterFlag:
    """A repeatable flag that sets parameters of things that another flag names."""

    flag: str
    """The flag, such as `--pe-arg`."""
    names_flag: str
    """The flag that names the things, such as `--pe`."""
    noun: str
    """What the things are, such as `method`."""
    example: str
    """A value for messages, such as `yarn.beta_fast=32`."""
    known: Collection[str]
    """The names of all things."""
    kind: Callable[[str], type]
    """Name → the dataclass of its parameters: numbers, whole numbers (or else words), words, or tuples of numbers."""

    def parse(self, items: Sequence[str], asked: Collection[str]) -> dict[str, dict[str, Any]]:
        """Reads the values of the flag.

        Args:
            items: The values, e.g. `yarn.beta_fast=16` or `longrope.long_factor=@factors.json`.
            asked: The names that were asked for.

        Returns:
            Name → parameter → value.

        Raises:
            LongEvalError: An item has another form, an unknown name or one that is not among `asked`, an unknown
                parameter, or an unreadable or impossible value; or a parameter is given twice with different values.
        """
        values: dict[str, dict[str, Any]] = {}
        form = f"{self.noun.upper()}.PARAMETER=VALUE"
        for name, parameter, text in _split(items, flag=self.flag, form=form, example=self.example):
            item = f"{self.flag} {name}.{parameter}={text}"
            if name not in self.known:
                raise LongEvalError(f"{item}: {name} is not a known {self.noun}", did_you_mean(name, self.known))
            if name not in asked:
                raise LongEvalError(
                    f"{item}: {name} is not among the {self.noun}s asked for",
                    f"Add {name} to {self.names_flag} or leave this out.",
                )
            _keep(values, name, parameter, self.convert(name, parameter, text), item)
        for name, given in values.items():
            if self._required(name) <= given.keys():  # a model may have the rest, as with longrope
                self.make(name, given)  # refuses a number out of range before anything is loaded
        return values

    def _required(self, name: str) -> set[str]:
        """The parameters of a thing that have no default."""
        fields = dataclasses.fields(self.kind(name))
        return {field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING}

    def make(self, name: str, values: Mapping[str, Any]) -> Any:
        """Makes the parameters of the thing called `name` from their defaults and `values`, text or typed.

        Raises:
            LongEvalError: Unknown name or parameter, unreadable or impossible value.
        """
        check_word(self.names_flag, name, self.known)
        converted = {parameter: self.convert(name, parameter, value) for parameter, value in values.items()}
        try:
            return self.kind(name)(**converted)
        except LongEvalError as error:
            raise LongEvalError(f"{self.flag} {name}.{error.problem}", error.remedy) from error

    def convert(self, name: str, parameter: str, value: Any) -> Any:
        """Converts a value, typed or text, to the type of a parameter. `@file.json` stands for the value in a file."""
        kind = self.kind(name)
        fields = [field.name for field in dataclasses.fields(kind)]
        if parameter not in fields:
            remedy = did_you_mean(parameter, fields) if fields else f"{name} has no parameters."
            raise LongEvalError(f"{self.flag} {name}.{parameter}: unknown parameter", remedy)
        label = f"{self.flag} {name}.{parameter}={_shown(value)}"
        if isinstance(value, str) and value.startswith("@"):
            value = _read_json(label, value[1:])
        annotation = get_type_hints(kind)[parameter]
        options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        if NoneType in options and (value is None or value == "none"):
            return None
        words = words_of(annotation)
        if value in words:
            return value
        first = next(option for option in options if option is not NoneType)
        try:
            return _converted(label, first, value)
        except LongEvalError as error:
            if not words or get_origin(first) is Literal:
                raise
            raise LongEvalError(f"{error.problem}, or {' or '.join(words)}", error.remedy) from error


def words_of(annotation: Any) -> tuple[str, ...]:
    """The words that a parameter of this type may have: those of each `Literal` in it."""
    options = (annotation, *get_args(annotation))
    return tuple(word for option in options if get_origin(option) is Literal for word in get_args(option))


def _converted(label: str, kind: Any, value: Any) -> Any:
    """A value in the type `kind`; `label` is the flag with the value."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise LongEvalError(f"{label}: unknown", did_you_mean(str(value), get_args(kind)))
        return value
    if get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise LongEvalError(
                f"{label}: not a list", "Write a comma list of numbers, or @file.json with a JSON list."
            )
        return tuple(_number(label, item) for item in items)
    return _whole(label, value) if kind is int else _number(label, value)


def _whole(label: str, value: Any) -> int:
    """A whole number from a number or text, which may be a length such as 4k; the dataclass knows its range."""
    digits = str(value).strip().removeprefix("-")
    try:
        size = parse_length(digits, least=0)
    except LongEvalError:
        raise LongEvalError(f"{label}: must be a whole number", "Write it as 2 or 4k.") from None
    return size if digits == str(value).strip() else -size


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
