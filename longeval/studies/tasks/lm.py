"""A model under one RoPE method that answers a task's requests, and never truncates one.

lm-eval's own models cut a request that is longer than they can take from the left, and say so in a log line: the
instructions, or the needle, are gone and the score looks like any other. Here such a request is an error; what becomes
of long documents is decided before, in `prompts.overlong`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from longeval.backends.base import Backend, ChoicesRequest, GenerateRequest
from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable
from longeval.studies.tasks.prompts.requests import Request, Result, reach


class TooLongError(LongEvalError):
    """A request doesn't fit into the window."""

    def __init__(self, tokens: int, length: int) -> None:
        super().__init__(
            f"a request of {tokens} tokens doesn't fit into the window of {length}",
            "Nothing is cut silently: give a longer window, or cut the document (--overlong).",
        )


class TaskLM:
    """A model under one method at one window length.

    Args:
        backend: The loaded model.
        tokenizer: transformers' tokenizer of the model.
        length: Window length in tokens: prompt and longest choice, or prompt and answer, at most.
        table: Length → RoPE table.
        static: Whether the table doesn't depend on the length; it is then served once, for the window. Otherwise
            every request gets the table of its own length: what it takes in and may give out.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        tokenizer: Any,
        length: int,
        table: Callable[[int], RopeTable],
        static: bool,
    ) -> None:
        self._backend = backend
        self._tokenizer = tokenizer
        self._length = length
        self._table = table
        self._static = static

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Yields (index of a request, its result) as they are done, in any order.

        Raises:
            TooLongError: A request doesn't fit into the window; nothing has been run then.
            OutOfMemoryError: While iterating: see `Backend`.
        """
        for request in requests:
            if reach(request) > self._length:
                raise TooLongError(reach(request), self._length)
        return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        for part in self._partitions(requests):
            self._backend.serve(part.table, part.length)
            chosen = [(i, request) for i in part.indices if isinstance(request := requests[i], ChoicesRequest)]
            asked = [(i, request) for i in part.indices if isinstance(request := requests[i], GenerateRequest)]
            if chosen:
                for place, scores in self._backend.choices([request for _, request in chosen]):
                    yield chosen[place][0], scores
            if asked:
                for place, answer in self._backend.generate([request for _, request in asked], self._tokenizer):
                    yield asked[place][0], answer

    def _partitions(self, requests: Sequence[Request]) -> list[_Part]:
        """Groups requests by equal tables; the group with the longest request comes first."""
        if not requests:
            return []
        if self._static:
            length = self._length
            return [_Part(self._table(length), length, list(range(len(requests))))]
        by_reach: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_reach.setdefault(reach(request), []).append(index)
        parts: list[_Part] = []
        for length in sorted(by_reach, reverse=True):
            table = self._table(length)
            if parts and parts[-1].table.same_as(table):
                parts[-1].indices.extend(by_reach[length])
            else:
                parts.append(_Part(table, length, by_reach[length]))
        return parts


class _Part(NamedTuple):
    """Requests that are run under one table."""

    table: RopeTable
    length: int
    """The longest of them, tokens."""
    indices: list[int]
