"""Python that task files name (`!function`): found without running it, and a user's run only where they ask for it.

Files of longeval and of lm-eval are part of what was installed, and their functions are too.
"""

from __future__ import annotations

import importlib.util
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.files import Config, FunctionName, functions_in, lm_eval_folder, tasks_dir

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
