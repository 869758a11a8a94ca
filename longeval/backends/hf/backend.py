"""The `hf` backend: a transformers causal language model.

The decoder runs once over a window, or over several of equal length. Logits are computed only at positions whose
next token is scored (see `parts`). Choices and answers run prompt by prompt, in an order in which prompts that begin
alike follow one another and share that part's keys and values (see `prefix_cache`).

Shapes: B windows, T tokens of a window or prompt, S scored ones or those of a continuation, Q of all that run in one
pass, V vocabulary, H hidden size.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from longeval.backends.answering import DistinctPairs, Ending, end_tokens, order_prompts
from longeval.backends.base import Backend, ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.backends.hf import memory
from longeval.backends.hf.parts import ModelParts, memory_told, replace_rotary
from longeval.backends.hf.prefix_cache import PrefixCache
from longeval.errors import LongEvalError
from longeval.models.device import device_name
from longeval.rope.base import RopeTable

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

Tokens = npt.NDArray[np.int32]


class HFBackend:
    """A loaded transformers model with its rotary module replaced. See `Backend`.

    Args:
        model: A causal language model in eval mode. It is changed: its rotary module is replaced for good.

    Raises:
        LongEvalError: The rotary embedding can't be found or replaced, or the model has no separable decoder.
    """

    name = "hf"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._parts = ModelParts(model)
        self._rotary, self.shipped = replace_rotary(model, model.config.model_type)
        self.device = device_name(str(self._parts.device))

    def serve(self, table: RopeTable, length: int) -> None:
        """See `Backend.serve`."""
        self._rotary.serve(table, length)

    def rope_digest(self, length: int) -> str:
        """See `Backend.rope_digest`."""
        return self._rotary.digest(length)

    def score(self, tokens_T: Tokens, first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        return self.score_batch(tokens_T[None], [first_scored])[0]

    @torch.inference_mode()
    def score_batch(self, tokens_BT: Tokens, first_scored_B: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """See `Backend.score_batch`. The scored tokens of all windows share the chunks of logits."""
        assert all(1 <= first <= tokens_BT.shape[1] for first in first_scored_B)
        with memory_told():
            ids_BT = torch.from_numpy(tokens_BT.astype(np.int64)).to(self._parts.device)
            # The last token predicts nothing that is scored: it stays out of the pass.
            decoded = self._parts.decoder(input_ids=ids_BT[:, :-1], use_cache=False)
            starts = list(enumerate(first_scored_B))
            hidden_QH = torch.cat([decoded.last_hidden_state[row, first - 1 :] for row, first in starts])
            targets_Q = torch.cat([ids_BT[row, first:] for row, first in starts])
            nll_Q = self._parts.score(decoded, hidden_QH, targets_Q).nll_S.cpu().numpy()
        ends = np.cumsum([tokens_BT.shape[1] - first for first in first_scored_B])
        return np.split(nll_Q, ends[:-1])

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """See `Backend.choices`."""
        distinct = DistinctPairs(requests)
        for context_T, tokens_S in distinct.pairs:
            assert len(context_T) + len(tokens_S) <= self._rotary.length, "the table is too short"
        yield from distinct.without_continuations()
        contexts = [distinct.pairs[numbers[0]].context_T for numbers in distinct.by_context]
        order = order_prompts(contexts)  # which they are in
        cache = PrefixCache(self._parts)
        try:
            for place, numbers in enumerate(distinct.by_context):
                continuations = [distinct.pairs[number].continuation_S for number in numbers]
                with memory_told():
                    scores = _score_context(self._parts, cache, contexts[place], continuations, order.returns(place))
                for number, score in zip(numbers, scores, strict=True):
                    yield from distinct.scored(number, score)
        finally:
            cache.release()

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """See `Backend.generate`."""
        for request in requests:
            assert len(request.prompt_T) >= 1 and request.max_new_tokens >= 1, "an empty prompt or answer"
            assert len(request.prompt_T) + request.max_new_tokens <= self._rotary.length, "the table is too short"
            assert all(request.stop), "an empty stop text"
        order = order_prompts([request.prompt_T for request in requests])
        ends = end_tokens(getattr(self.model, "generation_config", None), tokenizer)
        cache = PrefixCache(self._parts)
        try:
            for place, index in enumerate(order.indices):
                ending = Ending(tokenizer, ends, requests[index])
                with memory_told():
                    answer = _answer(self._parts, cache, requests[index], ending, order.returns(place))
                yield index, answer
        finally:
            cache.release()

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`."""
        if self._parts.device.type == "cuda":
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        else:
            memory.reset_peak()

    def peak_memory_bytes(self) -> int | None:
        """See `Backend.peak_memory_bytes`."""
        if self._parts.device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        return memory.peak_bytes() if self._parts.device.type == "cpu" else None

    def close(self) -> None:
        """See `Backend.close`."""
        del self.model, self._parts, self._rotary, self.shipped
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_backend(model: PreparedModel) -> Backend:
    """Loads a prepared model into the `hf` backend, and makes sure that its frequencies are what its config says."""
    backend = HFBackend(model.load())
    for length in model.rope.shipped.probes():
        held, planned = backend.shipped.table(length), model.rope.shipped_table(length)
        same = held.inv_freq_F.shape == planned.inv_freq_F.shape and np.allclose(
            held.inv_freq_F, planned.inv_freq_F, rtol=1e-5, atol=0
        )
        if not same or abs(held.attention_factor - planned.attention_factor) > 1e-5:
            raise LongEvalError(
                f"--model {model.name}: its rotary embedding doesn't hold the frequencies that its configuration says",
                "Its RoPE is of a kind that longeval doesn't know; use a model of another family.",
            )
    return backend


