"""What a task's YAML says of itself under `metadata:`, as far as longeval reads it, and the digest of a task."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from longeval.errors import LongEvalError
from longeval.plain import canonical_json
from longeval.studies.tasks.definitions.files import tasks_dir
from longeval.studies.tasks.setting import DEFAULT_SAMPLES


class TaskMetadata(BaseModel, frozen=True):
    """The keys that longeval reads. All are optional, and other keys are the task's own."""

    version: Annotated[str, BeforeValidator(str)] | None = None
    """Of the task's definition."""
    primary: str | None = None
    """The metric that stands for the task; default: the first one."""
    document: str | None = None
    """Field of a sample that holds the long document: what may be cut to fit a window."""
    cluster: str | None = None
    """Field that names the document that samples share."""
    depth: str | None = None
    """Field with the needle's place in the context, 0 … 1."""
    chance: float | None = None
    """Score of guessing, 0 … 1."""
    synthetic: bool = False
    """Whether samples are made for each length from a `Setting`."""
    samples: int = Field(DEFAULT_SAMPLES, ge=1)
    """How many samples a synthetic task makes by default."""
    haystack: bool = False
    """Whether needles are hidden in what `--haystack` names."""
    prompts: Any = None
    """`own`: longeval worded the prompts, not the benchmark."""

    @property
    def own_prompts(self) -> bool:
        """Whether longeval worded the prompts."""
        return bool(self.prompts == "own")


def read_metadata(plain: Any, task: str) -> TaskMetadata:
    """Reads a YAML's `metadata`; lm-eval lets it be anything. `task` is what the task is called in messages.

    Raises:
        LongEvalError: A key that longeval reads has a value that it can't have.
    """
    keys = plain if isinstance(plain, dict) else {}
    try:
        return TaskMetadata.model_validate({key: value for key, value in keys.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{task}: metadata.{first['loc'][0]} {first['input']!r:.60}"
        raise LongEvalError(f"{where}: {first['msg']}", "Correct the task's YAML file.") from error


def task_digest(task: Any) -> str:
    """Digest of what decides a task's scores beside its prompts: its configuration, and the code that it names.

    Args:
        task: An lm-eval Task. Functions stand for the content of their files, so that a changed rule is another task.
    """
    config = {key: _plain(value) for key, value in sorted(vars(task.config).items()) if key not in _DECIDE_NOTHING}
    parts = {"config": config, "class": _code(type(task))}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


_DECIDE_NOTHING = ("metadata", "task_alias", "tag", "custom_dataset", "dataset_kwargs", "fewshot_config")
"""Where samples come from is in the digest of the prompts."""


def _plain(value: Any) -> Any:
    if callable(value):
        return _code(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else type(value).__qualname__


def _code(function: Callable[..., Any]) -> str:
    """A function or class by its name and the content of its file, and of the user's own files that this imports."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # a built-in, an instance
        path = None
    digest = hashlib.sha256(b"" if path is None else _content(path))
    for imported in () if path is None else sorted(_imported(path)):
        digest.update(_content(imported))
    return f"{name}:{digest.hexdigest()[:16]}"


_FIRST_SPELT = {
    b"longeval.studies.tasks.setting": b"longeval.tasks.setting",
    b"longeval.plain": b"longeval.records",
    b"longeval.studies.posgen": b"longeval.posgen",
}
"""Modules that task files import, by the names that they had first: where they lie changes no cell's id."""


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read()
    for name, first in _FIRST_SPELT.items():
        content = content.replace(name, first)
    return content


def _imported(path: str) -> set[str]:
    """Python files of the user's own that a file imports, and that these import."""
    found = {path}
    pending = [] if _is_installed(path) else [path]
    while pending:
        try:
            nodes = list(ast.walk(ast.parse(_content(pending.pop()))))
        except (SyntaxError, ValueError):  # such a file can't import anything either
            continue
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        for module in {name.split(".")[0] for name in names} - {"", "longeval", "lm_eval"}:
            new = _files_of(module) - found
            found |= new
            pending += new
    return found - {path}


def _files_of(module: str) -> set[str]:
    """Python files of a module that is not installed, without running it; all of those of a package."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return set()
    if spec is None or not (spec.origin or "").endswith(".py") or _is_installed(str(spec.origin)):
        return set()
    if spec.submodule_search_locations is None:
        return {str(spec.origin)}
    return {str(path) for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py")}


def _is_installed(path: str) -> bool:
    """Whether a file is one of Python, of an installed package, or of our tasks."""
    place = Path(os.path.realpath(path))
    if {"site-packages", "dist-packages"} & set(place.parts):
        return True
    return any(place.is_relative_to(os.path.realpath(folder)) for folder in (os.path.dirname(os.__file__), tasks_dir()))
