"""The `openai` backend: any server with OpenAI's completions interface.

An outside server's RoPE can't be set: it computes what it was started with. One that `longeval serve` started says
which table its engine holds, and a digest is recorded where that is the one asked for; of others none is.
Prompts go as token ids of our tokenizer, several at once, sorted so that a server with a prefix cache finds what they
share. What the server understands is asked once (see `dialect`).
Interface: https://platform.openai.com/docs/api-reference/completions.

Shapes: T tokens of a window or prompt, S scored tokens.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.backends.answering import ChoicePair, DistinctPairs, Ending, order_prompts
from longeval.backends.base import ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.backends.openai.client import ANSWER_S, Body, Client, RefusedError, in_flight
from longeval.backends.openai.dialect import COMPLETIONS, Dialect, UnreadableError, answer_ids, choice_of, told_count
from longeval.backends.openai.server import find_model, too_long
from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable

MOST_STOPS = 4
"""Most stop texts in a request (vLLM 0.32 refuses a fifth); further ones are searched in the answer."""

_TOO_LONG = re.compile(
    r"context|maximum (model )?length|max_model_len|too long|too large|exceed|max_tokens .*got 0", re.IGNORECASE
)
"""Messages of servers about a prompt that is too long; the last is vLLM's for a prompt of exactly its length."""


