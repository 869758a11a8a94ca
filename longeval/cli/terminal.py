"""How commands talk: messages on stderr, results on stdout, nothing that comes from data can steer the terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError, WriteError, reason
from longeval.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """One message on stderr, after the program's name."""
    print(f"longeval: {printable(text)}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """One line of results on stdout."""
    print(printable(text, keep="\t"))


def check_loudness(*, quiet: bool, verbose: bool) -> None:
    """Raises LongEvalError where both are asked for, and has the package's messages follow what is."""
    if quiet and verbose:
        raise LongEvalError("-q and -v: contradict each other", "Give one of them.")
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.getLogger("longeval").setLevel(level)


def reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as after `| head`."""
    return getattr(sys.stdout, "reader_gone", False)


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A rich console for tables and progress.

    Args:
        stderr: Write there instead of stdout.
        options: As for `rich.console.Console`.
    """
    from longeval.cli.console import PrintableConsole

    return PrintableConsole(stderr=stderr, **options)


def check_json_path(path: str | None) -> None:
    """As `check_writable` for `--json`, where `-` is stdout; None, where the flag isn't given, is fine."""
    if path == "-" and getattr(sys.stdout, "absent", False):
        raise LongEvalError("--json -: standard output is closed", "Name a file, or leave standard output open.")
    if path not in (None, "-"):
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

    if (why := why_unwritable(folder, os.path.basename(path))) is not None:
        raise LongEvalError(f"{flag} {path}: can't write there ({why})", "Choose a folder you may write to.")


def write_output(flag: str, path: str, content: bytes) -> None:
    """Writes a user's file, whole or not at all; into a pipe or a device as it comes.

    Raises:
        WriteError: If it can't be written; names the flag.
    """
    from longeval.files import sweep, write_whole

    try:
        if _is_special(path):
            with open(path, "wb") as file:
                file.write(content)
        else:
            real = os.path.realpath(path)
            sweep(os.path.dirname(real))
            write_whole(real, content)
    except OSError as error:
        raise WriteError(
            f"{flag} {path}: can't write there ({reason(error)})", "Choose a folder you may write to."
        ) from error


def _is_special(path: str) -> bool:
    """Whether something is there that is no regular file: a pipe, /dev/null."""
    return os.path.exists(path) and not os.path.isfile(path)


def write_json(value: Any, path: str) -> None:
    """Writes `value` as JSON.

    Args:
        value: Plain JSON types; NaN is a bug (ValueError).
        path: A file, or `-` for stdout; `check_json_path` comes before the work whose result this is.

    Raises:
        WriteError: If it can't be written after all.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if path == "-":
        write_text(text)
    else:
        write_output("--json", path, text.encode())


def write_text(text: str) -> None:
    r"""Writes JSON to stdout, with `\u2026` for what its encoding may lack and a terminal may obey."""

    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True))

    sys.stdout.write(re.sub(r"[^\n -~]", escaped, text))
