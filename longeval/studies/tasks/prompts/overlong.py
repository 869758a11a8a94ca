"""Samples that are too long for the window: documents are cut, samples left out, or an error says what would do.

Only the document is shortened, by as much as it takes, and the task renders the prompt anew, so that template, question
and choices stay whole. Cutting the middle keeps how a document begins and ends; LongBench (Bai et al. 2024, arXiv
2308.14508) cuts prompts so. L-Eval (An et al. 2024, arXiv 2307.11088) keeps the beginning, lm-eval the prompt's end.

U: units in which a text is cut, tokens or, where the tokenizer can't tell, characters.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.run.overview import count
from longeval.studies.tasks.prompts.requests import PromptWindow

Side = Literal["middle", "left", "right"]
"""What is cut out: the middle, the beginning (left) or the end (right)."""

_QUESTIONS = (
    *("answer", "choices", "endings", "goal", "instruction", "instructions"),
    *("problem", "prompt", "query", "question", "target"),
)
"""Fields that are never a document unless the task says so."""

_SLACK = 3
"""Tokens of the window that may stay unused; finding the last ones would take more renderings than they are worth."""

_STEPS = 40
"""Renderings at most; three are usual."""


class NoRoomError(Exception):
    """A sample doesn't fit, even with next to nothing left of its document; `needed` tokens would do."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__(str(needed))


def document_field(doc: Mapping[str, Any], contexts: Iterable[str]) -> str | None:
    """The field that looks like a sample's document, the longest text that stands verbatim in a context; or None."""
    inputs = tuple(contexts)
    found = [
        (len(text), name)
        for name, value in doc.items()
        if isinstance(value, str) and name.lower() not in _QUESTIONS and (text := value.strip())
        if any(text in context for context in inputs)
    ]
    return max(found)[1] if found else None


def cut(text: str, ends_U: npt.NDArray[np.int64], keep: int, side: Side) -> str:
    """`text` with `keep` of its units left.

    Args:
        text: The document.
        ends_U: Where each unit ends, in characters, shape (U,); never decreasing, the last is the text's end.
        keep: 0 … U. Of an odd number the `middle` leaves one more at the beginning.
        side: What is cut out.
    """
    num_units = len(ends_U)
    assert 0 <= keep <= num_units
    head = {"middle": keep - keep // 2, "left": 0, "right": keep}[side]
    starts_U = np.concatenate([np.zeros(1, dtype=np.int64), ends_U])
    return text[: starts_U[head]] + text[starts_U[num_units - (keep - head)] :]


def most_that_fits(measure: Callable[[int], int], num_units: int, *, length: int, tokens: int) -> int:
    """How many units of a document may stay.

    Tokens don't add up exactly where text was cut, so what a number of units comes to is measured: first where it would
    fit if all units were alike, then nearer, until at most a few tokens of the window are unused.

    Args:
        measure: Units kept → tokens of the sample.
        num_units: U, all of them; they don't fit.
        length: Tokens of the window.
        tokens: Tokens of the whole sample, more than `length`.

    Returns:
        A number, at least 1, that `measure` found to fit.

    Raises:
        NoRoomError: Not even one unit fits.
    """
    least = measure(1) if num_units > 1 else tokens
    if least > length:
        raise NoRoomError(least)
    fits, too_many = 1, num_units
    units_per_token = (num_units - 1) / max(1, tokens - least)
    keep = num_units - math.ceil((tokens - length) * units_per_token)
    for _ in range(_STEPS):
        if too_many - fits <= 1:
            break
        keep = keep if fits < keep < too_many else (fits + too_many) // 2
        room = length - measure(keep)
        if room >= 0:
            fits = keep
            if room <= _SLACK:
                break
            keep += max(1, math.floor(room * units_per_token))
        else:
            too_many = keep
            keep -= max(1, math.ceil(-room * units_per_token))
    return fits


class Need(NamedTuple):
    """Tokens that a sample takes of a window at least."""

    tokens: int
    """All of them, with next to nothing left of its document where that may be cut."""
    answer: int
    """Of these, tokens that are kept free for a generated answer."""
    document: bool
    """Whether it has a document that could be cut."""


def too_long(
    name: str, window: PromptWindow, failures: Mapping[int, int], *, need: Callable[[int, int], Need], num_fewshot: int
) -> LongEvalError:
    """One error for all samples that don't fit; the longest of them says what would do.

    Where examples or the room for the answer are what is too much, fewer of them would do instead of a longer window.

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
        parts.append(f"{needed - need(worst, 0).tokens} for its {count(num_fewshot, 'example')}")
        enough = bisect.bisect(range(num_fewshot), window.length, key=lambda number: need(worst, number).tokens)
        if enough:
            flags.append(f"--num-fewshot {enough - 1}")
    because = f" ({', '.join(parts)})" if parts else ""
    instead = "".join(f", {flag}" for flag in flags)
    if window.overlong == "error":
        what = f"{count(len(failures), 'sample')} of task {name} {'does' if len(failures) == 1 else 'do'}n't fit"
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
