"""Exceptions for errors that a user can correct, and short descriptions of other libraries' exceptions.

Every command catches `LongEvalError` at the top: its message goes to stderr, and its `status` is the exit status (see
`cli/app.py`). Bugs raise other exceptions; they show a traceback and end with status 1.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class LongEvalError(Exception):
    """An error that the user can correct.

    Args:
        problem: What is wrong, with the flag or file and the value, such as ``--stride 0: must be at least 1``.
        remedy: What to do, in whole sentences, such as ``Use 256, as Press et al. do.`` May be empty.
    """

    status = 2
    """Exit status of the program; 2 means that the request was wrong and nothing was computed."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(".")
        self.remedy = remedy
        super().__init__(f"{self.problem}. {remedy}".rstrip())

    def __reduce__(self) -> tuple[type[LongEvalError], tuple[str, str]]:
        """Allows pickling, to send the error to another process."""
        return type(self), (self.problem, self.remedy)


class WriteError(LongEvalError):
    """Results can't be written during or after a run, such as on a full disk."""

    status = 1


class MissingDataError(LongEvalError):
    """The data of a task are available neither as a local copy nor from the hub.

    A setting allows a group to be evaluated without such tasks.

    Args:
        problem: See `LongEvalError`.
        remedy: See `LongEvalError`.
        data: The missing data, if known, such as ``hub data set Rowan/hellaswag``.
        reason: Why they are missing; None: `problem`.
    """

    def __init__(self, problem: str, remedy: str = "", *, data: str | None = None, reason: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.data = data
        self.reason = self.problem if reason is None else reason.rstrip(".")


@contextlib.contextmanager
def prefix_errors(subject: str, *, unless: tuple[str, ...]) -> Iterator[None]:
    """Adds `subject` to the start of the problem of LongEvalErrors that are raised inside the block.

    Args:
        subject: What the block is about, such as ``--model NAME``.
        unless: Problems that begin with one of these are not changed.
    """
    try:
        yield
    except LongEvalError as error:
        if error.problem.startswith(unless):
            raise
        raise LongEvalError(f"{subject}: {error.problem}", error.remedy) from error


_LONGEST_REASON = 400
"""Most characters of a reason, because some messages repeat a whole file."""


def reason(error: BaseException) -> str:
    """The message of an exception in one line without a full stop.

    For errors of the operating system, it is the system's message (`Permission denied`). For others, it is the first
    line and, if that ends with a colon (`Validation error for field 'hidden_size':`), the next one.
    """
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    end = next((index for index, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    said = " ".join(lines[: end + 1]).rstrip(".")
    if not end and not isinstance(error, ValueError | OSError | ImportError | RuntimeError):  # as in KeyError: 'model'
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}…"


def check_word(flag: str, word: str, known: Iterable[str]) -> None:
    """Raises LongEvalError with suggestions if `word` is not in `known`."""
    known = tuple(known)
    if word not in known:
        raise LongEvalError(f"{flag} {word}: unknown", did_you_mean(word, known))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a remedy for an unknown `name`: similar known names, if any, and all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.55)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}Known: {', '.join(names)}."
