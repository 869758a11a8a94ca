"""`frequent_words`: the most frequent made-up words of a long list (a kind of RULER's, arXiv 2404.06654).

The word of rank r makes up a share of the list in proportion to r^-2 (RULER's exponent): its j-th occurrence stands at
a random place between j and j+1 of its mean distances. So the list of a longer window begins with the list of a shorter
one, and counts keep within 1 of their share in every beginning: the answer is the same at every length.
"""

from __future__ import annotations

import collections
import random
from typing import Any

import datasets

from longeval.studies.tasks.setting import Setting

from .fitting import Search, budget_of, seeded
from .rows import Row, dataset, make_row

_TASK = "frequent_words"
_NUM_ASKED = 3
_NUM_RANKS = 500
_EXPONENT = 2.0
_LEAST_WORDS = 80
"""From some 60 words on the third word is ahead of the fourth whatever their places: 4 times against 3 at most."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_INSTRUCTION = (
    "Below is a long list of made-up words. Some of them are in it many times. Keep count of how often each word "
    "occurs: the question after the list asks for the most frequent ones."
)
_QUESTION = f"Which {_NUM_ASKED} words occur most often in the list above?"


def frequent_words(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Samples of `frequent_words`; sample i has the same words, and the same answer, at every length.

    Raises:
        LongEvalError: If the window is too short.
    """
    budget = budget_of(_TASK, setting, max_new_tokens)

    def make() -> list[Row]:
        rows = []
        for index in setting.indices():
            # A word has six letters and a blank, so one a token is more than a prompt takes.
            listed = _list(seeded(_TASK, setting.seed, index), _LEAST_WORDS + setting.length)
            ladder = [7 * count for count in range(len(listed) - _LEAST_WORDS + 1)]

            def build(step: int, listed: list[str] = listed) -> str:
                return f"{_INSTRUCTION}\n\n{' '.join(listed[: _LEAST_WORDS + step])}\n\n{_QUESTION}"

            # A search of its own for each sample: the most frequent words decide how many tokens a character has.
            fitted = Search(setting.measure, budget).fit(build, ladder)
            counts = collections.Counter(listed[: _LEAST_WORDS + fitted.step]).most_common(_NUM_ASKED + 1)
            assert counts[_NUM_ASKED - 1][1] > counts[_NUM_ASKED][1], "the answer is not unique"
            answers = [word for word, _ in counts[:_NUM_ASKED]]
            rows.append(
                make_row(
                    index, text=fitted.text, question=_QUESTION, answers=answers, form="word", tokens=fitted.tokens
                )
            )
        return rows

    return dataset(_TASK, setting, max_new_tokens, make)


def _list(rng: random.Random, least: int) -> list[str]:
    """At least `least` words."""
    words: dict[str, None] = {}
    while len(words) < _NUM_RANKS:
        words["".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))] = None
    weights = [rank**-_EXPONENT for rank in range(1, _NUM_RANKS + 1)]
    places: list[tuple[float, str]] = []
    for word, weight in zip(words, weights, strict=True):
        distance = sum(weights) / weight
        # Further than `least`, so that its end lacks no word: the places before N are N but for a few.
        count = int((least + 100) / distance) + 2
        # Each word has random numbers of its own: how many it draws must not change the others' places.
        own = seeded(rng.random())
        places += [((number + own.random()) * distance, word) for number in range(count)]
    return [word for _, word in sorted(places)][:least]
