"""`--json PATH`: one JSON value to a file, whole or not at all, or to stdout for `-`."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from longeval.errors import LongEvalError


def check_json_path(path: str) -> None:
    """Raises LongEvalError, before anything is computed, where `path` is a folder or lies in none."""
    if path == "-":
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.isdir(folder):
        what = "is a folder" if os.path.isdir(path) else f"there is no folder {folder}"
        raise LongEvalError(f"--json {path}: {what}", "Name a file in a folder that exists, or - for stdout.")


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
    from longeval.cache import write_whole

    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise LongEvalError(
            f"--json {path}: can't write there ({error.strerror or error})", "Choose a folder you may write to."
        ) from error
