"""Reads and checks the `rope_parameters` of our rope types, without importing torch or transformers.

Every message names the rope type and the key. A value of None counts as not given, as in transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from longeval.errors import LongEvalError, did_you_mean
from longeval.parameters import words_of
from longeval.rope.base import METHODS
from longeval.rope.build import MethodName, Parameters, method_names, parse_method_name, read_arguments
from longeval.rope.resonance import RESONANCE, ResonanceParameters

STOCK = ("yarn", "llama3", "longrope")
"""Our names that transformers also has; they remain its own functions."""

REFUSED = {
    "none": "Use default, transformers' name for plain RoPE.",
    **{
        name: f"Use {name.replace('dynamic_', '')} with a factor, one table for all lengths; or measure with "
        f"longeval ppl --pe {name}, where every window has the table for its own length."
        for name in method_names()
        if "dynamic" in name
    },
}
"""Names that are refused when a model is built, each with a remedy."""

ROPE_TYPES: tuple[str, ...] = tuple(name for name in method_names() if name not in {*STOCK, *REFUSED})
"""The rope types that models can be built with once `longeval.hf` is imported."""

NATIVE = "original_max_position_embeddings"
"""The key of L."""

_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", NATIVE)
"""Keys that every rope type may have; `type` is transformers' older name of `rope_type`."""


class RopeSettings(NamedTuple):
    """The content of `rope_parameters` for one of our types."""

    name: MethodName
    arguments: dict[str, Any]
    """The given parameters of the method and of resonance, converted to their types."""
    factor: float
    """s; 1 for methods that don't use it."""
    native_length: int | None
    """L in tokens; None if it isn't given."""


def read_parameters(rope_type: str, given: Mapping[str, Any], *, ignore: Collection[str] = ()) -> RopeSettings:
    """Reads and checks the `rope_parameters` of one of our types.

    Args:
        rope_type: One of ROPE_TYPES.
        given: The flat dictionary, or the dictionary of one layer type.
        ignore: Keys that belong to the model's family and not to the method.

    Raises:
        LongEvalError: The type is refused; a key is missing, unknown or would be ignored; or a value is impossible.
    """
    if rope_type in REFUSED:
        why = "depends on the length of the sequence, and in transformers also on that of earlier sequences"
        raise LongEvalError(
            f"rope_type {rope_type}: {'not a rope type of transformers' if rope_type == 'none' else why}",
            REFUSED[rope_type],
        )
    name = parse_method_name(rope_type, flag="rope_type")
    values = {key: value for key, value in given.items() if value is not None and (key in _COMMON or key not in ignore)}
    if not name.method.uses_factor and values.get("factor") == 1:
        # A factor of 1 changes nothing, and DeepSeek's attention needs the key with every type except default.
        del values["factor"]
    fields = name.parameter_fields
    _check_keys(name, values, fields)
    for key in ("rope_theta", "partial_rotary_factor", "factor", NATIVE):
        if key in values:
            _check_number(rope_type, key, values[key])
    arguments = {key: values[key] for key in fields if key in values}
    method, resonance = _make_parameters(name, arguments)
    return RopeSettings(
        name=name,
        arguments={key: getattr(method if hasattr(method, key) else resonance, key) for key in arguments},
        factor=float(values.get("factor", 1.0)),
        native_length=int(values[NATIVE]) if NATIVE in values else None,
    )


def rotates_part(config: Any) -> bool:
    """Whether a config's model family reads `partial_rotary_factor`; Llama and many others rotate whole heads."""
    return _mentions_part(type(config).__module__)


@functools.cache
def _mentions_part(module: str) -> bool:
    """Whether the model code beside a config module mentions the key; True for code outside transformers.

    The source file is searched as text, because importing it would import torch.
    """
    spec = None
    if module.startswith("transformers.models."):
        spec = importlib.util.find_spec(module.replace(".configuration_", ".modeling_"))
    if spec is None or spec.origin is None:
        return True
    return "partial_rotary_factor" in Path(spec.origin).read_text(encoding="utf-8")


