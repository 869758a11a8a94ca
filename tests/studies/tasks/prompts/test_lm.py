"""No request is ever truncated; tables are served for the lengths that they are meant for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from local_tasks import answering, answering_row, reading
from plain_backend import KnownBackend, PlainBackend
from test_downstream import evaluated, hflm
from tiny import make_text

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.rope.base import RopeTable
from longeval.studies.tasks.answers import TooLongError, answer
from longeval.studies.tasks.prompts.build import prepare

FIRST = 5
"""A token id; whether a prompt begins with it decides the right answer."""


def first_token_model(like, tokenizer):
    """A causal language model that looks at its first token only: after `FIRST` all others are Y, else N."""
    import torch

    yes, no = tokenizer.convert_tokens_to_ids(["Y", "N"])

    class Model(torch.nn.Module):
        config, device = like.config, like.device

        def tie_weights(self):
            pass

        def forward(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 300)
            for row, ids in zip(logits, input_ids, strict=True):
                row[:, yes if ids[0] == FIRST else no] = 9.0
            return SimpleNamespace(logits=logits)

    return Model()


def one_question(tokenizer):
    """Its first token decides that the answer is Y; 90 words lie between the two."""
    row = {"text": tokenizer.decode([FIRST]) + make_text(90), "choices": ["Y", "N"], "gold": 0}
    return reading(rows=[row], doc_to_text="{{text}}", doc_to_choice="{{choices}}", target_delimiter="")


def test_the_first_token_is_never_lost(window, lm, tiny_model, tiny_tokenizer):
    """lm-eval's own model drops it without a word where the window is too short, and answers wrongly."""
    model = first_token_model(tiny_model, tiny_tokenizer)
    task = one_question(tiny_tokenizer)
    tokens = prepare(task, window(), limit=None).samples[0].tokens
    assert tiny_tokenizer.encode(task.eval_docs[0]["text"])[0] == FIRST
    enough, short = window(length=tokens), window(length=tokens - 1)

    theirs = evaluated(hflm(model, tiny_tokenizer, tokens - 2), one_question(tiny_tokenizer), False)
    assert theirs["results"]["reading"]["acc,none"] == 0.0, "cut from the left: wrong, and nothing says so"
    theirs = evaluated(hflm(model, tiny_tokenizer, tokens), one_question(tiny_tokenizer), False)
    assert theirs["results"]["reading"]["acc,none"] == 1.0

    prepared = prepare(task, enough, limit=None)
    assert answer(task, prepared, lm(PlainBackend(model), enough)).samples[0].scores == {"accuracy": 1.0}
    with pytest.raises(TooLongError, match=f"{tokens} tokens .* {tokens - 1}"):
        answer(task, prepared, lm(PlainBackend(model), short))


def test_a_prompt_without_room_for_its_answer_is_refused(window, lm):
    task, backend = answering([answering_row(0)]), KnownBackend()
    prepared = prepare(task, window(), limit=None)
    needed = prepared.samples[0].tokens + 8
    assert answer(task, prepared, lm(backend, window(length=needed))).samples[0].tokens == needed - 8
    with pytest.raises(TooLongError):
        answer(task, prepared, lm(backend, window(length=needed - 1)))
    assert len(backend.asked) == 1, "nothing is run where something is refused"


def choices(length, *continuations):
    return ChoicesRequest(
        context_T=np.arange(length, dtype=np.int32),
        continuations=tuple(np.zeros(size, dtype=np.int32) for size in continuations),
    )


def generate(length, max_new_tokens):
    return GenerateRequest(prompt_T=np.arange(length, dtype=np.int32), max_new_tokens=max_new_tokens, stop=())


def stepwise(length):
    """Equal up to 20 tokens, then another table for every length."""
    return RopeTable(inv_freq_F=np.full(4, 1.0 / max(20, length)), attention_factor=1.0)


REQUESTS = [choices(5, 2, 5), generate(30, 10), choices(14, 1), choices(39, 1), generate(10, 10), choices(20, 1)]
"""They reach 10, 40, 15, 40, 20 and 21 tokens."""


def test_a_table_of_its_own_for_each_length_where_the_method_wants_it(lm, window):
    backend = KnownBackend()
    results = dict(lm(backend, window(), table=stepwise, static=False).run(REQUESTS))
    assert [(1 / table.inv_freq_F[0], length) for table, length in backend.served] == [
        pytest.approx((40, 40)),
        pytest.approx((21, 21)),
        pytest.approx((20, 20)),
    ]
    places = {id(request): place for place, request in enumerate(REQUESTS)}
    asked = [sorted(places[id(request)] for request in call) for call in backend.asked]
    assert asked == [[3], [1], [5], [0, 2], [4]]
    assert sorted(results) == [0, 1, 2, 3, 4, 5]
    assert [len(score) for score in (results[0], results[2])] == [2, 1]


def test_one_table_for_the_whole_window_else(lm, window):
    backend = KnownBackend()
    results = dict(lm(backend, window(length=512), table=stepwise, static=True).run(REQUESTS))
    assert sorted(results) == [0, 1, 2, 3, 4, 5]
    assert [(1 / table.inv_freq_F[0], length) for table, length in backend.served] == [pytest.approx((512, 512))]
    assert [request.max_new_tokens for request in backend.asked[1]] == [10, 10]
