"""Whether a value is of the kind that an option of vLLM's engine takes, told from the type that vLLM annotates it with.

vLLM itself finds out while the engine starts, a minute later.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from longeval.errors import LongEvalError

_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list, [a, b]",
    dict: "a mapping, {a: b}",
}
"""Types that values read from YAML have, and how users would name them."""


def check_kinds(args: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Raises LongEvalError for a value that no alternative of its option's type takes.

    Args:
        args: Values by option, as read from YAML.
        annotations: Types by option. One that says nothing of YAML's types (a class, a name in quotes) takes anything.
    """
    for name, value in args.items():
        expected = _kinds(annotations[name])
        if expected is not None and not any(_takes(kind, value) for kind in expected):
            said = list(dict.fromkeys(_said(kind) for kind in expected if kind is not type(None)))
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            quoted = f" For a text in digits: --vllm-arg {name}='\"{value}\"'." if str in expected else ""
            raise LongEvalError(
                f"--vllm-arg {name}={shown}: vLLM takes {' or '.join(said)} there", f"It is read as YAML.{quoted}"
            )


def _kinds(annotation: Any) -> list[Any] | None:
    """The alternatives of a type: those of _PLAIN, NoneType, and single values of a Literal; None: can't be told."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(annotation)]
        known = [part for part in parts if part is not None]
        return [kind for part in known for kind in part] if len(known) == len(parts) else None
    if origin is typing.Literal:
        return [annotation]
    kind = origin or annotation
    if kind in (set, tuple):
        kind = list  # YAML has no other
    return [kind] if kind in (*_PLAIN, type(None)) else None


def _takes(kind: Any, value: Any) -> bool:
    """Whether a value of YAML's is of one alternative."""
    if typing.get_origin(kind) is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _said(kind: Any) -> str:
    """An alternative in words."""
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(str(choice) for choice in typing.get_args(kind))
    return _PLAIN[kind]
