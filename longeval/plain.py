"""Reads stored JSON strictly, and refuses anything that longeval doesn't write.

Python's reader accepts more than JSON: numbers that overflow, NaN, duplicate keys, UTF-16. A stored file with any of
these is damaged or was written by another program.
"""

from __future__ import annotations

import functools
import json
import math
import reprlib
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

LARGEST = 2**53
"""Largest integer that is accepted. Above it float64 can't represent every integer."""

_DEEPEST = 32
"""Most levels of nested lists and objects, far more than any record has."""

Made = TypeVar("Made")


def read_json(content: bytes) -> Any:
    """Parses a JSON text in UTF-8.

    Raises:
        ValueError: It is not valid JSON, is nested too deeply, has a duplicate key, or a number that is not finite, or
            an integer beyond LARGEST.
    """
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _nests_deeply(value):
        raise ValueError("nested too deeply")
    if b"\\u" in content:
        json.dumps(value, ensure_ascii=False).encode()  # raises ValueError for lone surrogates
    return value


def _nests_deeply(value: Any, levels: int = _DEEPEST) -> bool:
    """Whether lists and objects are nested more deeply than `levels`."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nests_deeply(item, levels - 1) for item in inner)


def made_from(kind: type[Made], plain: object) -> Made:
    """Makes an instance of a dataclass or a pydantic model from a JSON value, with strict types.

    Unknown keys are dropped: fields that a later version adds don't change the meaning of known ones.

    Raises:
        ValueError: A field is missing, has another type, or is outside its bounds; the message names it.
    """
    try:
        # From JSON text, because strict pydantic then accepts lists for tuples and objects for dataclasses.
        made: Made = _adapter(cast(Hashable, kind)).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    return made


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def first_problem(error: ValidationError) -> str:
    """The first problem in a ValidationError with its place, such as `provenance.date: Field required`."""
    first = error.errors(include_url=False)[0]
    place, found = ".".join(map(str, first["loc"])), first["input"]
    value = f" {reprlib.repr(found)}" if isinstance(found, str | int | float) else ""
    return f"{place}{value}: {first['msg']}" if place else first["msg"]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"has {twice[:40]!r} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a possible number")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > LARGEST:
        raise ValueError(f"{text[:40]} is not a possible number")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, for digests; equal values have equal texts. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
