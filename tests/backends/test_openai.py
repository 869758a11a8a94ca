"""The openai backend against a server whose numbers are known, with all that servers leave out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from completions_server import TIED, VOCABULARY, WORDS, CompletionsServer, log_p, make_tokenizer, total

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.backends.openai import OpenAIBackend
from longeval.backends.openai_answers import first_stop
from longeval.backends.openai_client import ServerError
from longeval.errors import LongEvalError
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

TABLE = build_table("none", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=1.0))
A = WORDS.index("a")


@pytest.fixture
def server():
    server = CompletionsServer()
    yield server
    server.close()


def connect(server, tokenizer=None, length=64, **settings):
    backend = OpenAIBackend(base_url=server.url, tokenizer=tokenizer or server.tokenizer, **settings)
    backend.serve(TABLE, length)
    return backend


def tokens(*ids):
    return np.array(ids, np.int32)


def chosen(context, *continuations):
    return ChoicesRequest(context_T=tokens(*context), continuations=tuple(tokens(*one) for one in continuations))


def asked(prompt, max_new_tokens=8, stop=()):
    return GenerateRequest(prompt_T=tokens(*prompt), max_new_tokens=max_new_tokens, stop=tuple(stop))


def answer(backend, tokenizer, *request, **settings):
    ((_, answer),) = backend.generate([asked(*request, **settings)], tokenizer)
    return answer


REQUESTS = [
    chosen([3, 4, 20], [5], [21], [21, 22, 23], [21, 23, 24]),
    chosen([5], [7, 8]),
    chosen([3, 4], [5, 6], [5, 6]),
    chosen([3, 4, 20], [21, 22, 23], [TIED + 1]),
]


def check_choices(backend):
    done = dict(backend.choices(REQUESTS))
    assert sorted(done) == [0, 1, 2, 3]
    for index, scores in done.items():
        request = REQUESTS[index]
        assert len(scores) == len(request.continuations)
        for tokens_S, score in zip(request.continuations, scores, strict=True):
            whole = [*request.context_T.tolist(), *tokens_S.tolist()]
            assert score.log_likelihood == pytest.approx(total(whole, len(request.context_T)), abs=1e-12)
    assert [[score.greedy for score in done[index]] for index in range(4)] == [
        [False, True, True, False],
        [False],
        [True, True],
        [True, True],
    ]


@pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo", "echo, one more"])
@pytest.mark.parametrize("bos", [False, True])
def test_choices_are_the_bigrams_own(server, scoring, bos):
    server.scoring, server.tokenizer = scoring, make_tokenizer(bos=bos)
    check_choices(connect(server))


def test_choices_through_text_alone(server):
    server.takes_ids, server.tokenizer = False, make_tokenizer(bos=True)
    backend = connect(server)
    ((_, scores),) = backend.choices([chosen([0, 3, 4], [5], [21, 22])])
    assert [score.log_likelihood for score in scores] == pytest.approx([log_p(4, 5), log_p(4, 21) + log_p(21, 22)])
    # The server puts <s> in front by itself.
    assert sorted(body["prompt"] for body in server.posts[-2:]) == ["The quick brown", "The quick j k"]


def test_each_different_continuation_is_asked_for_once_and_prompts_are_sorted(server):
    backend = connect(server, concurrency=1)
    list(backend.choices([]))
    assert server.posts == []
    list(backend.choices(REQUESTS))
    prompts = [body["prompt"] for body in server.posts[2:]]  # after one question each for prompts and scores
    assert prompts == [
        [3, 4, 5, 6],
        [3, 4, 20, 5],
        [3, 4, 20, 21],
        [3, 4, 20, 21, 22, 23],
        [3, 4, 20, 21, 23, 24],
        [5, 7, 8],
    ]
    list(backend.choices(REQUESTS[:1]))
    assert len(server.posts) == 2 + 6 + 4


def test_equal_ones_count_as_greedy_and_a_better_one_does_not(server):
    ((_, scores),) = connect(server).choices([chosen([TIED], [TIED + 2], [TIED + 1], [TIED + 3])])
    # Of TIED's two best the server lists one beside the prompt's own token.
    assert [score.greedy for score in scores] == [True, True, False]
    assert scores[0].log_likelihood == scores[1].log_likelihood == pytest.approx(math.log(4 / (VOCABULARY + 6)))


@pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo", "echo, one more"])
def test_score_is_the_bigrams_own(server, scoring):
    server.scoring = scoring
    backend = connect(server)
    window = [3, 4, 6, 9, 10, 10]
    for first in (1, 3, 5):
        nll_S = backend.score(tokens(*window), first)
        assert nll_S.dtype == np.float32
        expected = [-log_p(one, two) for one, two in zip(window[first - 1 :], window[first:], strict=False)]
        np.testing.assert_allclose(nll_S, expected, rtol=1e-7)
    assert backend.score(tokens(*window), 6).shape == (0,)
    assert "prompt_logprobs" not in server.posts[-1] or server.posts[-1]["prompt_logprobs"] == 0


def test_what_cannot_be_known_is_not_made_up(server):
    backend = connect(server)
    assert backend.rope_digest(64) is None
    assert backend.peak_memory_bytes() is None
    assert (backend.name, backend.dtype, backend.device) == ("openai", "unknown", f"server 127.0.0.1:{server.port}")
    assert (backend.served_model, backend.max_length) == ("bigram", 64)


# Answers.


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
    found = answer(connect(server), server.tokenizer, [A])
    assert found == ("b c", 3 if usage else 2, "eos")
    # Nothing says then whether it was the end or the text.
    assert answer(connect(server), server.tokenizer, [A], stop=("zz",)).finish == "stop"


def test_special_tokens_may_be_stop_texts(server):
    server.end = 99
    assert answer(connect(server), server.tokenizer, [VOCABULARY - 3], stop=("<s>",)) == ("w x", 3, "stop")
    assert server.posts[-1]["stop_token_ids"] == [0, 1]
    assert server.posts[-1]["stop"] == ["<s>"]


def test_penalties_of_the_models_settings_are_switched_off_where_that_is_known(server):
    answer(connect(server), server.tokenizer, [A], 2)
    assert server.posts[-1]["repetition_penalty"] == 1.0 and server.posts[-1]["temperature"] == 0
    server.strict = True
    assert answer(connect(server), server.tokenizer, [A], 2) == ("b c", 2, "length")
    assert set(server.posts[-1]) == {"model", "prompt", "max_tokens", "temperature"}


def test_settings_of_vllms_go_only_where_their_effect_shows(server):
    assert connect(server)._dialect.form().returns_ids
    server.returns_ids = False  # as if unknown, and ignored
    answer(connect(server), server.tokenizer, [A], 2)
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


def test_a_limit_of_the_servers_own_is_told(server):
    def shorter(answer):
        answer["choices"][0]["token_ids"] = [A + 1]
        return answer

    backend = connect(server)
    backend._dialect.form()
    server.change = shorter
    with pytest.raises(ServerError, match=r"after 1 of 5 tokens, by its own limit"):
        answer(backend, server.tokenizer, [A], 5)
    server.change = lambda answer: {**answer, "choices": [{**answer["choices"][0], "finish_reason": "abort"}]}
    with pytest.raises(ServerError, match=r"with 'abort', neither stop nor length"):
        answer(backend, server.tokenizer, [A], 5)


def test_a_stop_text_that_our_decoding_does_not_show(server):
    def stopped(answer):
        answer["choices"][0] |= {"token_ids": [A + 1, A + 2], "stop_reason": "~", "finish_reason": "stop", "text": "b"}
        return answer

    backend = connect(server)
    backend._dialect.form()
    server.change = stopped
    assert answer(backend, server.tokenizer, [A], 5, ("~",)) == ("b c", 2, "stop")


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcdef", ("cde", "d"), "abc"),  # d is seen before cde is whole
        ("abcdef", ("cd", "d"), "ab"),
        ("abcdef", ("x",), "abcdef"),
        ("abcabc", ("c", "ab"), ""),
    ],
)
def test_the_first_stop_text_is_the_one_that_is_whole_first(text, stops, expected):
    assert first_stop(text, stops) == expected


# What servers leave out.


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("scoring", ["ignored", "refused"])
def test_without_log_probabilities_choices_are_refused_and_answers_work(server, scoring, strict):
    server.scoring, server.strict = scoring, strict
    backend = connect(server)
    for ask in (lambda: list(backend.choices(REQUESTS)), lambda: backend.score(tokens(3, 4), 1)):
        with pytest.raises(LongEvalError, match=r"no log-probabilities of a prompt's tokens") as caught:
            ask()
        message = str(caught.value)
        assert message.startswith(f"--base-url {server.url}: ") and "answers are generated work there" in message
        expected = "log-probabilities for 1 of 9 tokens" if scoring == "ignored" else "not supported for this model"
        assert expected in message
    assert answer(backend, server.tokenizer, [A], 2) == ("b c", 2, "length")


def test_an_ignored_echo_is_seen_even_with_as_many_tokens(server):
    server.scoring, server.strict = "ignored", True
    backend = connect(server)
    backend._dialect._probe_ids = lambda: [*range(3, 19)]  # 16, as many as are generated by default
    with pytest.raises(LongEvalError, match=r"echo with max_tokens 0: the answer isn't the prompt"):
        list(backend.choices(REQUESTS))


def changed_place(key, value):
    def scoring(ids, body):
        places = [None] + [{str(ids[at]): {"logprob": log_p(ids[at - 1], ids[at])}} for at in range(1, len(ids))]
        if len(ids) == 4:
            places[3] = {str(ids[3]) if key is None else key: {"logprob": value}}
        return {"prompt_logprobs": places}

    return scoring


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (None, None, "no log-probability"),
        (None, float("nan"), "nan as a log-probability"),
        (None, float("-inf"), "-inf as a log-probability"),
        (None, -9999.0, "-9999.0 as a log-probability"),
        ("17", -1.0, "token 7 isn't where it was sent"),
    ],
)
def test_log_probabilities_that_are_none_are_errors(server, key, value, said):
    server.scoring = changed_place(key, value)
    backend = connect(server)
    assert backend.score(tokens(3, 4, 5), 1).shape == (2,)
    with pytest.raises(ServerError, match=said):
        backend.score(tokens(3, 4, 5, 7), 1)
    with pytest.raises(ServerError, match=said):
        list(backend.choices([chosen([3, 4], [5, 7])]))


def test_echo_without_the_most_probable_serves_perplexity_and_refuses_choices(server):
    def scoring(ids, body):
        values = [None, *(log_p(*pair) for pair in itertools.pairwise(ids))]
        return {"logprobs": {"token_logprobs": values, "top_logprobs": None}, "text": server.decode(ids)}

    server.scoring = scoring
    backend = connect(server)
    assert backend.score(tokens(3, 4), 1) == pytest.approx(-log_p(3, 4))
    with pytest.raises(LongEvalError, match=r"without top_logprobs.*Tasks whose answers are generated"):
        list(backend.choices(REQUESTS))


def test_a_server_that_reads_another_prompt_is_an_error(server):
    backend = connect(server)
    backend.score(tokens(3, 4), 1)
    server.change = lambda answer: {**answer, "usage": {"prompt_tokens": 2}}  # cut from the left, as some do
    for ask in (
        lambda: list(backend.choices([chosen([3, 4], [5])])),
        lambda: answer(backend, server.tokenizer, [3, 4, 5]),
    ):
        with pytest.raises(ServerError, match=r"read 2 tokens where 3 were sent"):
            ask()


@pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda backend, tokenizer: backend.score(tokens(3, 4), 1),
        lambda backend, tokenizer: answer(backend, tokenizer, [A], 2),
    ],
    ids=["score", "answer"],
)
def test_another_vocabulary_is_told(server, scoring, ask):
    server.scoring = scoring
    shuffled = [*WORDS[:3], *reversed(WORDS[3:])]
    backend = connect(server, make_tokenizer(words=shuffled))
    with pytest.raises(LongEvalError, match=r"reads our token ids of 'The quick brown.*--model must name the model"):
        ask(backend, server.tokenizer)


def test_text_that_has_not_these_tokens_is_refused(server):
    server.takes_ids = False
    backend = connect(server)
    assert answer(backend, server.tokenizer, [A], 2) == ("b c", 2, "length")
    assert server.posts[-1]["prompt"] == "a"
    server.tokenizer = backend._dialect._tokenizer = make_tokenizer(bos=True)
    with pytest.raises(LongEvalError, match=r"takes prompts as text only, and no text has exactly the 2 tokens"):
        answer(backend, server.tokenizer, [A, A], 2)


def test_a_server_that_takes_no_prompt_or_has_no_completions(server):
    server.next_answers = [(422, {}, '{"detail": "no"}')] * 4
    with pytest.raises(LongEvalError, match=r"neither as token ids \(no\) nor as text \(no\)"):
        answer(connect(server), server.tokenizer, [A])
    server.next_answers = [(404, {}, '{"detail": "Not Found"}')]
    with pytest.raises(LongEvalError, match=r"no completions there \(Not Found\)\. A server for chat alone"):
        answer(connect(server), server.tokenizer, [A])


def test_what_does_not_fit_is_told_before_it_is_sent(server):
    backend = connect(server, length=64)
    posts = len(server.posts)
    full = list(range(3, 35)) * 2
    for ask in (
        lambda: backend.score(tokens(*full), 1),
        lambda: list(backend.choices([chosen([3], [4]), chosen(full[:-1], [4])])),
    ):
        with pytest.raises(LongEvalError, match=r"--lengths 64: 64 tokens and 1 to generate, .* model length is 64\."):
            ask()
    assert len(server.posts) == posts
    server.models = [{"id": "bigram", "max_model_len": 60, "limit": 60}]
    with pytest.raises(LongEvalError, match=r"--lengths 64: 55 tokens and 6 to generate, and the .* length is 60"):
        answer(connect(server), server.tokenizer, full[:55], 6)
    assert answer(connect(server), server.tokenizer, full[:55], 5).num_tokens == 5
    server.models = [{"id": "bigram", "limit": 60}]
    with pytest.raises(LongEvalError, match=r"--lengths 64: the server refuses .*maximum context length is 60 tokens"):
        answer(connect(server), server.tokenizer, full[:55], 6)


def test_nothing_beyond_the_served_length_is_asked(server):
    backend = connect(server, length=10)
    for ask in (
        lambda: backend.score(tokens(*range(11)), 1),
        lambda: list(backend.choices([chosen(range(9), [4, 5])])),
        lambda: answer(backend, server.tokenizer, range(5), 6),
    ):
        with pytest.raises(AssertionError):
            ask()
    assert server.posts == []