def missing_key(rope_type: str, key: str) -> LongEvalError:
    """The error for a missing key."""
    remedy = {
        "rope_theta": "Give the model's own base, config.rope_parameters['rope_theta'] of the unchanged model; "
        "transformers would silently take its default, often 10000.",
        "factor": "Give s = target length / native length, such as 8.",
        NATIVE: "Give the length that the model was trained for, in tokens.",
        "partial_rotary_factor": "Models of this family rotate a part of the head: give that of the unchanged model, "
        "config.rope_parameters['partial_rotary_factor'].",
    }.get(key, "It has no default; take it from the config.json of a model that was trained with this scaling.")
    return LongEvalError(f"rope_type {rope_type}: rope_parameters have no {key}", remedy)


def in_config_words(name: MethodName, error: LongEvalError) -> LongEvalError:
    """Replaces the flags in a message of `longeval.rope` by keys of `rope_parameters`."""
    words = {
        f"--pe-arg {name.base}.": "",
        f"--pe-arg {RESONANCE}.": "",
        "--pe ": "",
        "--head-dim": "rotary dimensions",
        "--theta": "rope_theta",
        "--native": NATIVE,
        "--factor": "factor",
    }
    problem, remedy = error.problem, error.remedy
    for flag, key in words.items():
        problem, remedy = problem.replace(flag, key), remedy.replace(flag, key)
    return LongEvalError(f"rope_type {name.canonical}: {problem}", remedy)


def _check_keys(name: MethodName, values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]]) -> None:
    """Raises LongEvalError for keys that are unknown, would be ignored, or are missing."""
    rope_type = name.canonical
    scale = ("factor",) if name.method.uses_factor else ()
    known = (*_COMMON, *scale, *fields)
    if "factor" in values and not scale:
        by_factor = ", ".join(base for base, method in METHODS.items() if method.uses_factor)
        raise LongEvalError(
            f"rope_type {rope_type}: factor {values['factor']!r} would be ignored, no frequency depends on it",
            f"Leave it out; methods that stretch by a factor are {by_factor}, with resonance_ before them or without.",
        )
    if unknown := [key for key in values if key not in known]:
        raise LongEvalError(f"rope_type {rope_type}: unknown key {unknown[0]}", did_you_mean(unknown[0], known))
    without_default = [key for key, field in fields.items() if field.default is dataclasses.MISSING]
    for key in ("rope_theta", *scale, *without_default):
        if key not in values:
            raise missing_key(rope_type, key)


def _check_number(rope_type: str, key: str, value: Any) -> None:
    """Raises LongEvalError unless `value` is a number in the range of `key`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    number = float(value) if is_number else math.nan  # NaN is outside of every range
    fits, range_ = {
        "rope_theta": (number > 0, "a finite number above 0"),
        "partial_rotary_factor": (0 < number <= 1, "a number above 0 and at most 1"),
        "factor": (number >= 1, "a finite number of at least 1"),
        NATIVE: (number >= 1 and number.is_integer(), "a whole number of tokens, at least 1"),
    }[key]
    if not fits:
        raise LongEvalError(f"rope_type {rope_type}: {key} {value!r} must be {range_}", "Correct rope_parameters.")


def _make_parameters(name: MethodName, arguments: Mapping[str, Any]) -> Parameters:
    """Makes the method's parameters. Refuses text for numbers, because `@file` in a config must not read a file."""
    hints = get_type_hints(name.method.parameters) | get_type_hints(ResonanceParameters)
    for key, value in arguments.items():
        words = words_of(hints[key])
        if isinstance(value, str) and value not in words:
            known = f"It may be a number, or {' or '.join(words)}." if words else "Give a number, or a list of numbers."
            raise LongEvalError(f"rope_type {name.canonical}: {key} {value!r} is text", known)
    try:
        return read_arguments(name, arguments)
    except LongEvalError as error:
        raise in_config_words(name, error) from error
