"""Task files: where they lie, and what is in one: YAML with lm-eval's `include` and `!function`.

Neither finding nor reading them imports lm-eval, which takes seconds, or runs any code. lm-eval's own reader imports
the Python beside a file while it reads it, and says neither file nor line when it can't. This one keeps a `!function`
as a name, and knows the line of each key. Source of the rules: lm-eval 0.4.13, tasks/_yaml_loader.py: keys of the file
win over those of its includes, later includes over earlier ones; `!function` is relative to the file that says it;
`task_list` isn't included.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

import longeval
from longeval.bounded_yaml import UNREADABLE, documents, read_text, why_unreadable
from longeval.errors import LongEvalError, reason

Config = dict[str, Any]
"""Keys and values of a task file, includes merged; a `!function` is a `FunctionName`."""

NOT_TASKS = frozenset({"perplexity"})
"""Folders below tasks/ that hold something else: perplexity has corpora (`longeval.data.corpora`)."""

_IGNORED = frozenset({"__pycache__", ".ipynb_checkpoints"})
_KEY = re.compile(r"""(["']?)([^\s"'#:{\[-][^"'#:]*?)\1\s*:(?:\s|$)""")
"""A line that begins with a top-level key."""

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class FunctionName:
    """What `!function module.name` says, before anything is imported."""

    qualified: str
    """`module.name`."""
    file: str
    """The YAML file that says it; `module` is looked for beside it first."""

    @property
    def name(self) -> str:
        """`name`."""
        return self.qualified.rpartition(".")[2]

    @property
    def place(self) -> str:
        """`FILE, line N` of the first such `!function` in its file."""
        said = re.compile(rf"!function\s+[\"']?{re.escape(self.qualified)}(?![\w.])")
        lines = (number for number, line in enumerate(_lines(self.file), start=1) if said.search(line))
        return f"{self.file}, line {next(lines, 1)}"


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
def lm_eval_folder() -> str:
    """The folder of task files of the installed lm-eval, found without importing it.

    Raises:
        LongEvalError: If it isn't installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise LongEvalError("lm-eval isn't installed", "pip install 'lm-eval>=0.4.13'")
    return os.path.join(next(iter(spec.submodule_search_locations)), "tasks")


def yaml_files(folder: str) -> list[str]:
    """All .yaml files below `folder`, sorted."""
    return sorted(path for path in walk(folder) if path.endswith(".yaml"))


def walk(folder: str) -> Iterator[str]:
    """All files below `folder`, in no order; caches of Python and Jupyter are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IGNORED]
        for name in files:
            yield os.path.join(parent, name)


def is_task_file(path: str) -> bool:
    """Whether a path has the ending of a task file."""
    return os.path.splitext(path)[1] in (".yaml", ".yml")


def read_config(path: str, *, strict: bool = False, including: tuple[str, ...] = ()) -> Config:
    """Returns a file's keys with those of its includes.

    Args:
        path: The file.
        strict: Whether a key that stands twice in one file is an error; some of lm-eval's own files have such keys.
        including: The files that include it, outermost first.

    Raises:
        LongEvalError: If a file is missing, no YAML or no mapping, or includes itself; names file and line.
    """
    path = os.path.realpath(path)
    own = _parse(path, including)
    if strict:
        _refuse_twice(path)
    config: Config = {}
    unsafe: Any = False
    includes = own.pop("include", [])
    for included in includes if isinstance(includes, list) else [includes]:
        target = os.path.realpath(os.path.join(os.path.dirname(path), str(included)))
        if target in (*including, path):
            raise LongEvalError(f"{place_of(path, 'include')}: include goes round in a circle", "Leave one out.")
        inner = read_config(target, strict=strict, including=(*including, path))
        inner.pop("task_list", None)
        unsafe = unsafe or inner.get("unsafe_code", False)
        config.update(inner)
    config.update(own)
    if unsafe:  # what is included runs code that a model writes, whatever the file says that includes it
        config["unsafe_code"] = unsafe
    return config


def functions_in(value: Any) -> list[FunctionName]:
    """All `!function`s in a config or a value of it, in order."""
    if isinstance(value, FunctionName):
        return [value]
    if isinstance(value, dict):
        return [name for inner in value.values() for name in functions_in(inner)]
    if isinstance(value, list):
        return [name for inner in value for name in functions_in(inner)]
    return []


def place_of(path: str, key: str) -> str:
    """`FILE, line N` of a top-level key of a file, or of the include that it comes from; line 1 if it has none."""
    for file in _chain(os.path.realpath(path), ()):
        for name, line in _keys(file):
            if name == key:
                return f"{file}, line {line}"
    return f"{path}, line 1"


def _chain(path: str, including: tuple[str, ...]) -> Iterator[str]:
    """A file and its includes, the one whose keys win first."""
    yield path
    try:
        includes = _parse(path, including).get("include", [])
    except LongEvalError:
        return
    for included in reversed(includes if isinstance(includes, list) else [includes]):
        target = os.path.realpath(os.path.join(os.path.dirname(path), str(included)))
        if target not in (*including, path):
            yield from _chain(target, (*including, path))


def _keys(path: str) -> list[tuple[str, int]]:
    """The top-level keys of a file with their lines."""
    found = ((_KEY.match(line), number) for number, line in enumerate(_lines(path), start=1))
    return [(match[2], number) for match, number in found if match is not None]


def _lines(path: str) -> list[str]:
    try:
        return read_text(path).splitlines()
    except (OSError, ValueError):
        return []


def _parse(path: str, including: tuple[str, ...]) -> Config:
    """The keys of one file, without its includes."""

    class Loader(_SafeLoader):  # type: ignore[misc]  # one for each file: its constructor knows the path
        pass

    Loader.add_constructor("!function", lambda loader, node: FunctionName(loader.construct_scalar(node), path))
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        said_by = f"{place_of(including[-1], 'include')}: include " if including else ""
        problem = f"{said_by}{path}: can't be read ({reason(error)})"
        raise LongEvalError(problem, "Give a YAML file of a task.") from error
    try:
        config = next(documents(text, Loader), None)
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1 if mark else 1}"
        raise LongEvalError(f"{where}: not valid YAML ({why_unreadable(error)})", "Repair the file.") from error
    if not isinstance(config, dict):
        raise LongEvalError(f"{path}, line 1: must be a mapping", "A task file has the keys task, dataset_path, …")
    return config


