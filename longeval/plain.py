"""Stored JSON, read strictly: what longeval can't have written is refused with the reason.

Python's own reader takes more than JSON: numbers that overflow, NaN, one key twice, UTF-16. A stored file with any of
these is damaged or somebody else's.
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
"""Whole numbers beyond it are no counts, and float64 can't tell them apart."""

_DEEPEST = 32
"""Levels of nested lists and objects, far beyond what any record has."""

Made = TypeVar("Made")


def read_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: It is no such text, nests deeply, has a key twice, or a number that float64 and int64 can't hold.
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
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text: a ValueError
    return value


def _nests_deeply(value: Any, levels: int = _DEEPEST) -> bool:
    """Whether lists and objects nest more deeply than any that longeval writes."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nests_deeply(item, levels - 1) for item in inner)


def made_from(kind: type[Made], plain: object) -> Made:
    """An instance of a dataclass or a pydantic model from a JSON value, whose types must be the declared ones.

    Keys that it doesn't know are left out: a field that a later version adds changes the meaning of none that is here.

    Raises:
        ValueError: A field is missing, of another type, or outside its declared bounds; the message names it.
    """
    try:
        # As JSON, since pydantic then knows that a list may be a tuple and an object a dataclass, and stays strict.
        made: Made = _adapter(cast(Hashable, kind)).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    return made


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found, with its place: `provenance.date: Field required`."""
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
        raise ValueError(f"{text[:40]} is no number that can be")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > LARGEST:
        raise ValueError(f"{text[:40]} is no number that can be")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the one text of a value, as digests need it. NaN is refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
