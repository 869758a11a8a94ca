"""Greedy answers of the hf backend: those of transformers' own generate, however many prompts share a cache."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from answer_reference import FORGETFUL, MODELS, Counted, greedy, join, make_backend, make_model
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longeval.backends.answering import Ending
from longeval.backends.base import ChoicesRequest, GenerateRequest, OutOfMemoryError
from longeval.backends.hf import backend as hf_backend
from longeval.backends.hf import prefix_cache

RNG = np.random.default_rng(2)
DOCUMENT_T = RNG.integers(1, 300, 120)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    """Its one special token is `<s>`, id 0; it has no end of sequence."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokenizer.eos_token_id is None
    return tokenizer


def some(num_tokens):
    return RNG.integers(1, 300, num_tokens)


def request(prompt_T, max_new_tokens=8, stop=()):
    return GenerateRequest(prompt_T=join(prompt_T), max_new_tokens=max_new_tokens, stop=stop)


def many_requests():
    return [
        request(join(DOCUMENT_T, some(5)), 9),
        request(join(DOCUMENT_T[:90], some(3)), 1),
        request(DOCUMENT_T, 40),
        request(some(10), 12),
        request(DOCUMENT_T, 7),
        request(join(DOCUMENT_T[:70], some(30)), 4),
        request(DOCUMENT_T[:100], 8),
        request([3], 30),
    ]


