"""Stored JSON, read strictly: what longeval can't have written is refused with the reason.

Python's own reader takes more than JSON: numbers that overflow, NaN, one key twice, UTF-16. A stored file with any of
these is damaged or somebody else's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import reprlib
import types
from collections.abc import Hashable
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

LARGEST = 2**53
"""Whole numbers beyond it are no counts, and float64 can't tell them apart."""

_DEEPEST = 30
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
    if b"\\u" in content:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text: a ValueError
    return value


def nests_deeply(value: Any, levels: int = _DEEPEST) -> bool:
    """Whether lists and objects nest more deeply than any that longeval writes."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(nests_deeply(item, levels - 1) for item in inner)


def made_from(kind: type[Made], plain: object) -> Made:
    """A dataclass from a JSON object that has its fields in their types.

    Keys that it doesn't know are left out: a field that a later version adds changes the meaning of none that is here.

    Raises:
        ValueError: A field is missing or of another type; the message names it.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"not an object but {_shown(plain)}")
    found: dict[str, Any] = {}
    for name, types_, words, needed in _fields(cast(Hashable, kind)):
        if name not in plain:
            if needed:
                raise ValueError(f"has no {name}")
            continue
        value = found[name] = plain[name]
        if type(value) not in types_ or (words and type(value) is str and value not in words):
            raise ValueError(f"{name} is {_shown(value)}")
    return kind(**found)


@functools.cache
def _fields(kind: Hashable) -> tuple[tuple[str, frozenset[type], tuple[Any, ...], bool], ...]:
    """(name, the types that its JSON may have, the only texts that it may be, whether it has no default)."""
    assert isinstance(kind, type) and dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    described = []
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        words = get_args(hint) if get_origin(hint) is Literal else ()
        described.append((item.name, frozenset(_json_types(hint)), words, needed))
    return tuple(described)


def _json_types(hint: Any) -> set[type]:
    """Types of Python that a JSON value of an annotation has."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return {found for part in get_args(hint) for found in _json_types(part)}
    if hint is Any:
        return {str, int, float, bool, list, dict, type(None)}
    if hint is float:
        return {int, float}
    if origin is Literal:
        return {type(word) for word in get_args(hint)}
    if dataclasses.is_dataclass(hint) or origin is dict:
        return {dict}
    return {hint}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has {_shown(next(name for name in found if names.count(name) > 1))} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_shown(text)} is no number that can be")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > LARGEST:
        raise ValueError(f"{_shown(text)} is no number that can be")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _shown(value: object) -> str:
    """A value for a message, short."""
    return reprlib.repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the one text of a value, as digests need it. NaN is refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
