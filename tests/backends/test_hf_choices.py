"""Choices of the hf backend: equal to a full pass each, whatever is shared, and no dearer than sharing promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from answer_reference import BRANCHING, FORGETFUL, MODELS, Counted, choice, greedy, join, make_backend
from families import FAMILIES
from transformers import AutoModelForCausalLM

from longeval.backends.base import ChoicesRequest
from longeval.backends.hf import parts, prefix_cache
from longeval.backends.hf.backend import HFBackend

RNG = np.random.default_rng(0)
DOCUMENT_T = RNG.integers(1, 300, 150)


def some(num_tokens, high=300):
    return RNG.integers(1, high, num_tokens)


def request(context_T, *continuations):
    return ChoicesRequest(context_T=join(context_T), continuations=tuple(join(tokens_S) for tokens_S in continuations))


def many_requests(model):
    """Continuations of all sizes; contexts that share a document, begin each other, are the same, or share nothing."""
    request_of_its_own = request(some(12), some(9), some(40), some(2))
    own_words = greedy(model, request_of_its_own.context_T, 4)
    return [
        request(join(DOCUMENT_T, some(5)), some(3), some(1), some(7)),
        request(join(DOCUMENT_T[:90], some(3)), some(1), some(1)),
        request(join(DOCUMENT_T, some(9)), some(4)),
        request(join(DOCUMENT_T[:70], some(30)), some(2), some(5)),
        request(DOCUMENT_T, some(6), some(6), some(1)),
        request_of_its_own,
        request(DOCUMENT_T, some(3), some(2), [7, 8, 9], [7, 8, 9]),
        request(DOCUMENT_T[:100], some(5), some(1)),
        request(request_of_its_own.context_T, own_words, own_words[:1], join(own_words, [1, 1]), [own_words[0], 299]),
        request(join([5], some(80)), some(50)),
        request([3], some(4)),
    ]


def check(backend, requests):
    done = list(backend.choices(requests))
    assert sorted(index for index, _ in done) == list(range(len(requests)))
    for index, scores in done:
        assert len(scores) == len(requests[index].continuations)
        for tokens_S, score in zip(requests[index].continuations, scores, strict=True):
            total, is_greedy = choice(backend.model, requests[index].context_T, tokens_S)
            assert score.log_likelihood == pytest.approx(total, rel=1e-5, abs=2e-4)
            assert score.greedy is is_greedy
    return {score.greedy for _, scores in done for score in scores}


@pytest.mark.parametrize("method", ["none", "yarn"])
@pytest.mark.parametrize("name", MODELS)
def test_choices_equal_full_passes(name, method):
    backend = make_backend(name, method)
    assert check(backend, many_requests(backend.model)) == {True, False}


@pytest.mark.parametrize("name", BRANCHING)
def test_choices_equal_full_passes_in_eager_attention(name):
    backend = make_backend(name, attn="eager")
    check(backend, many_requests(backend.model))


@pytest.mark.parametrize("name", MODELS)
def test_choices_equal_full_passes_in_small_pieces(name, monkeypatch):
    monkeypatch.setattr(prefix_cache, "CHUNK", 16)
    monkeypatch.setattr(prefix_cache, "MIN_CHUNK", 3)
    monkeypatch.setattr(prefix_cache, "MASK_ELEMENTS", 900)
    backend = make_backend(name)
    counted = Counted(backend)
    requests = many_requests(backend.model)
    counted.passes.clear()
    done = list(backend.choices(requests))
    assert len(done) == len(requests) and len(counted.passes) > 40
    check(backend, requests)


@pytest.mark.parametrize("length", [31, 32, 33])
def test_going_back_from_where_a_window_is_just_full(length):
    backend = make_backend("mistral")
    check(backend, [request(join(DOCUMENT_T[:20], [first], some(length - 21)), some(3), some(2)) for first in (1, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_choices_equal_full_passes_in_every_family(family):
    torch.manual_seed(1)
    config = getattr(transformers, family.config)(**family.constructor(family.shipped))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    backend = HFBackend(model)
    backend.serve(backend.shipped.table(), 300)
    document_T = some(150, 64)
    contexts = [join(document_T, some(5, 64)), join(document_T[:90], some(3, 64)), document_T, join(document_T, [1, 2])]
    check(backend, [request(context_T, *(some(size, 64) for size in (3, 1, 7))) for context_T in contexts])


def test_other_requests_and_their_order_change_nothing():
    backend = make_backend()
    requests = many_requests(backend.model)
    together = dict(backend.choices(requests))
    turned = dict(backend.choices(requests[::-1]))
    for index, one in enumerate(requests):
        ((_, alone),) = backend.choices([one])
        for scores in (together[index], turned[len(requests) - 1 - index]):
            np.testing.assert_allclose([s.log_likelihood for s in scores], [s.log_likelihood for s in alone], rtol=1e-5)
            assert [s.greedy for s in scores] == [s.greedy for s in alone]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shared_is_computed_once(name):
    backend = make_backend(name)
    counted = Counted(backend)
    head_T, documents = some(70), [some(100), some(80)]
    questions = [[join(head_T, document_T, [first], some(6)) for first in (5, 6, 7)] for document_T in documents]
    requests = [request(context_T, some(4), some(1), some(9)) for triple in questions for context_T in triple]
    assert len(list(backend.choices([requests[place] for place in (3, 0, 5, 1, 4, 2)]))) == 6
    # The head, each document, each question with its choices but for their last tokens.
    assert counted.total == 70 + (100 + 80) + 6 * (7 + 3 + 8)


@pytest.mark.parametrize("name", FORGETFUL)
def test_layers_that_forget_come_back_to_where_questions_part_even_when_that_varies(name):
    backend = make_backend(name)
    counted = Counted(backend)
    document_T = some(200)
    starts = [[1, 1], [1, 1, 2], [1, 1, 3], [1, 4], [5], [6, 7], [6, 8]]
    requests = [request(join(document_T, start, [10 + n] * 5), [9]) for n, start in enumerate(starts)]
    list(backend.choices(requests))
    assert counted.total <= 200 + sum(len(one.context_T) - 200 for one in requests)


def test_choices_of_one_token_need_the_context_only():
    backend = make_backend()
    counted = Counted(backend)
    list(backend.choices([request(DOCUMENT_T, [1], [2], [3]), request(DOCUMENT_T, [4])]))
    assert counted.passes == [150]


@pytest.mark.parametrize("name", MODELS)
def test_several_choices_are_one_pass_where_the_model_allows(name):
    backend = make_backend(name)
    counted = Counted(backend)
    list(backend.choices([request(DOCUMENT_T[:20], some(4), some(6), some(2), some(1))]))
    assert counted.passes == ([20, 3 + 5 + 1] if name in BRANCHING else [20, 3, 5, 1])


def test_logits_only_where_they_are_needed(monkeypatch):
    monkeypatch.setattr(parts, "LOGITS_BYTES", 4 * 300 * 8)
    backend = make_backend()
    shapes = []
    backend.model.lm_head.register_forward_hook(lambda *arguments: shapes.append(arguments[2].shape[1]))
    list(backend.choices([request(DOCUMENT_T, some(4), some(1), some(16))]))
    assert shapes == [1, 8, 8, 2]


@pytest.fixture
def attention(monkeypatch):
    """(queries, keys, whether there is a mask) of every call of PyTorch's attention."""
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def recorded(query, key, value, attn_mask=None, is_causal=False, **kwargs):
        calls.append((query.shape[-2], key.shape[-2], attn_mask is not None, is_causal))
        return original(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    return calls


START_T = some(20)


@pytest.mark.parametrize(
    ("name", "chunk", "contexts", "expected"),
    [
        # A long context is one pass without a mask, even if a little of it is there.
        ("llama", 50, [join(START_T, [first], some(99)) for first in (1, 2)], {(120, 120, False, True)}),
        # The rest after a long beginning has a mask of its own size.
        (
            "llama",
            None,
            [join(DOCUMENT_T, [first], some(9)) for first in (1, 2)],
            {(160, 160, False, True), (10, 160, True, False)},
        ),
        # A window that the context fits in needs no mask; others never have a mask of all times all.
        ("mistral", None, [DOCUMENT_T[:31]], {(31, 31, False, True)}),
        ("mistral", 40, [DOCUMENT_T], {(40, 40, True, False), (40, 71, True, False), (30, 61, True, False)}),
    ],
)
def test_masks_are_no_larger_than_they_need_to_be(attention, monkeypatch, name, chunk, contexts, expected):
    if chunk is not None:
        monkeypatch.setattr(prefix_cache, "CHUNK", chunk)
    list(make_backend(name).choices([request(context_T, [1]) for context_T in contexts]))
    assert set(attention) == expected
