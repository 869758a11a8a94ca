"""Reads untrusted YAML within limits, because a few lines with aliases can expand to billions of values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import yaml

LARGEST_TEXT = 4 << 20
"""Most bytes of a file, enough for ten thousand requests and many times the longest task file."""

MOST_VALUES = 200_000
"""Most values of one document, each counted as often as aliases repeat it."""

UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)
"""Exceptions that `documents` raises. PyYAML raises the last three for values that don't fit their tag."""


def read_text(path: str) -> str:
    """Reads a text file.

    Raises:
        OSError: It can't be read, or is not a regular file (reading a device or a pipe may never end).
        ValueError: It is not UTF-8, or larger than LARGEST_TEXT.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(0, "not a regular file")
    with open(path, "rb") as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"more than {LARGEST_TEXT >> 20} MiB")
    return content.decode("utf-8-sig")


def documents(text: str, loader: Any = yaml.SafeLoader, *, keys_repeat: bool = True) -> Iterator[Any]:
    """Yields the documents of a YAML text as plain data. Documents with too many values are refused before expansion.

    Args:
        text: The text.
        loader: A loader class of PyYAML that doesn't run code.
        keys_repeat: Whether a mapping may have a key twice, of which PyYAML takes the last; lm-eval's files have some.

    Raises:
        Exception: One of `UNREADABLE`.
    """
    if len(text) > LARGEST_TEXT:
        raise yaml.MarkedYAMLError(problem=f"more than {LARGEST_TEXT >> 20} MiB")
    reader = loader(text)
    while reader.check_node():
        node = reader.get_node()
        if _num_values(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem="far too many values", problem_mark=node.start_mark)
        if not keys_repeat and (key := _repeated_key(node)) is not None:
            raise yaml.MarkedYAMLError(problem=f"{key.value[:40]} is there twice", problem_mark=key.start_mark)
        yield reader.construct_document(node)


def why_unreadable(error: Exception) -> str:
    """Describes an exception of `UNREADABLE` in a few words."""
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(part for part in (error.context, error.problem) if part)
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a value can't be read"


def _repeated_key(node: yaml.Node) -> yaml.ScalarNode | None:
    """The second of two equal keys of one mapping, somewhere under a node."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
        inner = [value for _, value in node.value]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    return next((key for key in map(_repeated_key, inner) if key is not None), None)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values under a node, counting aliases each time. `known` caches the numbers by node identity."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # a node that contains itself counts as too large
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_num_values(part, known) for part in inner)
    return known[id(node)]
