"""`--json PATH`: one JSON value to a file, whole or not at all, or to stdout for `-`."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from longeval.errors import LongEvalError


def check_json_path(path: str) -> None:
    """As `check_writable` for `--json`, where `-` is stdout."""
    if path != "-":
        check_writable("--json", path)


def check_writable(flag: str, path: str) -> None:
    """Raises LongEvalError, before anything is computed, if a file can't be written at `path`; leaves nothing."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.isdir(folder):
        what = "is a folder" if os.path.isdir(path) else f"there is no folder {folder}"
        raise LongEvalError(f"{flag} {path}: {what}", "Name a file in a folder that exists.")
    if _is_special(path):
        return
    from longeval.files import why_unwritable

    if (reason := why_unwritable(folder)) is not None:
        raise LongEvalError(f"{flag} {path}: can't write there ({reason})", "Choose a folder you may write to.")


def write_output(path: str, content: bytes) -> None:
    """Writes a user's file, whole or not at all; into what is no regular file (a pipe, /dev/null) as it comes."""
    from longeval.files import write_whole

    if _is_special(path):
        with open(path, "wb") as file:
            file.write(content)
    else:
        write_whole(os.path.realpath(path), content)


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)


def write_json(value: Any, path: str) -> None:
    """Writes `value` as JSON.

    Args:
        value: Plain JSON types; NaN is a bug (ValueError).
        path: A file in a folder that exists, or `-` for stdout.

    Raises:
        LongEvalError: If the file can't be written.
    """
    check_json_path(path)
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        write_output(path, text.encode())
    except OSError as error:
        raise LongEvalError(
            f"--json {path}: can't write there ({error.strerror or error})", "Choose a folder you may write to."
        ) from error
