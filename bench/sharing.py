"""What it saves that choices share their context's keys and values, and questions their document's.

Shapes: T tokens of a context, S of a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.subject import Request, Text, serve_shipped
from bench.timing import Timed, alternate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from longeval.backends.base import Backend, ChoicesRequest

NUM_CHOICES = 4
NUM_QUESTIONS = 4
CHOICE_TOKENS = 8
QUESTION_TOKENS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """The same choices scored with less sharing first, with all of it second."""

    dtype: str
    length: int
    """Tokens of one question with its document and its choice."""
    questions: int
    """One: each choice in a pass of its own against all together. Several: each question by itself against all."""
    timed: Timed
    largest_difference: float | None
    """Largest |difference| of a choice's log-likelihood between the two, nats: rounding only."""


def measure_sharing(request: Request, dtype: str, text: Text, backend: Backend) -> list[Sharing]:
    """Times choices at the middle length, one repeat each: these are many passes, and the ratios are large."""
    serve_shipped(backend, text)
    length = sorted(request.lengths)[len(request.lengths) // 2]
    asked = questions(text.tokens_T[:length])
    return [
        _compare(
            request, dtype, length, 1, lambda: separate_choices(backend, asked[0]), lambda: together(backend, asked[:1])
        ),
        _compare(
            request,
            dtype,
            length,
            len(asked),
            lambda: [scores for one in asked for scores in together(backend, [one])],
            lambda: together(backend, asked),
        ),
    ]


def _compare(
    request: Request,
    dtype: str,
    length: int,
    num_questions: int,
    less: Callable[[], list[float]],
    everything: Callable[[], list[float]],
) -> Sharing:
    """One row."""
    import numpy as np

    first: list[list[float]] = []
    second: list[list[float]] = []
    timed = alternate(
        lambda: first.append(less()), lambda: second.append(everything()), repeats=1, warm_up=request.warm_up
    )
    difference = None
    if timed.ratio is not None:
        difference = float(np.abs(np.subtract(first[-1], second[-1])).max())
    return Sharing(dtype=dtype, length=length, questions=num_questions, timed=timed, largest_difference=difference)


def questions(tokens_T: npt.NDArray[np.int32]) -> list[ChoicesRequest]:
    """Questions on one document with choices, all words of the text itself, none longer together than the text."""
    import numpy as np

    from longeval.backends.base import ChoicesRequest

    choice, question = min(CHOICE_TOKENS, len(tokens_T) // 8), min(QUESTION_TOKENS, len(tokens_T) // 4)
    document_T = tokens_T[: len(tokens_T) - question - choice]
    starts = range(1, 1 + NUM_CHOICES)
    choices = tuple(tokens_T[start * choice : (start + 1) * choice] for start in starts)
    return [
        ChoicesRequest(
            context_T=np.concatenate([document_T, np.roll(tokens_T, number)[-question:]]), continuations=choices
        )
        for number in range(NUM_QUESTIONS)
    ]


def separate_choices(backend: Backend, request: ChoicesRequest) -> list[float]:
    """Log-likelihoods of the choices, each in a pass over its whole context, as `Backend.score` takes them."""
    import numpy as np

    context_T = request.context_T
    joined = (np.concatenate([context_T, choice_S]) for choice_S in request.continuations)
    return [-float(backend.score(tokens_T, len(context_T)).sum(dtype=float)) for tokens_T in joined]


def together(backend: Backend, requests: list[ChoicesRequest]) -> list[float]:
    """Log-likelihoods of all choices of all questions, in order, from one call."""
    done = dict(backend.choices(requests))
    return [score.log_likelihood for index in range(len(requests)) for score in done[index]]
