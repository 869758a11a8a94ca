"""The fake backend: what it says is what it was given, by the rules of `Backend`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from longeval.backends.base import ChoicesRequest, GenerateRequest, OutOfMemoryError
from longeval.backends.fake import FakeBackend
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

TABLE = build_table("yarn", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0))


def nll(tokens_S, positions_S, table):
    return tokens_S * 0.01 + positions_S + table.attention_factor


def served(length=100, **settings):
    backend = FakeBackend(nll, **settings)
    backend.serve(TABLE, length)
    return backend


def choices(context, *continuations):
    return ChoicesRequest(
        context_T=np.array(context, np.int32), continuations=tuple(np.array(c, np.int32) for c in continuations)
    )


def test_choices_by_the_nll_of_their_tokens():
    backend = served()
    requests = [choices([1, 2], [3, 4], [5]), choices([1], [9])]
    done = list(backend.choices(requests))
    assert [index for index, _ in done] == [1, 0]
    factor = TABLE.attention_factor
    assert [score.log_likelihood for score in done[1][1]] == pytest.approx([-(5.07 + 2 * factor), -(2.05 + factor)])
    assert backend.asked == requests[::-1]
    assert backend.served == [(TABLE, 100)]


def test_choices_by_a_function_of_context_and_table():
    backend = served(choice=lambda context_T, tokens_S, table: -0.1 * len(context_T) - (tokens_S[0] == 7) * 2.0)
    ((_, scores),) = backend.choices([choices([1, 2, 3], [7], [8], [7, 7, 7, 7])])
    assert scores == ((-2.3, False), (pytest.approx(-0.3), True), (-2.3, True))
    assert 4 * math.log(2) > 2.3 > math.log(2) > 0.3


def test_answers_are_cut_as_the_protocol_says(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = "the report says"
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    backend = served(answer=lambda prompt_T, table: text if prompt_T[0] else "no")

    def answer(limit, *stop, prompt=(1, 2)):
        asked = GenerateRequest(prompt_T=np.array(prompt, np.int32), max_new_tokens=limit, stop=stop)
        ((_, answer),) = backend.generate([asked], tokenizer)
        return answer

    assert answer(50) == (text, num_tokens + 1, "eos")
    assert answer(num_tokens) == (text, num_tokens, "length")
    assert answer(50, "x", "says", " report")[::2] == ("the", "stop")
    assert answer(50, prompt=(0,)).text == "no"
    first = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:1])
    assert answer(1) == (first, 1, "length")


def test_limits(tiny_llama):
    backend = served(length=10, max_tokens=8, answer=lambda prompt_T, table: "a")
    assert len(list(backend.choices([choices([1] * 6, [2], [2, 2])]))) == 1
    with pytest.raises(OutOfMemoryError, match="9 tokens"):
        list(backend.choices([choices([1] * 6, [2], [2, 2, 2])]))
    with pytest.raises(AssertionError, match="too short"):
        list(backend.choices([choices([1] * 6, [2] * 5)]))
    for limit, error in ((3, OutOfMemoryError), (5, AssertionError)):
        asked = GenerateRequest(prompt_T=np.ones(6, np.int32), max_new_tokens=limit, stop=())
        with pytest.raises(error):
            list(backend.generate([asked], AutoTokenizer.from_pretrained(tiny_llama)))
