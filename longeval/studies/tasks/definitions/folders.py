"""Where task files lie: the project's own, in a checkout or an installed wheel, and those of lm-eval.

lm-eval is found without importing it, which takes seconds; listing and resolving names must not need it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass

import longeval
from longeval.errors import LongEvalError

NOT_TASKS = frozenset({"perplexity"})
"""Folders below tasks/ that hold something else: perplexity has corpora (`longeval.data.corpora`)."""
_IGNORED = frozenset({"__pycache__", ".ipynb_checkpoints"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LmEval:
    """The installed lm-eval."""

    version: str
    """Its version, `0.4.13`."""
    folder: str
    """Its folder of task files."""


def tasks_dir() -> str:
    """The folder of our task files: inside the package where it is installed, tasks/ in a checkout."""
    package = os.path.dirname(os.path.abspath(longeval.__file__))
    installed = os.path.join(package, "_tasks")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "tasks")


def task_folders(root: str | None = None) -> tuple[str, ...]:
    """The folders with our task files below `root` (default: `tasks_dir()`), in alphabetical order.

    Raises:
        LongEvalError: If `root` is missing: the installation is broken.
    """
    root = tasks_dir() if root is None else root
    if not os.path.isdir(root):
        raise LongEvalError(f"{root}: the folder of the tasks is missing", "Install longeval again.")
    names = sorted(set(os.listdir(root)) - NOT_TASKS - _IGNORED)
    return tuple(path for name in names if os.path.isdir(path := os.path.join(root, name)))


@functools.cache
def find_lm_eval() -> LmEval:
    """Finds the installed lm-eval without importing it.

    Raises:
        LongEvalError: If it isn't installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise LongEvalError("lm-eval isn't installed", "pip install 'lm-eval>=0.4.13'")
    folder = os.path.join(next(iter(spec.submodule_search_locations)), "tasks")
    return LmEval(version=importlib.metadata.version("lm_eval"), folder=folder)


def yaml_files(folder: str) -> list[str]:
    """All .yaml files below `folder`, in the order of lm-eval: of two with one name the first wins."""
    return sorted(path for path in walk(folder) if path.endswith(".yaml"))


def walk(folder: str) -> Iterator[str]:
    """All files below `folder`, in no order; caches of Python and Jupyter are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IGNORED]
        for name in files:
            yield os.path.join(parent, name)
