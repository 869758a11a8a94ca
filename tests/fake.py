"""A backend whose answer is known in closed form, for tests of everything above it.

Token t's negative log-likelihood is a given function of (token id, position in the window), so every perplexity can be
worked out by hand; what it says of choices and what it answers are given functions as well. Tables are really built and
digested, nothing else is computed.

Shapes: B windows, T tokens of a context or prompt, S scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.backends.base import ChoiceScore, ChoicesRequest, GenerateRequest, Generation, OutOfMemoryError
from longeval.rope.base import RopeTable, table_digest

Tokens = npt.NDArray[np.int32]
NllFunction = Callable[[Tokens, npt.NDArray[np.int64], RopeTable], npt.NDArray[np.float64]]
ChoiceFunction = Callable[[Tokens, Tokens, RopeTable], float]
AnswerFunction = Callable[[Tokens, RopeTable], str]


class FakeBackend:
    """See `Backend`.

    Args:
        nll: (token ids (S,), their positions (S,), the served table) → nats (S,).
        max_tokens: Passes of more tokens than this raise OutOfMemoryError.
        choice: (context (T,), continuation (S,), the served table) → log-likelihood of the continuation, nats; unless
            given, what `nll` says of its tokens. Greedy is where a token has more than 1/2 in the geometric mean.
        answer: (prompt (T,), the served table) → what the model would say if nothing stopped it but itself.
    """

    name = "fake"
    dtype = "float32"
    device = "fake"

    def __init__(
        self,
        nll: NllFunction,
        max_tokens: int | None = None,
        *,
        choice: ChoiceFunction | None = None,
        answer: AnswerFunction | None = None,
    ) -> None:
        self._nll = nll
        self._max_tokens = max_tokens
        self._choice = choice or self._choice_by_nll
        self._answer = answer
        self._table: RopeTable | None = None
        self._length = 0
        self.windows: list[tuple[int, int]] = []
        """(window length, first scored) of every call of `score`, in order."""
        self.batches: list[int] = []
        """How many windows every call of `score_batch` had, in order."""
        self.served: list[tuple[RopeTable, int]] = []
        """Every table that was served, and its length, in order."""
        self.asked: list[ChoicesRequest | GenerateRequest] = []
        """Every request that was answered, in order."""

    def serve(self, table: RopeTable, length: int) -> None:
        """See `Backend.serve`."""
        self._table, self._length = table, length
        self.served.append((table, length))

    def rope_digest(self, length: int) -> str:
        """See `Backend.rope_digest`."""
        assert self._table is not None and length <= self._length
        tables = [self._table] if self._table.local is None else [self._table, self._table.local]
        return table_digest(*(table.cos_sin(np.arange(length, dtype=np.int64)) for table in tables))

    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        table = self._table_for(len(tokens_T))
        assert 1 <= first_scored <= len(tokens_T)
        self.windows.append((len(tokens_T), first_scored))
        positions_S = np.arange(first_scored, len(tokens_T), dtype=np.int64)
        return self._nll(tokens_T[first_scored:], positions_S, table).astype(np.float32)

    def score_batch(
        self, tokens_BT: npt.NDArray[np.int32], first_scored_B: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """See `Backend.score_batch`; `max_tokens` bounds the tokens of all windows together."""
        self._table_for(tokens_BT.shape[1])
        if self._max_tokens is not None and tokens_BT.size > self._max_tokens:
            raise OutOfMemoryError(f"{tokens_BT.size} tokens")
        self.batches.append(len(tokens_BT))
        return [self.score(tokens_T, first) for tokens_T, first in zip(tokens_BT, first_scored_B, strict=True)]

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """See `Backend.choices`; the last request comes first."""
        for index in reversed(range(len(requests))):
            request = requests[index]
            assert len(request.context_T) >= 1 and all(len(tokens_S) >= 1 for tokens_S in request.continuations)
            longest = max((len(tokens_S) for tokens_S in request.continuations), default=0)
            table = self._table_for(len(request.context_T) + longest)
            self.asked.append(request)
            yield index, tuple(self._score(request.context_T, tokens_S, table) for tokens_S in request.continuations)

    def _score(self, context_T: Tokens, tokens_S: Tokens, table: RopeTable) -> ChoiceScore:
        total = self._choice(context_T, tokens_S, table)
        return ChoiceScore(total, total > -len(tokens_S) * math.log(2))

    def _choice_by_nll(self, context_T: Tokens, tokens_S: Tokens, table: RopeTable) -> float:
        positions_S = np.arange(len(context_T), len(context_T) + len(tokens_S), dtype=np.int64)
        return -float(self._nll(tokens_S, positions_S, table).sum())

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """See `Backend.generate`; the last request comes first. The end of the answer is a token of its own."""
        assert self._answer is not None, "this backend was given no answers"
        for index in reversed(range(len(requests))):
            request = requests[index]
            assert len(request.prompt_T) >= 1 and request.max_new_tokens >= 1 and all(request.stop)
            table = self._table_for(len(request.prompt_T) + request.max_new_tokens)
            self.asked.append(request)
            ids = tokenizer.encode(self._answer(request.prompt_T, table), add_special_tokens=False)
            yield index, _told(ids, request, tokenizer)

    def _table_for(self, length: int) -> RopeTable:
        """The served table, if it and the memory are long enough."""
        assert self._table is not None and length <= self._length, "the served table is too short"
        if self._max_tokens is not None and length > self._max_tokens:
            raise OutOfMemoryError(f"{length} tokens")
        return self._table

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`."""

    def peak_memory_bytes(self) -> int | None:
        """See `Backend.peak_memory_bytes`."""
        return None

    def close(self) -> None:
        """See `Backend.close`; nothing is held."""


def _told(ids: Sequence[int], request: GenerateRequest, tokenizer: Any) -> Generation:
    """The answer of which `ids` are all tokens, as far as it gets."""
    text = ""
    for number, _ in enumerate(ids[: request.max_new_tokens], start=1):
        text = tokenizer.decode(ids[:number], skip_special_tokens=True)
        places = [place for stop in request.stop if (place := text.find(stop)) >= 0]
        if places:
            return Generation(text[: min(places)], number, "stop")
    if len(ids) < request.max_new_tokens:
        return Generation(text, len(ids) + 1, "eos")
    return Generation(text, request.max_new_tokens, "length")
