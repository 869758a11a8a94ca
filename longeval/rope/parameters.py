"""Converts written values to a method's parameters, from flags (`--pe-arg`, text) and from YAML (typed).

The dataclass of a method is the only place that knows its fields, their types and defaults; messages name the field
as a user would set it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from longeval.errors import LongEvalError, did_you_mean, reason
from longeval.rope.base import METHODS


def check_positive(name: str, value: float) -> None:
    """Raises LongEvalError, naming the field, unless `value` is finite and greater than 0."""
    if not (math.isfinite(value) and value > 0):
        raise LongEvalError(
            f"{name} {value:g}: must be a finite number greater than 0", "Correct this setting or leave it out."
        )


def make_parameters(base: str, values: Mapping[str, Any]) -> Any:
    """The parameters dataclass of a method, from its defaults and `values`.

    Args:
        base: A registered method's name, without resonance.
        values: Field name to value: typed as from YAML (numbers, lists), or text as from `--pe-arg`.

    Raises:
        LongEvalError: Unknown field, unreadable or impossible value, or a field without default that is missing.
    """
    converted = {name: convert_value(base, name, value) for name, value in values.items()}
    cls = METHODS.lookup(base).parameters
    for field in dataclasses.fields(cls):
        if field.name not in converted and field.default is dataclasses.MISSING:
            raise LongEvalError(
                f"--pe {base}: needs {field.name}, which has no default",
                f"Give it as --pe-arg {base}.{field.name}=@file.json (a JSON list) or as a comma list of numbers; "
                "a model's config.json holds it.",
            )
    try:
        return cls(**converted)
    except LongEvalError as error:
        raise LongEvalError(f"--pe-arg {base}.{error.problem}", error.remedy) from error


def convert_value(base: str, name: str, value: Any) -> Any:
    """One value in the type of the field `name` of method `base`.

    Text is read as a number, a comma list, or `@file.json`; the result is a float, a tuple of floats, a word or None.

    Raises:
        LongEvalError: The method has no such field, or the value can't be read as its type.
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
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
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
