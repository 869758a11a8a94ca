"""Needles in a haystack: numbers of made-up owners, hidden in noise or in documents (Kamradt 2023).

The four kinds are those of RULER (Hsieh et al. 2024, arXiv 2404.06654): one number; one of several owners' numbers; all
numbers of one owner; the numbers of several owners. Words and sentences are our own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import datasets

from longeval.studies.tasks.setting import Setting

from .filler import ANYWHERE, Hidden, haystack, hide
from .fitting import Search, budget_of, depth_of, seeded
from .rows import Row, dataset, make_row

_NUM_NEEDLES = 4
"""Of the kinds with several, as in RULER."""
_INSTRUCTION = (
    "The text below hides one or more secret numbers, among much that does not matter. Remember every secret number "
    "and what it belongs to: the question after the text asks for it."
)
_COLOURS = (
    "amber", "azure", "beige", "bronze", "cobalt", "copper", "coral", "crimson", "ebony", "emerald", "golden", "indigo",
    "ivory", "lilac", "maroon", "olive", "orange", "purple", "ruby", "scarlet", "silver", "violet", "white", "yellow",
)  # fmt: skip
_THINGS = (
    "anchor", "basket", "candle", "compass", "cradle", "drum", "feather", "flute", "goblet", "hammer", "helmet", "bowl",
    "kettle", "ladder", "harp", "mirror", "needle", "pillow", "ribbon", "saddle", "spoon", "lamp", "trumpet", "violin",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Needles:
    """What one sample hides and asks."""

    owners: tuple[str, ...]
    """Whose number each needle tells."""
    numbers: tuple[str, ...]
    """The numbers, in the same order; all different."""
    num_asked: int
    """The first so many are asked for."""
    question: str
    """The question."""


def niah_single(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """One needle, asked for; for the errors see `filler.haystack` and `fitting.Search`."""
    return _dataset("niah_single", setting, max_new_tokens, num_needles=1, num_asked=1)


def niah_multi_key(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Four owners with a number each, one asked for: three needles distract. Errors as in `niah_single`."""
    return _dataset("niah_multi_key", setting, max_new_tokens, num_needles=_NUM_NEEDLES, num_asked=1)


def niah_multi_value(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """One owner with four numbers in four places, all asked for. Errors as in `niah_single`."""
    return _dataset(
        "niah_multi_value", setting, max_new_tokens, num_needles=_NUM_NEEDLES, num_asked=_NUM_NEEDLES, one_owner=True
    )


def niah_multi_query(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Four owners with a number each, all asked for. Errors as in `niah_single`."""
    return _dataset("niah_multi_query", setting, max_new_tokens, num_needles=_NUM_NEEDLES, num_asked=_NUM_NEEDLES)


def _dataset(
    task: str, setting: Setting, max_new_tokens: int, *, num_needles: int, num_asked: int, one_owner: bool = False
) -> dict[str, datasets.Dataset]:
    filler = haystack(task, setting)
    budget = budget_of(task, setting, max_new_tokens)

    def make() -> list[Row]:
        ladder = filler.ladder(setting, budget)
        search = Search(setting.measure, budget)
        rows = []
        for index in setting.indices():
            needles = _draw(seeded(task, setting.seed, index), num_needles, num_asked, one_owner=one_owner)
            depth = depth_of(index)
            hidden = [
                _hidden(depth, number / num_needles, f"The secret number of the {owner} is {value}.")
                for number, (owner, value) in enumerate(zip(needles.owners, needles.numbers, strict=True))
            ]

            def build(step: int, hidden: list[Hidden] = hidden, question: str = needles.question) -> str:
                return f"{_INSTRUCTION}\n\n{hide(filler, ladder[step], hidden)}\n\n{question}"

            fitted = search.fit(build, ladder)
            rows.append(
                make_row(
                    index,
                    text=fitted.text,
                    question=needles.question,
                    answers=list(needles.numbers[:num_asked]),
                    form="number",
                    tokens=fitted.tokens,
                    depth=depth,
                    repeats=filler.repeats(ladder[fitted.step]),
                )
            )
        return rows

    return dataset(task, setting, max_new_tokens, make, haystack=filler.digest)


def _hidden(depth: float, further: float, text: str) -> Hidden:
    """A needle: the first asked one at the sample's depth, the others evenly on from there, round the end."""
    return Hidden(depth, text) if further == 0 else Hidden((depth + further) % 1, text, ANYWHERE)


def _draw(rng: random.Random, num_needles: int, num_asked: int, *, one_owner: bool) -> _Needles:
    pairs = rng.sample(range(len(_COLOURS) * len(_THINGS)), num_needles)
    owners = [f"{_COLOURS[pair // len(_THINGS)]} {_THINGS[pair % len(_THINGS)]}" for pair in pairs]
    if one_owner:
        owners = [owners[0]] * num_needles
    numbers = [str(number) for number in rng.sample(range(1_000_000, 10_000_000), num_needles)]
    if num_asked == 1:
        question = f"What is the secret number of the {owners[0]}?"
    elif one_owner:
        question = f"The text above tells {num_asked} secret numbers of the {owners[0]}. Which are they? Give them all."
    else:
        asked = f"{', '.join(f'the {owner}' for owner in owners[:-1])} and the {owners[-1]}"
        question = f"What are the secret numbers of {asked}? Give only the {num_asked} numbers, in this order."
    return _Needles(owners=tuple(owners), numbers=tuple(numbers), num_asked=num_asked, question=question)
