"""Reads vLLM's outputs: log-probabilities of prompt tokens, and whether a request was answered at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.backends.base import ChoiceScore

Tokens = npt.NDArray[np.int32]


def is_answered(output: Any) -> bool:
    """Whether a finished request came to its own end; an engine that is going down hands out what it has."""
    return output.outputs[0].finish_reason in ("stop", "length")


def log_likelihoods(output: Any, tokens_S: Tokens) -> list[float]:
    """Log-probabilities of the last S tokens of a prompt, nats: the first candidate that vLLM lists at each place.

    Args:
        output: A RequestOutput with flat prompt log-probabilities. What the engine took from its prefix cache has none,
            and may be missing from the list altogether (vLLM's second model runner), so it is counted from the end.
        tokens_S: The prompt's last S tokens.
    """
    flat = output.prompt_logprobs
    starts = _starts(flat, len(tokens_S))
    assert [flat.token_ids[start] for start in starts] == tokens_S.tolist(), "log-probabilities of other tokens"
    return [flat.logprobs[start] for start in starts]


def choice_score(output: Any, tokens_S: Tokens) -> ChoiceScore:
    """The sum, and whether each token was the most probable one, which vLLM lists after the prompt's own."""
    found = log_likelihoods(output, tokens_S)
    flat = output.prompt_logprobs
    greedy = all(flat.token_ids[start] == flat.token_ids[start + 1] for start in _starts(flat, len(tokens_S)))
    return ChoiceScore(math.fsum(found), greedy)


def _starts(flat: Any, size: int) -> list[int]:
    """Where the candidates of the last `size` places begin; the first place of all has none."""
    assert 1 <= size < len(flat.start_indices), "log-probabilities of too few tokens"
    starts: list[int] = flat.start_indices[-size:]
    return starts
