"""YAML files from outside, read within bounds: a few lines of aliases can stand for billions of values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import yaml

LARGEST_TEXT = 4 << 20
"""Bytes of a file: some ten thousand requests, or the longest task file many times over."""

MOST_VALUES = 200_000
"""Values of one document, each counted as often as aliases repeat it."""

UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)
"""What `documents` raises; the last three are the YAML library's for values that aren't of the type of their tag."""


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        OSError: It can't be read, or is no regular file: a device has no end, a pipe may never have one.
        ValueError: It is no UTF-8, or far too large.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(0, "not a regular file")
    with open(path, "rb") as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"more than {LARGEST_TEXT >> 20} MiB")
    return content.decode("utf-8-sig")


def documents(text: str, loader: Any = yaml.SafeLoader) -> Iterator[Any]:
    """The documents of a YAML text, as plain data; what aliases would blow up is refused before it is built.

    Args:
        text: The text.
        loader: A loader class of PyYAML that runs no code.

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
        yield reader.construct_document(node)


def why_unreadable(error: Exception) -> str:
    """What is wrong with a YAML text, in a few words, for one of `UNREADABLE`."""
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(part for part in (error.context, error.problem) if part)
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a value can't be read"


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values under a node, those of an alias each time; `known` are those of nodes seen so far, by their identity."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # of a node that holds itself there would be no end
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_num_values(part, known) for part in inner)
    return known[id(node)]
