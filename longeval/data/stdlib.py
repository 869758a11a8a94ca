"""`stdlib`: the longest modules of Python's own standard library, long text that every machine has.

The text belongs to the Python version, which the source's origin names: numbers of two versions don't compare.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Iterator

from longeval.data.documents import Document
from longeval.errors import LongEvalError

NUM_MODULES = 64
_NOT_WRITTEN_BY_HAND = {"pydoc_data", "encodings"}
_TABLES = {"html/entities.py"}
_NOT_THE_LIBRARY = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
}


def stdlib_origin() -> str:
    """What the modules are of: `Python 3.11.9 standard library`."""
    return f"Python {platform.python_version()} standard library"


def list_modules(folder: str | None = None) -> list[str]:
    """Relative paths of the NUM_MODULES longest modules, the longest (in bytes) first, ties by name.

    Left out: tests, what is installed beside the library, and tables that a program wrote.

    Args:
        folder: The library; default: that of the running Python.

    Raises:
        LongEvalError: If there are no sources there (a Python that ships only compiled or zipped modules).
    """
    folder = _folder() if folder is None else folder
    found: list[tuple[int, str]] = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if _is_library(name)]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = os.path.join(parent, name)
                module = os.path.relpath(path, folder).replace(os.sep, "/")
                if module not in _TABLES:
                    found.append((-os.path.getsize(path), module))
    if not found:
        raise LongEvalError(
            f"--data stdlib: no sources in {folder}",
            "This Python ships none: give a text file or folder with --data PATH.",
        )
    return [name for _, name in sorted(found)[:NUM_MODULES]]


def read_stdlib(folder: str | None = None) -> Iterator[Document]:
    """Yields the modules of `list_modules` in its order."""
    folder = _folder() if folder is None else folder
    for name in list_modules(folder):
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
            yield Document(name=name, text=file.read())


def _folder() -> str:
    return sysconfig.get_path("stdlib")


def _is_library(folder: str) -> bool:
    if folder in _NOT_THE_LIBRARY or folder in _NOT_WRITTEN_BY_HAND:
        return False
    return not folder.startswith((".", "config-")) and not folder.endswith(("_test", "-packages"))
