"""`variable_tracking`: which variables have a value, after assignments hidden in noise (RULER, arXiv 2404.06654).

A chain sets a variable to a number, then each further variable to the one before. All of one chain are asked for; a
second chain, with another number, is there so that listing every name is no answer. RULER's has one chain and a worked
example before it; this has no example.
"""

from __future__ import annotations

import random
import string
from typing import Any

import datasets

from longeval.studies.tasks.setting import Setting

from .filler import ANYWHERE, Hidden, hide, noise
from .fitting import Search, budget_of, seeded
from .rows import Row, dataset, make_row

_TASK = "variable_tracking"
_NUM_CHAINS = 2
_NUM_NAMES = 5
"""Of a chain: four hops, as in RULER."""
_INSTRUCTION = (
    "The text below contains assignments, among much that does not matter. An assignment gives a variable, whose name "
    "is five capital letters, a number or the value of another variable. Keep track of every variable: the question "
    "after the text asks for them."
)


def variable_tracking(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Samples of `variable_tracking`; the chains and their places, as shares of the text, are the same at every length.

    Raises:
        LongEvalError: If the window is too short.
    """
    budget = budget_of(_TASK, setting, max_new_tokens)

    def make() -> list[Row]:
        filler = noise(_TASK, setting)
        ladder = filler.ladder(setting, budget)
        search = Search(setting.measure, budget)
        rows = []
        for index in setting.indices():
            names, hidden, question = _draw(seeded(_TASK, setting.seed, index))

            def build(step: int, hidden: list[Hidden] = hidden, question: str = question) -> str:
                return f"{_INSTRUCTION}\n\n{hide(filler, ladder[step], hidden)}\n\n{question}"

            fitted = search.fit(build, ladder)
            rows.append(
                make_row(index, text=fitted.text, question=question, answers=names, form="name", tokens=fitted.tokens)
            )
        return rows

    return dataset(_TASK, setting, max_new_tokens, make)


def _draw(rng: random.Random) -> tuple[list[str], list[Hidden], str]:
    """Names asked for, all statements with their places, and the question."""
    names = _names(rng, _NUM_CHAINS * _NUM_NAMES)
    numbers = rng.sample(range(10_000, 100_000), _NUM_CHAINS)
    hidden: list[Hidden] = []
    for chain, number in enumerate(numbers):
        of_chain = names[chain * _NUM_NAMES : (chain + 1) * _NUM_NAMES]
        values = [str(number), *of_chain]
        # One place in each fifth of the text: a name is always set before it is used, and chains cross.
        hidden += [
            Hidden((hop + rng.random()) / _NUM_NAMES, f"Let {name} = {value}.", ANYWHERE)
            for hop, (name, value) in enumerate(zip(of_chain, values, strict=False))
        ]
    question = f"Which {_NUM_NAMES} variables have the value {numbers[0]}? Give the names of all {_NUM_NAMES}."
    return names[:_NUM_NAMES], hidden, question


def _names(rng: random.Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return list(names)
