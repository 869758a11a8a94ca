"""Code that backends share: the end of an answer, the order of prompts, and distinct pairs of context and continuation.

Shapes: T tokens of a prompt or context, S tokens of a continuation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.data.special import special_tokens

Tokens = npt.NDArray[np.int32]

MAX_RETURNS = 2
"""Most copies of the key/value cache for one prompt, each at another length."""
MIN_GAIN = 64
"""Minimum number of tokens that a copy must save."""


def end_tokens(settings: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: those of the model's generation settings, and the tokenizer's end of sequence.

    Args:
        settings: transformers' GenerationConfig of the model, or None.
        tokenizer: transformers' tokenizer of the model.
    """
    configured = getattr(settings, "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None)


class Ending:
    """Finds the end of an answer: an end token, a stop text, or the limit.

    Args:
        tokenizer: The tokenizer that decodes the answer.
        ends: Ids of the end tokens.
        request: The request.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], request: GenerateRequest) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._limit = request.max_new_tokens
        self._stop = request.stop
        # Decoded text has no special tokens, so a stop text that is a special token is found by its id.
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special = special_tokens(tokenizer).ids | named  # transformers 5 lists only those with a role
        self._stop_ids = frozenset(special[text] for text in request.stop if text in special)

    @property
    def ids(self) -> frozenset[int]:
        """Ids of tokens that end the answer."""
        return self._ends | self._stop_ids

    def answer(self, tokens: Sequence[int]) -> Generation | None:
        """The answer if the last of `tokens` ends it, else None."""
        if tokens[-1] in self._ends:
            return Generation(self._text(tokens[:-1]), len(tokens), "eos")
        if tokens[-1] in self._stop_ids:
            return Generation(self._text(tokens[:-1]), len(tokens), "stop")
        if self._stop:
            text = self._text(tokens)
            places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
            if places:
                return Generation(text[: min(places)], len(tokens), "stop")
        if len(tokens) == self._limit:
            return Generation(self._text(tokens), len(tokens), "length")
        return None

    def of_whole(self, tokens: Sequence[int]) -> Generation | None:
        """The answer in tokens of an engine that stops at the same ends.

        None if it isn't complete: the engine found a stop text that isn't in the text as it is decoded here.
        """
        return self.within(tokens, shortest=max(1, len(tokens) - 1))

    def within(self, tokens: Sequence[int], *, shortest: int = 1) -> Generation | None:
        """The answer in tokens that may continue after its end; None if there is no end from `shortest` tokens on."""
        answers = (self.answer(tokens[:size]) for size in range(shortest, len(tokens) + 1))
        return next((answer for answer in answers if answer is not None), None)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOrder:
    """The order of prompts by token ids, in which each shares a prefix as long as possible with the one before."""

    indices: tuple[int, ...]
    """Indices of the prompts in this order."""
    shared: tuple[int, ...]
    """For each place, the tokens shared with the next prompt, but not all of that prompt; 0 for the last."""
    lower: tuple[int, ...]
    """For each place, the next place with a smaller `shared`."""

    def returns(self, place: int) -> tuple[int, ...]:
        """Lengths at which the cache of the prompt at `place` should be copied for later prompts, ascending."""
        lengths: list[int] = []
        while place < len(self.shared) and self.shared[place] >= MIN_GAIN:
            lengths.append(self.shared[place])
            place = self.lower[place]
        gains: dict[int, int] = {}
        below = 0
        for length in reversed(lengths):
            if length - below >= MIN_GAIN:
                gains[length] = length - below
                below = length
        return tuple(sorted(sorted(gains, key=gains.__getitem__)[-MAX_RETURNS:]))


def order_prompts(prompts: Sequence[Tokens]) -> PromptOrder:
    """Sorts prompts by their token ids."""
    # Big-endian bytes have the same order as the ids, and are sorted much faster than lists.
    keys = [prompt_T.astype(">u4").tobytes() for prompt_T in prompts]
    indices = sorted(range(len(prompts)), key=keys.__getitem__)
    shared = [
        min(common_prefix(prompts[one], prompts[other]), len(prompts[other]) - 1)
        for one, other in itertools.pairwise(indices)
    ]
    shared += [0] * bool(indices)
    lower = [len(shared)] * len(shared)
    open_places: list[int] = []
    for place, length in enumerate(shared):
        while open_places and shared[open_places[-1]] > length:
            lower[open_places.pop()] = place
        open_places.append(place)
    return PromptOrder(indices=tuple(indices), shared=tuple(shared), lower=tuple(lower))


def common_prefix(one_T: Tokens, other_T: Tokens) -> int:
    """Length of the common prefix of two prompts, tokens."""
    length = min(len(one_T), len(other_T))
    differs_T = one_T[:length] != other_T[:length]
    return int(differs_T.argmax()) if differs_T.any() else length


class ChoicePair(NamedTuple):
    """One continuation of one context."""

    context_T: Tokens
    continuation_S: Tokens


class DistinctPairs:
    """The distinct pairs of context and continuation in requests. Each is scored once, for all requests that have it.

    Args:
        requests: The requests.
    """

    def __init__(self, requests: Sequence[ChoicesRequest]) -> None:
        self.pairs: list[ChoicePair] = []
        """The pairs sorted by context, so that contexts with a common prefix are next to each other."""
        self.by_context: list[list[int]] = []
        """Indices of the pairs of each distinct context."""
        self._places: list[list[tuple[int, int]]] = []
        """For each pair, its occurrences: (index of a request, index of the continuation in it)."""
        self._scores: list[list[ChoiceScore | None]] = [[None] * len(request.continuations) for request in requests]
        order = order_prompts([request.context_T for request in requests]).indices
        for _, group in itertools.groupby(order, key=lambda index: requests[index].context_T.tobytes()):
            numbers: dict[bytes, int] = {}
            for index in group:
                context_T = requests[index].context_T
                for place, tokens_S in enumerate(requests[index].continuations):
                    assert len(context_T) >= 1 and len(tokens_S) >= 1, "an empty context or continuation"
                    number = numbers.setdefault(tokens_S.tobytes(), len(self.pairs))
                    if number == len(self.pairs):
                        self.pairs.append(ChoicePair(context_T, tokens_S))
                        self._places.append([])
                    self._places[number].append((index, place))
            if numbers:
                self.by_context.append(list(numbers.values()))

    def without_continuations(self) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """Yields (index, no scores) for requests without continuations."""
        for index, scores in enumerate(self._scores):
            if not scores:
                yield index, ()

    def scored(self, number: int, score: ChoiceScore) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """Stores the score of a pair; yields (index, scores) of requests that are now complete."""
        for index, place in self._places[number]:
            self._scores[index][place] = score
            known = [each for each in self._scores[index] if each is not None]
            if len(known) == len(self._scores[index]):
                yield index, tuple(known)
