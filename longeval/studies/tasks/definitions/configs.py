"""Reads one task file: YAML with lm-eval's `include` and `!function`, without lm-eval and without running anything.

lm-eval's own reader imports the Python beside a file while it reads it, and says neither file nor line when it can't.
This one keeps a `!function` as a name, so that listing tasks runs no code, and knows the place of each key.
Source of the rules: lm-eval 0.4.13, tasks/_yaml_loader.py: keys of the file win over those of its includes, later
includes over earlier ones; `!function` is relative to the file that says it; `task_list` isn't included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import yaml

from longeval.bounded_yaml import UNREADABLE, documents, read_text, why_unreadable
from longeval.errors import LongEvalError

Config = dict[str, Any]
"""Keys and values of a task file, includes merged; a `!function` is a `FunctionName`."""

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class FunctionName:
    """What `!function module.name` says, before anything is imported."""

    qualified: str
    """`module.name`."""
    file: str
    """The YAML file that says it; `module` is looked for beside it first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a key stands."""

    file: str
    """Path of the YAML file, which may be an included one."""
    line: int
    """From 1."""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class ConfigReader:
    """Reads files and their includes, each once.

    Args:
        checked: Whether files are read by the strict rules for our own and for users' files: no key twice. (lm-eval's
            own files have such keys.)
    """

    def __init__(self, *, checked: bool = True) -> None:
        self._checked = checked
        self._single: dict[str, Config] = {}

    def read(self, path: str) -> Config:
        """Returns a file's keys with those of its includes.

        Raises:
            LongEvalError: If a file is missing, no YAML or no mapping, or includes itself; names file and line.
        """
        return self._read(os.path.realpath(path), ())

    def _read(self, path: str, including: tuple[str, ...]) -> Config:
        single = self._load(path, including)
        if "include" not in single:
            return dict(single)
        merged: Config = {}
        unsafe: Any = False
        for included in _as_list(single["include"]):
            target = os.path.realpath(os.path.join(os.path.dirname(path), str(included)))
            if target in (*including, path):
                raise LongEvalError(f"{place_of(path, 'include')}: include goes round in a circle", "Leave one out.")
            inner = self._read(target, (*including, path))
            inner.pop("task_list", None)
            unsafe = unsafe or inner.get("unsafe_code", False)
            merged.update(inner)
        merged.update((key, value) for key, value in single.items() if key != "include")
        if unsafe:  # what is included runs code that a model writes, whatever the file says that includes it
            merged["unsafe_code"] = unsafe
        return merged

    def _load(self, path: str, including: tuple[str, ...]) -> Config:
        if path not in self._single:
            said_by = f"{place_of(including[-1], 'include')}: include " if including else ""
            self._single[path] = _parse(path, said_by, checked=self._checked)
        return self._single[path]


def place_of(path: str, key: str) -> Place:
    """The place of a top-level key in a file or its includes, in the order in which they win; line 1 if it has none."""
    for file in _chain(os.path.realpath(path)):
        for key_node, _ in _nodes(file):
            if key_node.value == key:
                return Place(file=file, line=key_node.start_mark.line + 1)
    return Place(file=path, line=1)


def place_of_function(name: FunctionName) -> Place:
    """The place of a `!function`, wherever in its file it is nested; line 1 if it isn't found."""
    pending: list[yaml.Node] = [node for pair in _nodes(name.file) for node in pair]
    while pending:
        node = pending.pop(0)
        if node.tag == "!function" and node.value == name.qualified:
            return Place(file=name.file, line=node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            pending += [inner for pair in node.value for inner in pair]
    return Place(file=name.file, line=1)


def functions_in(value: Any) -> list[FunctionName]:
    """All `!function`s in a config or a value of it, in order."""
    if isinstance(value, FunctionName):
        return [value]
    if isinstance(value, dict):
        return [name for inner in value.values() for name in functions_in(inner)]
    if isinstance(value, list):
        return [name for inner in value for name in functions_in(inner)]
    return []


def _chain(path: str, seen: tuple[str, ...] = ()) -> list[str]:
    """A file and its includes, the one whose keys win first."""
    files = [path]
    for key_node, value_node in _nodes(path):
        if key_node.value == "include":
            nodes = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for node in reversed(nodes):
                target = os.path.realpath(os.path.join(os.path.dirname(path), str(node.value)))
                if target not in (*seen, path):
                    files += _chain(target, (*seen, path))
    return files


def _nodes(path: str) -> list[tuple[yaml.Node, yaml.Node]]:
    try:
        node = yaml.compose(read_text(path), Loader=_SafeLoader)
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        return []
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _parse(path: str, said_by: str, *, checked: bool) -> Config:
    """Parses one file; `said_by` opens the message where it is missing."""

    class Loader(_SafeLoader):  # type: ignore[misc]  # one for each file: its constructor knows the path
        pass

    Loader.add_constructor("!function", lambda loader, node: FunctionName(loader.construct_scalar(node), path))
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise LongEvalError(f"{said_by}{path}: can't be read ({reason})", "Give a YAML file of a task.") from error
    try:
        config = next(documents(text, Loader), None)
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1 if mark else 1}"
        raise LongEvalError(f"{where}: not valid YAML ({why_unreadable(error)})", "Repair the file.") from error
    if not isinstance(config, dict):
        raise LongEvalError(f"{path}, line 1: must be a mapping", "A task file has the keys task, dataset_path, …")
    if checked:
        _refuse_twice(path)
    return config


def _refuse_twice(path: str) -> None:
    """YAML lets the later of two equal keys win silently."""
    seen: dict[str, int] = {}
    for key_node, _ in _nodes(path):
        line = key_node.start_mark.line + 1
        if key_node.value in seen:
            raise LongEvalError(
                f"{path}, line {line}: {key_node.value} stands in line {seen[key_node.value]} already",
                "Leave one of them out.",
            )
        seen[key_node.value] = line


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