@torch.inference_mode()
def _score_context(
    parts: ModelParts, cache: PrefixCache, context_T: Tokens, continuations: Sequence[Tokens], returns: Sequence[int]
) -> list[ChoiceScore]:
    """Scores the continuations of one context."""
    sizes = [len(tokens_S) for tokens_S in continuations]
    # Beside the context the cache has to hold what one pass adds: many continuations, or a long one.
    added = max(min(sum(sizes), cache.branch_budget()), *sizes)
    decoded = cache.hold(context_T, room=len(context_T) + added, returns=returns)
    with parts.head(decoded) as head:
        logits_V = head(decoded.last_hidden_state[0, -1:])[0]
    log_p_V = torch.log_softmax(logits_V.float(), dim=-1)
    best = int(logits_V.argmax())
    first_tokens = [int(tokens_S[0]) for tokens_S in continuations]
    scores = [ChoiceScore(float(log_p_V[token]), token == best) for token in first_tokens]
    for places in _in_passes(sizes, cache.branch_budget() if cache.takes_branches else 0):
        together = [continuations[place] for place in places]
        # The last token predicts nothing that is scored.
        decoded, hidden_QH = cache.branch([tokens_S[:-1] for tokens_S in together])
        targets_Q = torch.from_numpy(np.concatenate([tokens_S[1:] for tokens_S in together]).astype(np.int64))
        scored = parts.score(decoded, hidden_QH, targets_Q, greedy=True)
        assert scored.greedy_S is not None
        nll_Q, greedy_Q = scored.nll_S.cpu().numpy(), scored.greedy_S.cpu().numpy()
        start = 0
        for place in places:
            part = slice(start, start + sizes[place] - 1)
            start = part.stop
            first = scores[place]
            scores[place] = ChoiceScore(
                first.log_likelihood - math.fsum(nll_Q[part]), first.greedy and bool(greedy_Q[part].all())
            )
    return scores


def _in_passes(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of the continuations of several tokens that share a pass: as many as `budget` allows, at least one."""
    places: list[int] = []
    used = 0
    for place, size in enumerate(sizes):
        if size == 1:
            continue  # its only token is scored by the context's pass
        if places and used + size - 1 > budget:
            yield places
            places, used = [], 0
        places.append(place)
        used += size - 1
    if places:
        yield places


@torch.inference_mode()
def _answer(
    parts: ModelParts, cache: PrefixCache, request: GenerateRequest, ending: Ending, returns: Sequence[int]
) -> Generation:
    """Continues one prompt, token by token."""
    room = len(request.prompt_T) + request.max_new_tokens
    decoded = cache.hold(request.prompt_T, room=room, returns=returns)
    tokens: list[int] = []
    while True:
        with parts.head(decoded) as head:
            tokens.append(int(head(decoded.last_hidden_state[0, -1:])[0].argmax()))
        answer = ending.answer(tokens)
        if answer is not None:
            return answer
        (decoded,) = cache.extend(np.array(tokens[-1:], dtype=np.int32))
