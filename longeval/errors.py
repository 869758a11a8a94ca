"""The exceptions for what a user can correct, and the words for what other libraries raise.

Every command catches a `LongEvalError` at the top: its one message goes to stderr, and the exit status is its own (see
`cli/app.py`). Bugs are not `LongEvalError`s: they keep their traceback and end with status 1.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class LongEvalError(Exception):
    """What was wrong, and what to do about it.

    Args:
        problem: What was wrong, naming the flag or file and the value: ``--stride 0: must be at least 1``.
        remedy: What to do: ``Use 256, as Press et al. do.`` Whole sentences; may be empty if `problem` says it.
    """

    status = 2
    """Exit status of the program: the request was wrong, and nothing was computed."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(".")
        self.remedy = remedy
        super().__init__(f"{self.problem}. {remedy}".rstrip())

    def __reduce__(self) -> tuple[type[LongEvalError], tuple[str, str]]:
        """Lets it be pickled for another process."""
        return type(self), (self.problem, self.remedy)


class WriteError(LongEvalError):
    """Results that can't be written, found while computing or afterwards: a full disk, a folder that went away."""

    status = 1


class MissingDataError(LongEvalError):
    """Data of a task that can't be had here, neither from a local copy nor from the hub.

    A group may be evaluated without such a task where the user says so.

    Args:
        problem: As for `LongEvalError`.
        remedy: As for `LongEvalError`.
        data: What is missing, where that is known apart from the reason: ``hub data set Rowan/hellaswag``.
        reason: Why; default: `problem`.
    """

    def __init__(self, problem: str, remedy: str = "", *, data: str | None = None, reason: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.data = data
        self.reason = self.problem if reason is None else reason.rstrip(".")


@contextlib.contextmanager
def said_of(subject: str, *, unless: tuple[str, ...]) -> Iterator[None]:
    """Puts `subject` in front of the problems of LongEvalErrors that are raised inside the block.

    Args:
        subject: What the block is about: ``--model NAME``.
        unless: Beginnings of problems that stay as they are.
    """
    try:
        yield
    except LongEvalError as error:
        if error.problem.startswith(unless):
            raise
        raise LongEvalError(f"{subject}: {error.problem}", error.remedy) from error


_LONGEST_REASON = 400
"""Characters; some messages repeat a whole file."""


def reason(error: BaseException) -> str:
    """What an exception says, in one line without a full stop at its end.

    Of the operating system's errors that is the system's own words (`Permission denied`); of others the first line, and
    where this is a heading (`Validation error for field 'hidden_size':`), also what follows.
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
    """Raises LongEvalError with suggestions unless `word` is one of the `known` ones."""
    known = tuple(known)
    if word not in known:
        raise LongEvalError(f"{flag} {word}: unknown", did_you_mean(word, known))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a sentence for an unknown `name`: the nearest known names if any are near, and all of them if few."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.55)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}Known: {', '.join(names)}."
