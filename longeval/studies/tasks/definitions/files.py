"""Task files: where they lie, and what is in one: YAML with lm-eval's `include` and `!function`.

Neither finding nor reading them imports lm-eval, which takes seconds, or runs any code. lm-eval's own reader imports
the Python beside a file while it reads it, and says neither file nor line when it can't. This one keeps a `!function`
as a name, and knows the line of each key. Source of the rules: lm-eval 0.4.13, tasks/_yaml_loader.py: keys of the file
win over those of its includes, later includes over earlier ones; `!function` is relative to the file that says it;
`task_list` isn't included.

The functions themselves are looked up at the end of this module. Those of longeval's and lm-eval's own files are part
of what was installed; those of a user's files run only where the user asks for it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

import longeval
from longeval.bounded_yaml import UNREADABLE, documents, read_text, why_unreadable
from longeval.errors import LongEvalError, reason

Config = dict[str, Any]
"""Keys and values of a task file, includes merged; a `!function` is a `FunctionName`."""

_IGNORED = frozenset({"__pycache__", ".ipynb_checkpoints"})
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def tasks_dir() -> str:
    """The folder of our task files: inside the package where it is installed, tasks/ in a checkout."""
    package = os.path.dirname(os.path.abspath(longeval.__file__))
    installed = os.path.join(package, "_tasks")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "tasks")


def task_folders(root: str | None = None) -> tuple[str, ...]:
    """The folders with our task files below `root` (default: `tasks_dir()`), in alphabetical order."""
    root = tasks_dir() if root is None else root
    if not os.path.isdir(root):
        raise LongEvalError(f"{root}: the folder of the tasks is missing", "Install longeval again.")
    names = sorted(set(os.listdir(root)) - {"perplexity"} - _IGNORED)  # that has corpora (`longeval.data.corpora`)
    return tuple(path for name in names if os.path.isdir(path := os.path.join(root, name)))


@functools.cache
def lm_eval_folder() -> str:
    """The folder of task files of the installed lm-eval, found without importing it."""
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


def is_path(name: str) -> bool:
    """Whether a name after `--tasks` is the path of a task file."""
    return name.endswith((".yaml", ".yml")) or os.sep in name or name.startswith("~")


@dataclass(frozen=True, slots=True)
class FunctionName:
    """What `!function module.name` says, before anything is imported."""

    qualified: str
    """`module.name`."""
    file: str
    """The YAML file that says it; `module` is looked for beside it first."""
    line: int = field(default=1, compare=False)
    """Where it stands in the file."""

    @property
    def name(self) -> str:
        """`name`."""
        return self.qualified.rpartition(".")[2]

    @property
    def place(self) -> str:
        """`FILE, line N`."""
        return f"{self.file}, line {self.line}"


class _Key(NamedTuple):
    """A top-level key of a task file."""

    value: Any
    place: str
    """`FILE, line N`."""


def read_config(path: str, *, strict: bool = False) -> Config:
    """Returns a file's keys with those of its includes.

    Args:
        path: The file.
        strict: Whether a key that stands twice in one file is an error; some of lm-eval's own files have such keys.

    Raises:
        LongEvalError: If a file is missing, no YAML or no mapping, or includes itself; names file and line.
    """
    return {name: key.value for name, key in _read(os.path.realpath(path), strict=strict).items()}


def place_of(path: str, key: str) -> str:
    """`FILE, line N` of a top-level key of a file, or of the include that it comes from; line 1 if it has none."""
    try:
        return _read(os.path.realpath(path))[key].place
    except (LongEvalError, KeyError):
        return f"{path}, line 1"


def _read(path: str, *, strict: bool = False, including: tuple[str, ...] = (), said_by: str = "") -> dict[str, _Key]:
    """The keys of a file and its includes.

    Args:
        path: The file.
        strict: See `read_config`.
        including: The files that include it, outermost first.
        said_by: `FILE, line N: include ` of the last of them.
    """
    own = _parse(path, said_by, strict=strict)
    include = own.pop("include", _Key([], ""))
    keys: dict[str, _Key] = {}
    unsafe: _Key | None = None
    for included in include.value if isinstance(include.value, list) else [include.value]:
        target = os.path.realpath(os.path.join(os.path.dirname(path), str(included)))
        if target in (*including, path):
            raise LongEvalError(f"{include.place}: include goes round in a circle", "Leave one out.")
        said_by = f"{include.place}: include "
        inner = _read(target, strict=strict, including=(*including, path), said_by=said_by)
        inner.pop("task_list", None)
        if "unsafe_code" in inner and inner["unsafe_code"].value:
            unsafe = inner["unsafe_code"]
        keys.update(inner)
    keys.update(own)
    if unsafe is not None:  # what is included runs code that a model writes, whatever the file says that includes it
        keys["unsafe_code"] = unsafe
    return keys


def _parse(path: str, said_by: str, *, strict: bool) -> dict[str, _Key]:
    """The keys of one file, without its includes."""
    lines: dict[str, list[int]] = {}

    class Loader(_SafeLoader):  # type: ignore[misc]  # one for each file, whose path and lines it knows
        def construct_document(self, node: yaml.Node) -> Any:
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                lines.setdefault(str(key.value), []).append(key.start_mark.line + 1)
            return super().construct_document(node)

    def function(loader: Any, node: yaml.Node) -> FunctionName:
        return FunctionName(loader.construct_scalar(node), path, node.start_mark.line + 1)

    Loader.add_constructor("!function", function)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise LongEvalError(
            f"{said_by}{path}: can't be read ({reason(error)})", "Give a YAML file of a task."
        ) from error
    try:
        config = next(documents(text, Loader), None)
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1 if mark else 1}"
        raise LongEvalError(f"{where}: not valid YAML ({why_unreadable(error)})", "Repair the file.") from error
    if not isinstance(config, dict):
        raise LongEvalError(f"{path}, line 1: must be a mapping", "A task file has the keys task, dataset_path, …")
    for key, (first, *more) in lines.items():
        if strict and more:  # YAML lets the last of equal keys win silently
            raise LongEvalError(
                f"{path}, line {more[0]}: {key} stands in line {first} already", "Leave one of them out."
            )
    return {key: _Key(value, f"{path}, line {lines.get(key, [1])[-1]}") for key, value in config.items()}


Code = Literal["refused", "named", "run"]
"""What becomes of functions of users' files: the task is refused; it is built, but may not call them; they run."""


