"""When an answer is at its end: the model's own end, a stop text, or the limit; the same for every backend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from longeval.backends.base import GenerateRequest, Generation
from longeval.data.special import special_tokens


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
    """Knows when an answer is at its end.

    Args:
        tokenizer: Decodes it.
        ends: Ids that end it.
        request: What was asked.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], request: GenerateRequest) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._limit = request.max_new_tokens
        self._stop = request.stop
        # A special token is not in the decoded text: one that is named as a stop text is told by its id.
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special = special_tokens(tokenizer).ids | named  # transformers 5 lists those alone that have a role
        self._stop_ids = frozenset(special[text] for text in request.stop if text in special)

    @property
    def ids(self) -> frozenset[int]:
        """Ids of tokens that end the answer."""
        return self._ends | self._stop_ids

    def answer(self, tokens: Sequence[int]) -> Generation | None:
        """The answer if `tokens` are all of it, else None."""
        if tokens[-1] in self._ends or tokens[-1] in self._stop_ids:
            finish: Literal["eos", "stop"] = "eos" if tokens[-1] in self._ends else "stop"
            return Generation(self._text(tokens[:-1]), len(tokens), finish)
        if self._stop:
            text = self._text(tokens)
            if (cut := self._cut(text)) != text:
                return Generation(cut, len(tokens), "stop")
        if len(tokens) == self._limit:
            return Generation(self._text(tokens), len(tokens), "length")
        return None

    def of_whole(self, tokens: Sequence[int]) -> Generation | None:
        """The answer in tokens that were generated elsewhere, by something that stops at the same ends.

        None if they are no answer yet: a stop text was seen there that isn't in the text as it is decoded here.
        """
        return self._first(tokens, max(1, len(tokens) - 1))

    def within(self, tokens: Sequence[int]) -> Generation | None:
        """The answer in tokens that go on behind its end; None if there is no end in them."""
        return self._first(tokens, 1)

    def _first(self, tokens: Sequence[int], least: int) -> Generation | None:
        sizes = range(least, len(tokens) + 1)
        return next((answer for size in sizes if (answer := self.answer(tokens[:size])) is not None), None)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _cut(self, text: str) -> str:
        """The text before the first stop text in it."""
        return text[: min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=len(text))]


# The order in which prompts share as long beginnings as can be, and the lengths that are worth coming back to.

MAX_RETURNS = 2
"""Lengths of one prompt that are worth a copy, at most."""
MIN_GAIN = 64
"""Tokens that a copy must save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOrder:
    """Prompts sorted by their tokens: each shares as much as it can with the one before."""

    indices: tuple[int, ...]
    """Which prompt comes when."""
    shared: tuple[int, ...]
    """By place: tokens in common with the next prompt, which has at least one more; 0 for the last."""
    lower: tuple[int, ...]
    """By place: the next place whose `shared` is smaller."""

    def returns(self, place: int) -> tuple[int, ...]:
        """Lengths of the prompt at `place`, ascending, that later prompts go back to and that are worth a copy."""
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


def order_prompts(prompts: Sequence[npt.NDArray[np.int32]]) -> PromptOrder:
    """Sorts prompts by their token ids."""
    # Big-endian bytes sort as the ids do, and much faster than lists of them.
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


def common_prefix(one_T: npt.NDArray[np.int32], other_T: npt.NDArray[np.int32]) -> int:
    """Number of tokens that two prompts begin with alike."""
    length = min(len(one_T), len(other_T))
    differs_T = one_T[:length] != other_T[:length]
    return int(differs_T.argmax()) if differs_T.any() else length
