"""The openai backend against a server whose numbers are known: choices, perplexity, and what has no room there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from completions_server import TIED, VOCABULARY, WORDS, log_p, make_tokenizer, total
from server_requests import REQUESTS, answer, chosen, connect, tokens
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from longeval.errors import LongEvalError

every_route = pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo", "echo, one more"])
FULL = list(range(3, 35)) * 2
"""As many tokens as the server has room for."""


@every_route
@pytest.mark.parametrize("bos", [False, True])
def test_choices_are_the_bigrams_own(server, scoring, bos):
    server.scoring, server.tokenizer = scoring, make_tokenizer(bos=bos)
    done = dict(connect(server).choices(REQUESTS))
    assert sorted(done) == [0, 1, 2, 3]
    for index, scores in done.items():
        context = REQUESTS[index].context_T.tolist()
        expected = [total([*context, *end_S.tolist()], len(context)) for end_S in REQUESTS[index].continuations]
        assert [score.log_likelihood for score in scores] == pytest.approx(expected, abs=1e-12)
    assert [[score.greedy for score in done[index]] for index in range(4)] == [
        [False, True, True, False],
        [False],
        [True, True],
        [True, True],
    ]


@pytest.mark.parametrize("prefix", ["<s>", "<end> <s>"])
def test_choices_through_text_alone(server, prefix):
    """The server puts the prefix in front by itself."""
    server.takes_ids, server.tokenizer = False, make_tokenizer()
    special = [(word, WORDS.index(word)) for word in prefix.split()]
    front = processors.TemplateProcessing(single=f"{prefix} $A", special_tokens=special)
    server.tokenizer.backend_tokenizer.post_processor = front
    context = [token for _, token in special] + [3, 4]
    ((_, scores),) = connect(server).choices([chosen(context, [5], [21, 22])])
    assert [score.log_likelihood for score in scores] == pytest.approx([log_p(4, 5), log_p(4, 21) + log_p(21, 22)])
    assert sorted(body["prompt"] for body in server.posts[-2:]) == ["The quick brown", "The quick j k"]


@every_route
def test_a_prefix_without_a_role_is_no_part_of_what_a_server_reads(server, scoring):
    """GLM's [gMASK] and <sop> are special tokens and neither BOS nor EOS; a server shows them in front of a prompt."""
    server.scoring = scoring
    words = ["<sop>", "<end>", "<gMASK>", *WORDS[3:]]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<sop>", "<gMASK>"])
    front = [("<gMASK>", 2), ("<sop>", 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<gMASK> <sop> $A", special_tokens=front)
    server.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    server.decode = server.tokenizer.decode  # special tokens as well
    ((_, scores),) = connect(server).choices([chosen([2, 0, 3, 4], [5])])
    assert [score.log_likelihood for score in scores] == pytest.approx([log_p(4, 5)])


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


@every_route
def test_score_is_the_bigrams_own(server, scoring):
    server.scoring = scoring
    backend = connect(server)
    window = [3, 4, 6, 9, 10, 10]
    for first in (1, 3, 5):
        expected = [-log_p(one, two) for one, two in zip(window[first - 1 :], window[first:], strict=False)]
        np.testing.assert_allclose(backend.score(tokens(*window), first), expected, rtol=1e-7)
    assert backend.score(tokens(*window), 6).shape == (0,)
    assert "prompt_logprobs" not in server.posts[-1] or server.posts[-1]["prompt_logprobs"] == 0


def test_what_cannot_be_known_is_not_made_up(server):
    backend = connect(server)
    assert backend.rope_digest(64) is None
    assert backend.peak_memory_bytes() is None
    assert (backend.name, backend.dtype, backend.device) == ("openai", "unknown", f"server 127.0.0.1:{server.port}")
    assert (backend.served_model, backend.max_length) == ("bigram", 64)


@pytest.mark.parametrize(("length", "error"), [(65, LongEvalError), (10, AssertionError)])
def test_what_does_not_fit_is_told_before_it_is_sent(server, length, error):
    """Beside the one token that a server generates at least; beyond the served length it is a bug."""
    backend = connect(server, length=length)
    for ask in (
        lambda: backend.score(tokens(*FULL), 1),
        lambda: list(backend.choices([chosen(FULL[:-1], [4])])),
        lambda: answer(backend, server.tokenizer, FULL[:55], 10),
    ):
        with pytest.raises(error, match="--lengths 65" if error is LongEvalError else None):
            ask()
    assert server.posts == []


def test_room_for_an_answer(server):
    server.models = [{"id": "bigram", "max_model_len": 60, "limit": 60}]
    with pytest.raises(LongEvalError, match=r"--lengths 64: .*55 tokens and 6 .* 60"):
        answer(connect(server), server.tokenizer, FULL[:55], 6)
    server.models = [{"id": "bigram", "limit": 60}]  # unknown until it is asked
    with pytest.raises(LongEvalError, match=r"--lengths 64: .*60 tokens"):
        answer(connect(server), server.tokenizer, FULL[:55], 6)