class NotRunError(Exception):
    """A function of a user's file was needed, and may not run."""


def functions_in(value: Any) -> list[FunctionName]:
    """All `!function`s in a config or a value of it, in order."""
    if isinstance(value, FunctionName):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for each in inner for name in functions_in(each)]


def own_functions(config: Config) -> tuple[FunctionName, ...]:
    """The functions of a task that neither longeval nor lm-eval brings, in order; each once."""
    return tuple(dict.fromkeys(name for name in functions_in(config) if not _is_shipped(name.file)))


def is_lm_evals(path: str) -> bool:
    """Whether a task file is one of lm-eval's own."""
    return _is_below(path, lm_eval_folder())


def _is_shipped(path: str) -> bool:
    return is_lm_evals(path) or _is_below(path, tasks_dir())


def _is_below(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def with_functions(value: Any, code: Code) -> Any:
    """A config, or a value of it, with functions in place of their names.

    Raises:
        LongEvalError: If a function isn't there; names file and line.
        Exception: Whatever the Python raises that holds a function.
    """
    if isinstance(value, FunctionName):
        return _function(value, code)
    if isinstance(value, dict):
        return {key: with_functions(inner, code) for key, inner in value.items()}
    return [with_functions(inner, code) for inner in value] if isinstance(value, list) else value


def _function(name: FunctionName, code: Code) -> Any:
    """The function itself, from the Python file beside its YAML file or from a package, as lm-eval finds it."""
    from lm_eval.tasks._yaml_loader import _import_func_in_yml

    shipped = _is_shipped(name.file)
    assert shipped or code != "refused", "such tasks are refused before"
    said = f"{name.place}: !function {name.qualified}"
    module, _, attribute = name.qualified.rpartition(".")
    if not module:
        raise LongEvalError(f"{said}: has no module", "Write FILE.NAME for NAME in FILE.py beside it.")
    folder = Path(os.path.dirname(name.file))
    beside = folder / f"{module.replace('.', '/')}.py"
    if not beside.exists() and not _is_package(module):
        raise LongEvalError(f"{said}: there is no {beside}, nor a package {module}", "Correct the name.")
    if code == "named" and not shipped:
        return _stand_in(name.qualified, attribute, beside)
    try:
        return _import_func_in_yml(name.qualified, folder)
    except SyntaxError as error:
        raise LongEvalError(
            f"{error.filename}, line {error.lineno}: not valid Python ({error.msg})", "Correct it."
        ) from error
    except AttributeError as error:
        raise LongEvalError(f"{said}: {error.__cause__ or error}", "Correct the name, or the Python.") from error


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
