"""Python that users' task files name (`!function`): found without running it, and run only where users ask for it.

Files of longeval and of lm-eval are part of what was installed, and their functions are too.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.configs import Config, FunctionName, functions_in
from longeval.studies.tasks.definitions.folders import find_lm_eval, tasks_dir

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
    """The error for a task that runs code without the user's word for it."""
    return LongEvalError(
        f"--tasks {task}: runs Python that its file names: !function {said(functions)}",
        "Read that code, and if you trust it add --trust-remote-code.",
    )


@contextlib.contextmanager
def functions_of_files(code: Code) -> Iterator[None]:
    """What lm-eval gets for a `!function` of a user's file while it reads task files inside the block."""
    from lm_eval.tasks import _yaml_loader

    original = _yaml_loader._import_func_in_yml

    def find(qualified: str, folder: Path) -> Any:
        if code == "run" or _is_shipped(str(folder)):
            return original(qualified, folder)
        if code == "named":
            return _stand_in(qualified, folder)
        raise LongEvalError(f"!function {qualified} in {folder}: runs Python", "If you trust it: --trust-remote-code.")

    _yaml_loader._import_func_in_yml = find
    try:
        yield
    finally:
        _yaml_loader._import_func_in_yml = original


def is_lm_evals(path: str) -> bool:
    """Whether a task file is one of lm-eval's own."""
    return _is_below(path, find_lm_eval().folder)


def _is_shipped(path: str) -> bool:
    return is_lm_evals(path) or _is_below(path, tasks_dir())


def _is_below(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


def _stand_in(qualified: str, folder: Path) -> Any:
    """A function that can be named, but not called; its source is the file that it stands for, as in cells' ids."""
    module, _, name = qualified.rpartition(".")

    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotRunError(qualified)

    file = (folder / f"{module.replace('.', '/')}.py").resolve()
    code = function.__code__.replace(co_filename=str(file)) if file.exists() else function.__code__
    stand_in = types.FunctionType(code, {**globals()}, name, closure=function.__closure__)
    stand_in.__qualname__ = name
    return stand_in