def _refuse_twice(path: str) -> None:
    """YAML lets the later of two equal keys win silently."""
    lines: dict[str, int] = {}
    for key, line in _keys(path):
        if key in lines:
            raise LongEvalError(
                f"{path}, line {line}: {key} stands in line {lines[key]} already", "Leave one of them out."
            )
        lines[key] = line


# Python that task files name (`!function`): found without running it, and a user's run only where they ask for it.
#
# Files of longeval and of lm-eval are part of what was installed, and their functions are too.

Code = Literal["refused", "named", "run"]
"""What becomes of functions of users' files: the task is refused; it is built, but may not call them; they run."""


class NotRunError(Exception):
    """A function of a user's file was needed, and may not run."""


def own_functions(config: Config) -> tuple[FunctionName, ...]:
    """The functions of a task that neither longeval nor lm-eval brings, in order; each once."""
    return tuple(dict.fromkeys(name for name in functions_in(config) if not _is_shipped(name.file)))


def said(functions: Sequence[FunctionName]) -> str:
    """`scoring.score (tasks/mine.yaml) and 2 more`."""
    names = [f"{name.qualified} ({name.file})" for name in functions]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def refuse(task: str, functions: Sequence[FunctionName]) -> LongEvalError:
    """The error for a task that runs a user's code without --trust-remote-code."""
    return LongEvalError(
        f"--tasks {task}: runs Python that its file names: !function {said(functions)}",
        "Read that code, and if you trust it add --trust-remote-code.",
    )


def with_functions(value: Any, code: Code) -> Any:
    """A config, or a value of it, with functions in place of their names.

    Args:
        value: The config.
        code: What becomes of functions of users' files.

    Raises:
        LongEvalError: If a function isn't there; names file and line.
        Exception: Whatever the Python raises that holds a function.
    """
    if isinstance(value, FunctionName):
        return _function(value, code)
    if isinstance(value, dict):
        return {key: with_functions(inner, code) for key, inner in value.items()}
    return [with_functions(inner, code) for inner in value] if isinstance(value, list) else value


def is_lm_evals(path: str) -> bool:
    """Whether a task file is one of lm-eval's own."""
    return _is_below(path, lm_eval_folder())


def _is_shipped(path: str) -> bool:
    return is_lm_evals(path) or _is_below(path, tasks_dir())


def _is_below(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


def _function(name: FunctionName, code: Code) -> Any:
    """The function itself, from the Python file beside its YAML file or from a package, as lm-eval finds it."""
    from lm_eval.tasks._yaml_loader import _import_func_in_yml

    shipped = _is_shipped(name.file)
    assert shipped or code != "refused", "such tasks are refused before"
    module, _, attribute = name.qualified.rpartition(".")
    if not module:
        problem = f"{name.place}: !function {name.qualified}: has no module"
        raise LongEvalError(problem, "Write FILE.NAME for NAME in FILE.py beside it.")
    folder = Path(os.path.dirname(name.file))
    beside = folder / f"{module.replace('.', '/')}.py"
    if not beside.exists() and not _is_package(module):
        problem = f"{name.place}: !function {name.qualified}: there is no {beside}, nor a package {module}"
        raise LongEvalError(problem, "Correct the name.")
    if code == "named" and not shipped:
        return _stand_in(name.qualified, attribute, beside)
    try:
        return _import_func_in_yml(name.qualified, folder)
    except SyntaxError as error:
        raise LongEvalError(
            f"{error.filename}, line {error.lineno}: not valid Python ({error.msg})", "Correct it."
        ) from error
    except AttributeError as error:
        problem = f"{name.place}: !function {name.qualified}: {error.__cause__ or error}"
        raise LongEvalError(problem, "Correct the name, or the Python.") from error


def _is_package(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None  # the whole name would run its package
    except (ImportError, ValueError):
        return False


def _stand_in(qualified: str, name: str, file: Path) -> Any:
    """A function that can be named, but not called; its source is the file that it stands for, as in cells' ids."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotRunError(qualified)

    code = function.__code__.replace(co_filename=str(file.resolve())) if file.exists() else function.__code__
    stand_in = types.FunctionType(code, {**globals()}, name, closure=function.__closure__)
    stand_in.__qualname__ = name
    return stand_in