@pytest.mark.parametrize("method", ["none", "yarn"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_transformers_generate(name, method, tokenizer):
    requests = many_requests()
    backend = make_backend(name, method)
    model = backend.model
    if method == "none":  # by an untouched model then, with transformers' own rotary module and its own base
        backend.serve(backend.shipped.table(), 400)
        model = make_model(name)
    done = list(backend.generate(requests, tokenizer))
    assert sorted(index for index, _ in done) == list(range(len(requests)))
    for index, answer in done:
        asked = requests[index]
        if name == "llama, a window in its file":  # transformers' own cache believes the file
            expected_S = greedy(model, asked.prompt_T, asked.max_new_tokens)
        else:
            ids_BT = torch.from_numpy(asked.prompt_T.astype(np.int64))[None]
            settings = {"do_sample": False, "max_new_tokens": asked.max_new_tokens, "pad_token_id": 0}
            expected_S = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **settings)[
                0, ids_BT.shape[1] :
            ]
        assert answer == (tokenizer.decode(expected_S, skip_special_tokens=True), asked.max_new_tokens, "length")


@pytest.mark.parametrize("name", MODELS)
def test_other_requests_change_nothing(name, tokenizer):
    backend = make_backend(name)
    requests = many_requests()
    together = dict(backend.generate(requests, tokenizer))
    assert [next(backend.generate([one], tokenizer))[1] for one in requests] == [together[n] for n in range(8)]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shared_is_computed_once(name, tokenizer):
    backend = make_backend(name)
    counted = Counted(backend)
    requests = [request(join(DOCUMENT_T, [first], some(4)), 6) for first in (9, 5, 7)] + [request(DOCUMENT_T, 3)] * 2
    assert len(list(backend.generate(requests, tokenizer))) == 5
    # The last generated token never runs; the same prompt again needs its last token, for what comes after it.
    assert counted.total == 120 + 3 * (5 + 5) + 2 + (1 + 2)


def test_a_step_copies_no_cache(tokenizer):
    backend = make_backend()
    places = set()

    def look(module, arguments, named, output):
        if named.get("past_key_values") is not None:
            places.add(named["past_key_values"].layers[0].keys.data_ptr())

    backend.model.get_submodule("model").register_forward_hook(look, with_kwargs=True)
    list(backend.generate([request(join(DOCUMENT_T, [1]), 10), request(join(DOCUMENT_T, [2]), 10)], tokenizer))
    assert len(places) == 1


class Spelled:
    """A tokenizer whose token n is the n-th of given words; some are special."""

    def __init__(self, words, special=(), eos=None):
        self.words = words
        self.all_special_tokens = list(special)
        self.all_special_ids = [words.index(word) for word in special]
        self.eos_token_id = eos

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return "".join(self.words[token] for token in tokens if token not in self.all_special_ids)


@pytest.fixture
def spoken():
    """A backend, a prompt, and its answer's first eight tokens, all different."""
    backend = make_backend()
    for seed in range(100):
        prompt_T = np.random.default_rng(seed).integers(1, 300, 20)
        tokens = [int(token) for token in greedy(backend.model, join(prompt_T), 8)]
        if len(set(tokens)) == 8:
            return backend, prompt_T, tokens
    raise AssertionError("no such prompt")


def spell(tokens, texts, **settings):
    words = [f"<{token}>" for token in range(300)]
    for token, text in zip(tokens, texts, strict=True):
        words[token] = text
    return Spelled(words, **settings)


def answer(backend, prompt_T, tokenizer, *, limit=8, stop=()):
    ((_, answer),) = backend.generate([request(prompt_T, limit, stop)], tokenizer)
    return answer


TEXTS = ["The", " ans", "wer", ".\n", "\nNe", "xt", ": ", "two"]


@pytest.mark.parametrize(
    ("limit", "stop", "expected"),
    [
        (8, (), ("The answer.\n\nNext: two", 8, "length")),
        (1, (), ("The", 1, "length")),
        (3, (), ("The answer", 3, "length")),
        (8, ("Next",), ("The answer.\n\n", 6, "stop")),
        (8, ("\n\nN", "ans"), ("The ", 2, "stop")),
        (8, ("wer", "ans", "answer"), ("The ", 2, "stop")),
        (8, ("xt", "\nN"), ("The answer.\n", 5, "stop")),
        (8, ("two",), ("The answer.\n\nNext: ", 8, "stop")),
        (8, ("The",), ("", 1, "stop")),
        (8, ("three", "<7>"), ("The answer.\n\nNext: two", 8, "length")),
    ],
)
def test_the_limit_ends_the_answer_and_stop_texts_end_and_cut_it(spoken, limit, stop, expected):
    backend, prompt_T, tokens = spoken
    assert answer(backend, prompt_T, spell(tokens, TEXTS), limit=limit, stop=stop) == expected


def test_of_two_stop_texts_in_one_token_the_first_in_the_text_cuts(spoken):
    backend, prompt_T, tokens = spoken
    tokenizer = spell(tokens, ["a", "b; c. d", *"efghij"])
    assert answer(backend, prompt_T, tokenizer, stop=(".", ";")) == ("ab", 2, "stop")


@pytest.mark.parametrize(
    ("models", "tokenizers", "expected"),
    [
        ([3], None, ("The answer", 4, "eos")),
        ([None, 3], None, ("The answer", 4, "eos")),
        ([3], 1, ("The", 2, "eos")),
        ([], 0, ("", 1, "eos")),
    ],
)
def test_end_tokens_of_model_and_tokenizer_end_the_answer_and_are_no_part_of_it(spoken, models, tokenizers, expected):
    """Both are given as places in the answer; None is a token that isn't in it."""
    backend, prompt_T, tokens = spoken
    ends = [299 if place is None else tokens[place] for place in models]
    if models:
        backend.model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    else:
        backend.model.generation_config = None
    tokenizer = spell(tokens, TEXTS, eos=None if tokenizers is None else tokens[tokenizers])
    assert answer(backend, prompt_T, tokenizer) == expected
    assert answer(backend, prompt_T, tokenizer, limit=expected[1]) == expected


def test_a_special_token_without_a_role_may_be_a_stop_text_too():
    """Llama 3's `<|eot_id|>` is neither BOS nor EOS."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    tokenizer.add_special_tokens(["<end>", "<|eot_id|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    assert tokenizer.all_special_tokens == ["<end>"]
    request = GenerateRequest(prompt_T=np.array([0]), max_new_tokens=9, stop=("<|eot_id|>",))
    ending = Ending(tokenizer, frozenset({1}), request)
    assert ending.ids == {1, 2} and ending.answer([0, 0]) is None
    assert ending.answer([0, 2]) == ("a", 2, "stop")


def test_special_tokens_are_left_out_and_may_be_stop_texts(spoken):
    backend, prompt_T, tokens = spoken
    tokenizer = spell(tokens, [*TEXTS[:2], "<|end|>", *TEXTS[3:]], special=["<|end|>"])
    assert answer(backend, prompt_T, tokenizer, limit=4) == ("The ans.\n", 4, "length")
    assert answer(backend, prompt_T, tokenizer, stop=("x", "<|end|>")) == ("The ans", 3, "stop")


def choose(context_T, *continuations):
    return ChoicesRequest(context_T=join(context_T), continuations=tuple(join(tokens_S) for tokens_S in continuations))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("generate", request(some(20), 10), request(some(20), 11)),
        ("choices", choose(some(20), some(10), some(2)), choose(some(20), some(11), some(2))),
    ],
)
def test_a_table_that_is_too_short_is_an_error(kind, good, bad, tokenizer):
    backend = make_backend(length=30)
    assert len(list(ask(backend, kind, tokenizer, [good]))) == 1
    with pytest.raises(AssertionError, match="too short"):
        list(ask(backend, kind, tokenizer, [good, bad]))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("generate", request([], 3)),
        ("generate", request([1], 0)),
        ("generate", request([1], 3, ("", "x"))),
        ("choices", choose([], [1])),
        ("choices", choose([1], [2], [])),
    ],
)
def test_what_cannot_be_asked_is_an_error(kind, bad, tokenizer):
    with pytest.raises(AssertionError, match="empty"):
        list(ask(make_backend(), kind, tokenizer, [bad]))


def ask(backend, kind, tokenizer, requests=None):
    """The answers, to three questions that share nothing unless others are given."""
    prompts = [join([n], some(20)) for n in (1, 2, 3)]
    if kind == "generate":
        return backend.generate(requests or [request(prompt_T, 5) for prompt_T in prompts], tokenizer)
    return backend.choices(requests or [choose(prompt_T, some(3)) for prompt_T in prompts])


@pytest.mark.parametrize("name", ["llama", *FORGETFUL])
@pytest.mark.parametrize("kind", ["choices", "generate"])
def test_memory_that_runs_out_is_told_and_given_back(kind, name, tokenizer, monkeypatch):
    held, caches, calls = [], [], []

    class Watched(prefix_cache.PrefixCache):
        def __init__(self, parts):
            super().__init__(parts)
            caches.append(weakref.ref(self._cache))

    def fail(*_):
        calls.append(0)
        if len(calls) > 3:
            large = torch.zeros(10)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(hf_backend, "PrefixCache", Watched)
    backend = make_backend(name)
    backend.model.get_submodule("model").layers[-1].register_forward_pre_hook(fail)
    done = []
    with pytest.raises(OutOfMemoryError, match=r"^CUDA out of memory. Tried to allocate 2 GiB$") as caught:
        done.extend(ask(backend, kind, tokenizer))
    gc.collect()
    # The error is still held, as it is while it is handled; what the pass held is not.
    assert caught.value is not None and held[0]() is None
    cache = caches[0]()
    assert cache is None or cache.layers == []
    assert len(done) == (0 if kind == "generate" else 1)
