"""`kv_retrieval`: the value of one key in a JSON object of random identifiers (Liu et al. 2023, arXiv 2307.03172).

All samples of a length hold the same pairs, and each its own besides, the one asked for. A pair has some fifty tokens:
what the last one that fits leaves of the window is filled with words of noise, between the object and the question.
"""

from __future__ import annotations

import random
import uuid
from typing import Any

import datasets

from longeval.studies.tasks.setting import Setting

from .filler import Filler, noise
from .fitting import Budget, Fitted, Search, TooShortError, budget_of, depth_of, seeded
from .rows import Row, dataset, make_row

_TASK = "kv_retrieval"
_INSTRUCTION = (
    "Below is a JSON object. Its keys and values are random identifiers. Remember which value belongs to which key: "
    "the question after the object asks for one of them."
)
_CHARS_OF_PAIR = 80
"""Quotes, colon, comma and line end included."""
_LEAST_TOKENS_OF_PAIR = 7
"""Fewer than any tokenizer needs for two identifiers of 32 hexadecimal digits."""


def kv_retrieval(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Samples of `kv_retrieval`; the pair asked for and its depth are the same for sample i at every length.

    Raises:
        LongEvalError: If the window is too short.
    """
    budget = budget_of(_TASK, setting, max_new_tokens)
    return dataset(_TASK, setting, max_new_tokens, lambda: _make(setting, budget))


def _make(setting: Setting, budget: Budget) -> list[Row]:
    rng = seeded(_TASK, setting.seed, "filler")
    pairs = [_pair(rng) for _ in range(setting.length // _LEAST_TOKENS_OF_PAIR + 1)]
    words = noise(_TASK, setting)
    asked = [_pair(seeded(_TASK, setting.seed, index)) for index in range(setting.num_samples)]
    num_pairs = _most_pairs(setting, budget, pairs, asked[0])
    search = Search(setting.measure, budget)
    search.start(lambda step: _prompt([], asked[0], 0, words.cut(words.word_ends[step])), words.word_ends)
    rows = []
    for index, pair in zip(setting.indices(), asked, strict=True):
        num_pairs, fitted = _fit(search, pairs, num_pairs, pair, depth_of(index), words)
        rows.append(
            make_row(
                index,
                text=fitted.text,
                question=_question(pair),
                answers=[pair[1]],
                form="identifier",
                tokens=fitted.tokens,
                depth=depth_of(index),
            )
        )
    return rows


def _most_pairs(setting: Setting, budget: Budget, pairs: list[tuple[str, str]], asked: tuple[str, str]) -> int:
    """About as many pairs as a prompt takes without noise; a few tokens are left for samples whose pair takes more."""
    spare = min(budget.slack // 4 + 2, budget.slack)
    search = Search(setting.measure, budget, top=budget.top - spare, bottom=budget.top - budget.slack)
    ladder = [_CHARS_OF_PAIR * count for count in range(len(pairs) + 1)]
    try:
        return search.fit(lambda count: _prompt(pairs[:count], asked, 0.5, ""), ladder).step
    except TooShortError:
        return 0


def _fit(
    search: Search, pairs: list[tuple[str, str]], num_pairs: int, asked: tuple[str, str], depth: float, words: Filler
) -> tuple[int, Fitted]:
    """The prompt of one sample, with words of noise for the rest; one pair less where this one's own takes more."""
    while True:

        def build(step: int, count: int = num_pairs) -> str:
            return _prompt(pairs[:count], asked, depth, words.cut(words.word_ends[step]))

        try:
            return num_pairs, search.fit(build, words.word_ends)
        except TooShortError:
            if num_pairs == 0:
                raise
            num_pairs -= 1


def _prompt(pairs: list[tuple[str, str]], asked: tuple[str, str], depth: float, rest: str) -> str:
    where = round(depth * len(pairs))
    lines = ",\n".join(f'"{key}": "{value}"' for key, value in [*pairs[:where], asked, *pairs[where:]])
    return "\n\n".join(filter(None, (_INSTRUCTION, f"{{\n{lines}\n}}", rest, _question(asked))))


def _question(asked: tuple[str, str]) -> str:
    return f'Which value belongs to the key "{asked[0]}" in the JSON object above?'


def _pair(rng: random.Random) -> tuple[str, str]:
    return _identifier(rng), _identifier(rng)


def _identifier(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
