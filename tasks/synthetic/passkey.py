"""`passkey`: one five-digit number in noise (Mohtashami and Jaggi 2023, arXiv 2305.16300), in our own words."""

from __future__ import annotations

from typing import Any

import datasets

from longeval.studies.tasks.setting import Setting

from .filler import Hidden, hide, noise
from .fitting import Search, budget_of, depth_of, seeded
from .rows import Row, dataset, make_row

_TASK = "passkey"
_INSTRUCTION = (
    "The text below contains a pass key, a number of five digits, among much that does not matter. Remember the pass "
    "key: the question after the text asks for it."
)
_QUESTION = "What is the pass key?"


def passkey(setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Samples of `passkey`; number and depth of sample i are the same at every length.

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
            key = str(seeded(_TASK, setting.seed, index).randint(10000, 99999))
            hidden = [Hidden(depth_of(index), f"The pass key is {key}.")]

            def build(step: int, hidden: list[Hidden] = hidden) -> str:
                return f"{_INSTRUCTION}\n\n{hide(filler, ladder[step], hidden)}\n\n{_QUESTION}"

            fitted = search.fit(build, ladder)
            rows.append(
                make_row(
                    index,
                    text=fitted.text,
                    question=_QUESTION,
                    answers=[key],
                    form="number",
                    tokens=fitted.tokens,
                    depth=depth_of(index),
                )
            )
        return rows

    return dataset(_TASK, setting, max_new_tokens, make)
