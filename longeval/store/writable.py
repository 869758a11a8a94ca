"""Whether a run folder can be written, found out before anything is computed and leaving nothing behind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

from longeval.errors import LongEvalError, reason
from longeval.files import why_unwritable


def check_local(path: str, root: str, *, folders: Sequence[str], files: Sequence[str]) -> None:
    """Raises LongEvalError if a local run folder can't be written.

    Args:
        path: The folder as the user named it.
        root: The same as a path of the file system.
        folders: Names of the folders in it.
        files: Names of the files in it.
    """
    _check_name(path, root)
    folder = os.path.abspath(root)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    inside = [f"{root}/{name}" for name in folders]
    for part in (folder, *filter(os.path.lexists, inside)):
        if not os.path.isdir(part):
            what = "a file" if os.path.exists(part) else "a link to what isn't there"
            raise LongEvalError(f"--out {path}: {part} is {what}", "Choose another folder.")
        if (why := why_unwritable(part)) is not None:
            raise LongEvalError(f"--out {path}: can't write there ({why})", "Choose a folder you may write to.")
    for part in (f"{root}/{name}" for name in files):
        if os.path.lexists(part) and not os.path.isfile(part):
            raise LongEvalError(f"--out {path}: {part} is no file", "Remove it, or choose another folder.")
    try:
        os.lstat(os.path.join(os.path.abspath(root), "cells", ".a-name-as-long-as-those-of-temporary-files"))
    except FileNotFoundError:
        pass
    except OSError as error:  # a part of it is too long, or all of it
        raise LongEvalError(f"--out {path}: {reason(error)}", "Choose another folder.") from error


def _check_name(path: str, root: str) -> None:
    """Raises LongEvalError for a local folder that can't be meant."""
    name = path.split("://", 1)[-1]
    if name.startswith("~") and os.path.expanduser(name) == name:
        raise LongEvalError(
            f"--out {path}: there is no user {name[1:].split('/')[0]}",
            f"Name another folder; ./{name} is one whose name begins with ~.",
        )
    if name != path and not name.startswith(("/", "~")):
        raise LongEvalError(f"--out {path}: not an absolute path", f"Give file://{os.path.abspath(name)}.")
    if os.path.realpath(root) == os.sep:
        raise LongEvalError(f"--out {path}: the root of the file system", "Name a folder in it.")


def check_remote(path: str, root: str, files: Any) -> None:
    """Raises LongEvalError unless a file can be written into a folder that is not local, and removed again.

    Args:
        path: The folder as the user named it.
        root: The same as a path of the file system.
        files: The fsspec file system.
    """
    probe = f"{root}/.longeval-{uuid.uuid4().hex}"
    try:
        files.pipe_file(probe, b"?")
        files.rm_file(probe)
    except Exception as error:  # a file system's package may raise anything
        raise LongEvalError(
            f"--out {path}: can't write there ({reason(error)})", "Choose a folder you may write to."
        ) from error
