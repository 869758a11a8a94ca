"""What every backend must do, whatever runs the model. A backend's tests call `check_backend` with a small model."""

from __future__ import annotations

import numpy as np
import pytest

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.rope.base import table_digest


def tokens(*ids):
    return np.array(ids, dtype=np.int32)


def check_backend(backend, tokenizer, table, length, *, ids, remote=False, atol=2e-4):
    """Holds a backend against the protocol, and its answers against one another.

    Args:
        backend: One with a model that was just loaded.
        tokenizer: transformers' tokenizer of the model.
        table: Served at `length`, which is at least 40.
        length: In tokens.
        ids: Token ids that prompts are drawn from.
        remote: Whether the table is somebody else's.
        atol: Rounding of a log-probability, nats.
    """
    assert all(isinstance(text, str) and text for text in (backend.name, backend.dtype, backend.device))
    backend.reset_peak_memory()
    backend.serve(table, length)
    check_digest(backend, table, length, remote=remote)
    prompt_T = np.random.default_rng(5).choice(np.array(ids, dtype=np.int32), 30)
    check_scores(backend, prompt_T, atol=atol)
    check_answers(backend, tokenizer, prompt_T, ids)
    backend.serve(table, length)  # again changes nothing
    check_digest(backend, table, length, remote=remote)
    peak = backend.peak_memory_bytes()
    assert peak is None or peak > 0


def check_digest(backend, table, length, *, remote):
    """The table that the model really holds, at the served length and at a shorter one."""
    for size in (length, length // 2):
        expected = None if remote else table_digest(table.cos_sin(np.arange(size, dtype=np.int64)))
        assert backend.rope_digest(size) == expected


def check_scores(backend, prompt_T, *, atol):
    """Windows and choices tell the same of the same tokens, in whatever company they are asked."""
    nll_S = backend.score(prompt_T, 1)
    assert nll_S.dtype == np.float32 and nll_S.shape == (len(prompt_T) - 1,) and (nll_S >= 0).all()
    np.testing.assert_allclose(backend.score(prompt_T, 12), nll_S[11:], atol=atol)
    both_BT = np.stack([prompt_T[::-1], prompt_T])
    first_S, second_S = backend.score_batch(both_BT, [1, 12])
    np.testing.assert_allclose(first_S, backend.score(both_BT[0], 1), atol=atol)
    np.testing.assert_allclose(second_S, nll_S[11:], atol=atol)
    assert first_S.dtype == second_S.dtype == np.float32
    ends = {size: prompt_T[size:] for size in (len(prompt_T) - 1, 20, 8)}
    requests = [ChoicesRequest(context_T=prompt_T[:size], continuations=(end_S,)) for size, end_S in ends.items()]
    requests += [
        ChoicesRequest(context_T=prompt_T[:8], continuations=(prompt_T[8:12], prompt_T[8:], prompt_T[8:12])),
        ChoicesRequest(context_T=prompt_T[:20], continuations=()),
    ]
    found = dict(backend.choices(requests))
    assert sorted(found) == [0, 1, 2, 3, 4] and found[4] == ()
    for index, size in enumerate(ends):
        assert found[index][0].log_likelihood == pytest.approx(-float(nll_S[size - 1 :].sum()), abs=20 * atol)
    assert found[3][0] == found[3][2]
    assert found[3][1].log_likelihood == pytest.approx(found[2][0].log_likelihood, abs=20 * atol)
    assert list(backend.choices([])) == []


def check_answers(backend, tokenizer, prompt_T, ids):
    """Answers are greedy, end at what ends them, and come for every request."""

    def answers(*settings):
        requests = [
            GenerateRequest(prompt_T=prompt_T[:size], max_new_tokens=most, stop=s) for size, most, s in settings
        ]
        found = dict(backend.generate(requests, tokenizer))
        assert sorted(found) == list(range(len(requests)))
        return [found[index] for index in range(len(requests))]

    one, several = answers((20, 1, ()), (20, 6, ()))
    assert several.num_tokens <= 6 and several.finish in ("eos", "length")
    assert several.finish == "eos" or several.num_tokens == 6
    # The first token of an answer is the choice that is called the most probable one.
    every = ChoicesRequest(context_T=prompt_T[:20], continuations=tuple(tokens(token) for token in ids))
    ((_, scores),) = backend.choices([every])
    best = {
        tokenizer.decode([token], skip_special_tokens=True)
        for token, score in zip(ids, scores, strict=True)
        if score.greedy
    }
    assert one.finish == "eos" or one.text in best
    if several.text:
        stop = several.text.strip()[-1]
        (stopped,) = answers((20, 6, ("nothing like it", stop)))
        assert stopped.text == several.text[: several.text.index(stop)]
        assert stopped.finish == "stop" and 1 <= stopped.num_tokens <= several.num_tokens
    assert list(backend.generate([], tokenizer)) == []
