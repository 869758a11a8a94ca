"""Choices and greedy answers of the `hf` backend, over one key/value cache for all prompts of a call.

Shapes: T tokens of a prompt, S of a continuation, Q of all that run in one pass, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longeval.backends.answering import Ending, end_tokens, order_prompts
from longeval.backends.base import ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.backends.hf.parts import ModelParts, memory_told
from longeval.backends.hf.prefix_cache import PrefixCache

Tokens = npt.NDArray[np.int32]


def choices(
    parts: ModelParts, requests: Sequence[ChoicesRequest], served: int
) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
    """See `Backend.choices`.

    Args:
        parts: The model.
        requests: As there.
        served: Positions of the table that is served.
    """
    by_context: dict[bytes, list[int]] = {}
    for index, request in enumerate(requests):
        lengths = [len(tokens_S) for tokens_S in request.continuations]
        assert len(request.context_T) >= 1 and min(lengths, default=1) >= 1, "an empty context or continuation"
        assert len(request.context_T) + max(lengths, default=0) <= served, "the served table is too short"
        by_context.setdefault(request.context_T.tobytes(), []).append(index)
    groups = list(by_context.values())
    contexts = [requests[group[0]].context_T for group in groups]
    order = order_prompts(contexts)
    cache = PrefixCache(parts)
    try:
        for place, number in enumerate(order.indices):
            group = [requests[index] for index in groups[number]]
            with memory_told():
                scores = _score_context(parts, cache, contexts[number], group, order.returns(place))
            for index in groups[number]:
                yield index, tuple(scores[tokens_S.tobytes()] for tokens_S in requests[index].continuations)
    finally:
        cache.release()


@torch.inference_mode()
def _score_context(
    parts: ModelParts, cache: PrefixCache, context_T: Tokens, group: Sequence[ChoicesRequest], returns: Sequence[int]
) -> dict[bytes, ChoiceScore]:
    """Scores all continuations of one context, each different one once."""
    continuations = {tokens_S.tobytes(): tokens_S for request in group for tokens_S in request.continuations}
    sizes = [len(tokens_S) for tokens_S in continuations.values()]
    # Beside the context the cache has to hold what one pass adds: many continuations, or a long one.
    added = max(min(sum(sizes), cache.branch_budget()), *sizes, 0)
    decoded = cache.hold(context_T, room=len(context_T) + added, returns=returns)
    with parts.head(decoded) as head:
        logits_V = head(decoded.last_hidden_state[0, -1:])[0]
    log_p_V = torch.log_softmax(logits_V.float(), dim=-1)
    best = int(logits_V.argmax())
    scores = {}
    for key, tokens_S in continuations.items():
        scores[key] = ChoiceScore(float(log_p_V[int(tokens_S[0])]), int(tokens_S[0]) == best)
    longer = {key: tokens_S for key, tokens_S in continuations.items() if len(tokens_S) > 1}
    for keys in _in_passes(longer, cache.branch_budget() if cache.takes_branches else 0):
        together = [longer[key] for key in keys]
        # The last token predicts nothing that is scored.
        decoded, hidden_QH = cache.branch([tokens_S[:-1] for tokens_S in together])
        targets_Q = torch.from_numpy(np.concatenate([tokens_S[1:] for tokens_S in together]).astype(np.int64))
        scored = parts.score(decoded, hidden_QH, targets_Q, greedy=True)
        assert scored.greedy_S is not None
        lengths = [len(tokens_S) - 1 for tokens_S in together]
        by_token = zip(scored.nll_S.cpu().numpy(), scored.greedy_S.cpu().numpy(), strict=True)
        for key, length in zip(keys, lengths, strict=True):
            nlls, greedy = zip(*itertools.islice(by_token, length), strict=True)
            first = scores[key]
            scores[key] = ChoiceScore(first.log_likelihood - math.fsum(nlls), first.greedy and all(map(bool, greedy)))
    return scores


def _in_passes(continuations: dict[bytes, Tokens], budget: int) -> Iterator[list[bytes]]:
    """Keys of the continuations that share a pass: as many as `budget` tokens allow, at least one."""
    keys: list[bytes] = []
    used = 0
    for key, tokens_S in continuations.items():
        size = len(tokens_S) - 1
        if keys and used + size > budget:
            yield keys
            keys, used = [], 0
        keys.append(key)
        used += size
    if keys:
        yield keys


def generate(
    parts: ModelParts, requests: Sequence[GenerateRequest], tokenizer: Any, served: int
) -> Iterator[tuple[int, Generation]]:
    """See `Backend.generate`.

    Args:
        parts: The model.
        requests: As there.
        tokenizer: As there.
        served: Positions of the table that is served.
    """
    for request in requests:
        assert len(request.prompt_T) >= 1 and request.max_new_tokens >= 1, "an empty prompt or answer"
        assert len(request.prompt_T) + request.max_new_tokens <= served, "the served table is too short"
        assert all(request.stop), "an empty stop text"
    order = order_prompts([request.prompt_T for request in requests])
    ends = end_tokens(getattr(parts.model, "generation_config", None), tokenizer)
    cache = PrefixCache(parts)
    try:
        for place, index in enumerate(order.indices):
            with memory_told():
                answer = _answer(
                    parts, cache, requests[index], Ending(tokenizer, ends, requests[index]), order.returns(place)
                )
            yield index, answer
    finally:
        cache.release()


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