class OpenAIBackend:
    """A model on a server, see `Backend`.

    Args:
        base_url: Address including the version, such as `http://127.0.0.1:8000/v1`.
        tokenizer: transformers' tokenizer of the served model.
        api_key: Bearer token, or None.
        model: The model's name at the server; None: the server's only model.
        timeout_s: Time limit of one answer.
        concurrency: Number of concurrent requests.

    Raises:
        LongEvalError: The server can't be reached, has another interface, refuses the key, or has no such model.
    """

    name = "openai"
    dtype = "unknown"

    def __init__(
        self,
        *,
        base_url: str,
        tokenizer: Any,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = ANSWER_S,
        concurrency: int = 16,
    ) -> None:
        self._client = Client(base_url, api_key, timeout_s=timeout_s, connections=concurrency)
        server = find_model(self._client, model)
        self.served_model = server.model
        """The model's name at the server."""
        self.max_length = server.max_length
        """Most tokens of a prompt with its answer, or None if the server doesn't state it."""
        self._method = server.method
        self._table: RopeTable | None = None
        self.device = f"server {self._client.host}"
        self._dialect = Dialect(self._client, server.model, tokenizer)
        self._concurrency = concurrency
        self._length = 0

    def serve(self, table: RopeTable, length: int) -> None:
        """Remembers what should be served; the server's own table stays what it is."""
        self._table, self._length = table, length

    def rope_digest(self, length: int) -> str | None:
        """See `Backend.rope_digest`: of the table that is asked for, if the server says that its engine holds it.

        None for a server that says nothing, and for one that says something else than it did to the plan.
        """
        table, method = self._table, self._method
        if table is None or method is None or length > method.length or not method.holds(table):
            return None
        return table.digest(length)

    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        return self.score_batch(tokens_T[None], [first_scored])[0]

    def score_batch(
        self, tokens_BT: npt.NDArray[np.int32], first_scored_B: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """See `Backend.score_batch`. Each window is one request to the server, which batches them as it likes."""
        length = tokens_BT.shape[1]
        assert all(1 <= first <= length for first in first_scored_B)
        found = [np.zeros(0, np.float32) for _ in first_scored_B]
        asked = [row for row, first in enumerate(first_scored_B) if first < length]
        if asked:
            self._check_room(length, 1)
        bodies = ((row, self._dialect.scoring_body(tokens_BT[row].tolist(), greedy=False)) for row in asked)
        for row, answer in in_flight(self._post, bodies, self._concurrency):
            scored = self._dialect.read(choice_of(answer, length), tokens_BT[row].tolist(), first_scored_B[row])
            found[row] = -np.array(scored.log_p_S, dtype=np.float32)
        return found

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """See `Backend.choices`. Each distinct pair of context and continuation is one request to the server."""
        distinct = DistinctPairs(requests)
        for context_T, tokens_S in distinct.pairs:
            self._check_room(len(context_T) + len(tokens_S), 1)
        yield from distinct.without_continuations()
        bodies = (
            (number, self._dialect.scoring_body(_ids(pair), greedy=True)) for number, pair in enumerate(distinct.pairs)
        )
        for number, answer in in_flight(self._post, bodies, self._concurrency):
            yield from distinct.scored(number, self._choice_score(answer, distinct.pairs[number]))

    def _choice_score(self, answer: Body, pair: ChoicePair) -> ChoiceScore:
        ids = _ids(pair)
        scored = self._dialect.read(choice_of(answer, len(ids)), ids, len(pair.context_T))
        if scored.greedy_S is None:
            raise LongEvalError(
                f"--base-url {self._client.shown}: gives log-probabilities without top_logprobs, so it is unknown "
                "whether a choice is the most probable",
                "Use tasks with generated answers, or another server, such as vLLM's.",
            )
        return ChoiceScore(math.fsum(scored.log_p_S), all(scored.greedy_S))

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """See `Backend.generate`. The server decides where the model ends its answer."""
        for request in requests:
            assert len(request.prompt_T) >= 1 and request.max_new_tokens >= 1, "an empty prompt or answer"
            assert all(request.stop), "an empty stop text"
            self._check_room(len(request.prompt_T), request.max_new_tokens)
        if requests:
            self._dialect.check_reading()
        ends = frozenset() if tokenizer.eos_token_id is None else frozenset({int(tokenizer.eos_token_id)})
        order = order_prompts([request.prompt_T for request in requests]).indices
        endings = {index: Ending(tokenizer, ends, requests[index]) for index in order}
        bodies = ((index, self._generation_body(requests[index], endings[index])) for index in order)
        for index, answer in in_flight(self._post, bodies, self._concurrency):
            yield index, _generation(answer, requests[index], endings[index], tokenizer)

    def _generation_body(self, request: GenerateRequest, ending: Ending) -> Body:
        body = self._dialect.body(request.prompt_T.tolist(), request.max_new_tokens)
        if request.stop:
            body["stop"] = list(dict.fromkeys(request.stop))[:MOST_STOPS]
        if self._dialect.form.returns_ids:
            # vLLM takes defaults from the model's generation settings, in which a penalty would change greedy answers.
            body |= {"return_token_ids": True, "repetition_penalty": 1.0, "stop_token_ids": sorted(ending.ids)}
        return body

    def _check_room(self, num_prompt: int, num_new: int) -> None:
        """Raises LongEvalError if a prompt and `num_new` generated tokens are too long for the server."""
        # A scored window has the served length, and one token is generated after it.
        assert num_prompt + num_new - 1 <= self._length, "longer than the length that is served"
        if self.max_length is not None and num_prompt + num_new > self.max_length:
            raise self._too_long(
                f"{num_prompt} tokens and {num_new} to generate exceed the server's model length {self.max_length}"
            )

    def _too_long(self, what: str) -> LongEvalError:
        return too_long(self._length, self._length + 1, what)

    def _post(self, body: Body, stop: threading.Event | None = None) -> Body:
        try:
            return self._client.post(COMPLETIONS, body, stop)
        except RefusedError as error:
            if _TOO_LONG.search(error.message):
                raise self._too_long(f"the server refuses a request of that length ({error.message})") from None
            raise

    def reset_peak_memory(self) -> None:
        """Does nothing, because the server's memory can't be read."""

    def peak_memory_bytes(self) -> int | None:
        """None, because the server's memory can't be read."""
        return None

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def _ids(pair: ChoicePair) -> list[int]:
    """Token ids of a context with its continuation."""
    return [*pair.context_T.tolist(), *pair.continuation_S.tolist()]


def _generation(answer: Body, request: GenerateRequest, ending: Ending, tokenizer: Any) -> Generation:
    """Reads the answer that a server sent.

    If it has token ids, the result is the same as for other backends. Otherwise stop texts are searched in the text. If
    the server ended it with `stop` without a reason, a stop text counts as the reason if the request has any.

    Raises:
        UnreadableError: There is no answer, or the server ended it for another reason.
    """
    choice = choice_of(answer, len(request.prompt_T))
    text, why, by = choice.get("text"), choice.get("finish_reason"), choice.get("stop_reason")
    if not isinstance(text, str) or why not in ("stop", "length"):
        raise UnreadableError(f"the server ended an answer with {why!r}, neither stop nor length")
    limit, tokens = request.max_new_tokens, answer_ids(choice)
    if tokens:
        if len(tokens) > limit or not all(0 <= token < 2**31 for token in tokens):
            raise UnreadableError(f"the server sent token ids that can't be an answer of {limit} tokens")
        if (found := ending.within(tokens)) is not None:
            return found
        if why == "length":
            raise _own_limit(len(tokens), limit)
        # vLLM searches stop texts while it decodes token by token, where half a character looks different. Without a
        # stop text, the answer ended with an end token that only the model's generation settings name.
        is_text = isinstance(by, str)
        decoded: str = tokenizer.decode(tokens if is_text else tokens[:-1], skip_special_tokens=True)
        return Generation(decoded, len(tokens), "stop" if is_text else "eos")
    cut, told = first_stop(text, request.stop), told_count(answer, "completion_tokens")
    num_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"]) if told is None else told
    if why == "length" and cut == text:
        if told is not None and told < limit:
            raise _own_limit(told, limit)
        return Generation(text, num_tokens, "length")
    return Generation(cut, num_tokens, "stop" if request.stop or isinstance(by, str) else "eos")


def _own_limit(num_tokens: int, limit: int) -> UnreadableError:
    return UnreadableError(f"the server ended an answer after {num_tokens} of {limit} tokens, by its own limit")


def first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop text that is complete first when the text is read from the start."""
    seen = min((place + len(stop) for stop in stops if (place := text.find(stop)) >= 0), default=None)
    if seen is None:
        return text
    return text[: min(place for stop in stops if (place := text.find(stop, 0, seen)) >= 0)]
