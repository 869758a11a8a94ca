"""Why a sample doesn't fit into a window though its document may be cut, and what would make room for it.

A window holds examples, instruction, question and choices or answer beside the document. Where examples or the room for
the answer are what is too much, fewer of them do instead of a longer window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from longeval.errors import LongEvalError
from longeval.studies.tasks.prompts.prepared import Window


class Need(NamedTuple):
    """Tokens that a sample takes of a window at least."""

    tokens: int
    """All of them, with next to nothing left of its document where that may be cut."""
    answer: int
    """Of these, tokens that are kept free for a generated answer."""
    document: bool
    """Whether it has a document that could be cut."""


def too_long(
    name: str, window: Window, failures: Mapping[int, int], *, need: Callable[[int, int], Need], num_fewshot: int
) -> LongEvalError:
    """One error for all samples that don't fit; the longest of them says what would do.

    Args:
        name: The task's.
        window: What they don't fit into.
        failures: Index of each sample → tokens of the shortest window that would do for it.
        need: Index and number of examples → what the sample takes with so many.
        num_fewshot: Examples that they have now.
    """
    worst = max(failures, key=lambda index: failures[index])
    needed, now = failures[worst], need(worst, num_fewshot)
    parts, flags = [], []
    if now.answer:
        parts.append(f"{now.answer} of them for its answer")
        if needed - now.answer < window.length:
            flags.append(f"--max-new-tokens {window.length - needed + now.answer}")
    if num_fewshot:
        parts.append(f"{needed - need(worst, 0).tokens} for its {_count(num_fewshot, 'example')}")
        fitting = _most_examples(lambda number: need(worst, number).tokens, num_fewshot, window.length)
        if fitting is not None:
            flags.append(f"--num-fewshot {fitting}")
    because = f" ({', '.join(parts)})" if parts else ""
    instead = "".join(f", {flag}" for flag in flags)
    if window.overlong == "error":
        what = f"{_count(len(failures), 'sample')} of task {name} {'does' if len(failures) == 1 else 'do'}n't fit"
        return LongEvalError(
            f"--overlong error: {what} into {window.length} tokens; the longest, sample {worst}, needs "
            f"{needed}{because}",
            f"Use --lengths {needed}{instead}, or --overlong middle to cut documents, or skip.",
        )
    whole = "with next to nothing left of its document" if now.document else "and has no document that could be cut"
    return LongEvalError(
        f"--lengths {window.length}: too short for question and choices of task {name}: sample {worst} needs {needed} "
        f"tokens {whole}{because}",
        f"Use --lengths {needed} or more{instead}, or leave such samples out (--overlong skip).",
    )


def _most_examples(tokens: Callable[[int], int], num_fewshot: int, length: int) -> int | None:
    """The most examples, fewer than there are, with which a sample fits; None where it doesn't with any."""
    if tokens(0) > length:
        return None
    fits, too_many = 0, num_fewshot
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if tokens(middle) <= length:
            fits = middle
        else:
            too_many = middle
    return fits


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
