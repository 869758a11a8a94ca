"""The order of prompts, and the lengths that are worth a copy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from longeval.backends.answering import common_prefix, order_prompts

RNG = np.random.default_rng(1)


def prompt(*tokens):
    return np.array(tokens, dtype=np.int32)


def ordered(*parts):
    """The order of prompts of runs of equal tokens: ((token, how many), …) each."""
    return order_prompts([prompt(*(token for token, times in runs for _ in range(times))) for runs in parts])


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((1, 2), (1, 2), 2), ((1,), (2,), 0)],
)
def test_common_prefix(one, other, length):
    assert common_prefix(prompt(*one), prompt(*other)) == common_prefix(prompt(*other), prompt(*one)) == length


def test_prompts_come_in_the_order_of_their_ids_not_of_their_bytes():
    order = order_prompts([prompt(256), prompt(2, 9), prompt(2), prompt(70000), prompt(2, 9, 1), prompt(255)])
    assert order.indices == (2, 1, 4, 5, 0, 3)
    assert order.shared == (1, 2, 0, 0, 0, 0)


def test_no_other_order_shares_more():
    prompts = [RNG.integers(0, 2, RNG.integers(1, 6)).astype(np.int32) for _ in range(6)]

    def shared(some):
        return sum(common_prefix(a, b) for a, b in itertools.pairwise(some))

    best = max(shared(some) for some in itertools.permutations(prompts))
    assert shared([prompts[index] for index in order_prompts(prompts).indices]) == best


def test_the_same_prompt_again_still_has_a_last_token_to_run():
    assert order_prompts([prompt(1, 2, 3), prompt(1, 2, 3)]).shared == (2, 0)


def test_nothing_to_order():
    assert order_prompts([]).indices == order_prompts([]).shared == ()
    assert order_prompts([prompt(1)]).returns(0) == ()


def test_lengths_worth_a_copy():
    """A header, a document on it, questions that part at 264, 265, 267 tokens, then another document, then another."""
    header, document = (1, 64), (2, 200)
    order = ordered(
        (header, document, (5, 3), (1, 1)),
        (header, document, (5, 3), (2, 1)),
        (header, document, (5, 1), (6, 9)),
        (header, document, (7, 9)),
        (header, (3, 300)),
        (header, (4, 300)),
    )
    assert order.indices == (0, 1, 2, 3, 4, 5)
    assert order.shared == (267, 265, 264, 64, 64, 0)
    # Not 265 nor 267: too near to 264. Not 264 once nobody returns to it.
    assert [order.returns(place) for place in range(6)] == [(64, 264), (64, 264), (64, 264), (64,), (64,), ()]


def test_only_the_lengths_that_save_most_are_worth_a_copy():
    order = ordered(*(((1, length), (2, 5)) for length in (900, 800, 400, 300, 30)), ((2, 9),))
    assert order.indices[0] == 0 and order.shared == (800, 400, 300, 30, 0, 0)
    assert [order.returns(place) for place in (0, 1, 3)] == [(300, 800), (300, 400), ()]
