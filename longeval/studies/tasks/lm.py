"""A backend with a RoPE method as a language model of lm-eval's, which never truncates.

lm-eval's own models cut a request that is longer than they can take from the left, and say so in a log line: the
instructions, or the needle, are gone and the score looks like any other. Here such a request is an error; what becomes
of long documents is decided before, by `evals.overlong`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lm_eval.api.model import TemplateLM

from longeval.backends.base import Backend, ChoicesRequest, GenerateRequest
from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable
from longeval.studies.tasks.prompts.encoding import Encoder, Pair
from longeval.studies.tasks.prompts.requests import Built, Request, Result, build, group, reach, response


class TooLongError(LongEvalError):
    """A request doesn't fit into the window."""

    def __init__(self, tokens: int, length: int) -> None:
        super().__init__(
            f"a request of {tokens} tokens doesn't fit into the window of {length}",
            "Nothing is cut silently: give a longer window, or cut the document (--overlong).",
        )


class TaskLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model under one method at one window length; works in `lm_eval.simple_evaluate` as well.

    Args:
        backend: The loaded model.
        tokenizer: transformers' tokenizer of the model.
        bos: Whether every input starts with a BOS.
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
        bos: bool,
        length: int,
        table: Callable[[int], RopeTable],
        static: bool,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._model = backend  # `backend` is lm-eval's own word for causal or not
        self._length = length
        self._encoder = Encoder(tokenizer, bos=bos)
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
            self._model.serve(part.table, part.length)
            chosen = [(i, request) for i in part.indices if isinstance(request := requests[i], ChoicesRequest)]
            asked = [(i, request) for i in part.indices if isinstance(request := requests[i], GenerateRequest)]
            if chosen:
                for place, scores in self._model.choices([request for _, request in chosen]):
                    yield chosen[place][0], scores
            if asked:
                for place, answer in self._model.generate([request for _, request in asked], self.tokenizer):
                    yield asked[place][0], answer

    def _partitions(self, requests: Sequence[Request]) -> list[_Part]:
        """Requests by equal tables, those with the longest first."""
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

    # What lm-eval asks of a model.

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, window by window; nothing is cut off."""
        return self._responses(requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, whatever the requests say of sampling."""
        return self._responses(requests)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        built = group([Pair(list(context), list(continuation)) for _, context, continuation in requests])
        results = self._results(built)
        found = [results[places[0].request][places[0].continuation] for places in built.places]
        return [(float(score[0]), bool(score[1])) for score in found]

    def _responses(self, instances: Sequence[Any]) -> list[Any]:
        built = build(instances, self._encoder, length=self._length)
        results = self._results(built)
        return [response(*pair, results) for pair in zip(instances, built.places, strict=True)]

    def _results(self, built: Built) -> list[Any]:
        results: list[Any] = [None] * len(built.requests)
        for index, result in self.run(built.requests):
            results[index] = result
        return results

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the window's BOS unless `add_special_tokens` is false."""
        return (self._encoder.plain if add_special_tokens is False else self._encoder.encode)([string])[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model's chat template writes them."""
        return self._encoder.chat(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's caches of prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def max_length(self) -> int:
        """The window, in tokens."""
        return self._length

    @property
    def eot_token_id(self) -> Any:
        """EOS."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands in for an empty context."""
        return self._encoder.prefix_id


class _Part(NamedTuple):
    """Requests that are run under one table."""

    table: RopeTable
    length: int
    """The longest of them, tokens."""
    indices: list[int]
