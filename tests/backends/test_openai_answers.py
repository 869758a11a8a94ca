"""Answers of a server, cut and counted as every backend's are."""

from __future__ import annotations

import pytest
from completions_server import VOCABULARY, WORDS
from server_requests import A, answer, asked, connect

from longeval.backends.openai.backend import first_stop
from longeval.backends.openai.client import ServerError


@pytest.mark.parametrize("returns_ids", [True, False])
@pytest.mark.parametrize(
    ("stop", "limit", "expected"),
    [
        ((), 5, ("b c d e f", 5, "length")),
        ((), 1, ("b", 1, "length")),
        (("e",), 9, ("b c d ", 4, "stop")),
        (("d e", "c"), 9, ("b ", 2, "stop")),
        (("zz", "c d"), 9, ("b ", 3, "stop")),
        (("zz",), 3, ("b c d", 3, "length")),
        (("b",), 3, ("", 1, "stop")),
    ],
)
def test_answers_count_on_and_are_cut(server, returns_ids, stop, limit, expected):
    server.returns_ids = returns_ids
    assert answer(connect(server), server.tokenizer, [A], limit, stop) == expected


def test_a_fifth_stop_text_is_found_here(server):
    stops = ("v", "w", "x", "w", "u", "e")
    assert answer(connect(server), server.tokenizer, [A], 9, stops) == ("b c d ", 4, "stop")
    assert server.posts[-1]["stop"] == ["v", "w", "x", "u"]
    server.returns_ids = False
    found = answer(connect(server), server.tokenizer, [A], 9, stops)
    assert (found.text, found.finish) == ("b c d ", "stop")


@pytest.mark.parametrize("usage", [True, False])
def test_the_models_own_end(server, usage):
    server.usage = usage
    at_end = [VOCABULARY - 2]  # then the last word, <s> and <end>
    assert answer(connect(server), server.tokenizer, at_end) == ("x", 3, "eos")
    server.end = A + 3  # in the served model's settings, unknown to the tokenizer
    assert answer(connect(server), server.tokenizer, [A]) == ("b c", 3, "eos")
    server.returns_ids = False
    assert answer(connect(server), server.tokenizer, [A]) == ("b c", 3 if usage else 2, "eos")
    # Nothing says then whether it was the end or the text.
    assert answer(connect(server), server.tokenizer, [A], stop=("zz",)).finish == "stop"


def test_special_tokens_may_be_stop_texts(server):
    server.end = 99
    assert answer(connect(server), server.tokenizer, [VOCABULARY - 3], stop=("<s>",)) == ("w x", 3, "stop")
    assert server.posts[-1]["stop_token_ids"] == [0, 1]
    assert server.posts[-1]["stop"] == ["<s>"]


@pytest.mark.parametrize("setting", ["strict", "returns_ids"])
def test_penalties_of_the_models_settings_are_switched_off_where_that_is_known(server, setting):
    answer(connect(server), server.tokenizer, [A], 2)
    assert server.posts[-1]["repetition_penalty"] == 1.0 and server.posts[-1]["temperature"] == 0
    setattr(server, setting, setting == "strict")  # vLLM's settings are refused, or ignored
    assert answer(connect(server), server.tokenizer, [A], 2) == ("b c", 2, "length")
    assert set(server.posts[-1]) == {"model", "prompt", "max_tokens", "temperature"}


def test_many_answers_at_once_each_at_its_place(server):
    server.delay_s = 0.05
    backend = connect(server, concurrency=4)
    requests = [asked([A + n % 5], 1 + n % 3) for n in range(12)]
    done = dict(backend.generate(requests, server.tokenizer))
    assert done == {
        n: (" ".join(WORDS[A + n % 5 + k] for k in range(1, 2 + n % 3)), 1 + n % 3, "length") for n in range(12)
    }
    assert server.most_under_way == 4


def changed(server, **told):
    """A backend that was answered properly until now, and is answered with these changes from now on."""
    backend = connect(server)
    answer(backend, server.tokenizer, [A], 1)
    server.change = lambda sent: {**sent, "choices": [{**sent["choices"][0], **told}]}
    return backend


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"token_ids": [4] * 10}, "token ids"),
        ({"token_ids": [-1]}, "token ids"),
        ({"token_ids": [2**40]}, "token ids"),
        ({"token_ids": [A + 1]}, "1 of 9 tokens"),  # a limit of the server's own
        ({"finish_reason": "abort"}, "abort"),
    ],
)
def test_what_cannot_be_an_answer(server, told, said):
    with pytest.raises(ServerError, match=said):
        answer(changed(server, **told), server.tokenizer, [A], 9)


def test_a_stop_text_that_our_decoding_does_not_show(server):
    backend = changed(server, token_ids=[A + 1, A + 2], stop_reason="~", finish_reason="stop", text="b")
    assert answer(backend, server.tokenizer, [A], 5, ("~",)) == ("b c", 2, "stop")


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcdef", ("cde", "d"), "abc"),  # d is seen before cde is whole
        ("abcdef", ("cd", "d"), "ab"),
        ("abcdef", ("x",), "abcdef"),
    ],
)
def test_the_first_stop_text_is_the_one_that_is_whole_first(text, stops, expected):
    assert first_stop(text, stops) == expected
