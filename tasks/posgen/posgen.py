"""PosGen for pretrained models, in text: a sequence as long as the window takes, and what its next digits are.

Wang et al. 2024 (arXiv 2403.00071), section 5, with the same rules as the models that longeval trains itself
(`longeval.posgen`), j = 1 and k = 3, but modulo 10: tokenizers give a digit between blanks one token or two, and "the
last digit of the sum" is arithmetic that models know. The rule is said in words, then shown on three short sequences,
which start like none of those that are asked for. Sums repeat after a while (modulo 10 after 1,560 digits at most in
`recursive`, after 124 at most in `cot`, as in the paper's modulo 17 after 4,912 and 96): a model may look back instead
of adding, at any length alike.

How prompts are brought to their length and kept is that of the folder `synthetic`.

N sequences, K = j + k digits of a start, T digits.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import datasets
import numpy as np

from longeval.errors import LongEvalError
from longeval.studies.posgen.data import draw_starts, extend, summed_indices
from longeval.studies.tasks.setting import Setting

VERSION = 1
"""Of what is made here; a change of that changes it, and with it the name of every kept file."""

_MODULUS, _J, _K = 10, 1, 3
_NUM_ASKED = 4
_SHOTS = (12, 20, 28)
"""Digits of the short sequences, without the answer."""
_LEAST = 16
"""Digits of a long sequence in the shortest window."""
_QUESTION = "Which four digits come next?"
_ANSWER = "The next four digits are"
_START = "Each sequence of digits below starts with four random digits. Every digit after them is the last digit of"
_INSTRUCTIONS = {
    "recursive": f"{_START} the sum of the four digits right before it.",
    "cot": f"{_START} a sum of four digits: the first digit of the sequence, and the three digits right before it.",
    "semi_recursive": f"{_START} a sum of four digits: the three digits right before it, and one from further back, "
    "which is the first digit of the sequence for the 5th and the 6th, the second for the 7th and the 8th, the third "
    "for the 9th and the 10th, and so on.",
}


def _synthetic(name: str) -> Any:
    """A module of the folder `synthetic`, which becomes a package when its entry module runs (see there)."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "synthetic", "synthetic.py")
    spec = importlib.util.spec_from_file_location("longeval_synthetic_entry", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return importlib.import_module(f"longeval_synthetic.{name}")


_fitting, _rows = _synthetic("fitting"), _synthetic("rows")


def make(rule: str, setting: Setting, *, max_new_tokens: int, **ignored: Any) -> dict[str, datasets.Dataset]:
    """Samples of a rule; sample i starts alike at every length, and its longer sequence begins with its shorter one.

    Raises:
        LongEvalError: If the window is too short, or there are fewer starts than samples.
    """
    task = f"posgen_{rule}"
    budget = _fitting.budget_of(task, setting, max_new_tokens)
    there = _MODULUS ** (_J + _K) - len(_SHOTS)
    if setting.num_samples > there:
        raise LongEvalError(
            f"--limit {setting.num_samples}: {task} has {there:,} ways to start a sequence", f"Ask for at most {there}."
        )

    def rows() -> list[dict[str, Any]]:
        shots, texts = _sequences(rule, setting)
        frame = f"{_INSTRUCTIONS[rule]}\n\n{_shots(shots)}"
        # A digit and its blank are two characters: any number of them is a step, and all samples take about as many.
        ladder = range(0, 2 * setting.length + 1, 2)
        search = _fitting.Search(setting.measure, budget)
        made = []
        for index, text in zip(setting.indices(), texts, strict=True):

            def build(step: int, text: str = text) -> str:
                return f"{frame}\n\n{_asked(text, _LEAST + step)}"

            fitted = search.fit(build, ladder)
            answers = _digits(text, _LEAST + fitted.step, _NUM_ASKED).split()
            row = _rows.make_row(
                index, text=fitted.text, question=_QUESTION, answers=answers, form="digit", tokens=fitted.tokens
            )
            made.append(row | {"target": " ".join(answers)})
        return made

    return _rows.dataset(f"{task}/{VERSION}", setting, max_new_tokens, rows)


def _sequences(rule: str, setting: Setting) -> tuple[list[str], list[str]]:
    """Texts of the short sequences and of one long one for each sample, longer than any prompt takes."""
    num = len(_SHOTS) + setting.num_samples
    starts_NK = draw_starts(modulus=_MODULUS, width=_J + _K, num=num, seed=setting.seed).astype(np.uint8)
    length = _LEAST + setting.length + _NUM_ASKED
    summed = summed_indices(rule, j=_J, k=_K, length=max(length, max(_SHOTS) + _NUM_ASKED))
    digits_NT = extend(starts_NK, summed, modulus=_MODULUS)
    blanks_NT = np.full((num, 2 * digits_NT.shape[1]), ord(" "), dtype=np.uint8)
    blanks_NT[:, ::2] = digits_NT + ord("0")
    texts = [row.tobytes().decode("ascii") for row in blanks_NT]
    return texts[: len(_SHOTS)], texts[len(_SHOTS) :]


def _shots(texts: list[str]) -> str:
    """The short sequences with their answers."""
    return "\n\n".join(
        f"{_asked(text, length)} {_ANSWER} {_digits(text, length, _NUM_ASKED)}."
        for text, length in zip(texts, _SHOTS, strict=True)
    )


def _asked(text: str, length: int) -> str:
    return f"Sequence: {_digits(text, 0, length)}\n{_QUESTION}"


def _digits(text: str, first: int, number: int) -> str:
    """So many digits of a sequence from index `first` on, with blanks between them."""
    return text[2 * first : 2 * (first + number) - 1]


recursive = functools.partial(make, "recursive")
cot = functools.partial(make, "cot")
semi_recursive = functools.partial(make, "semi_recursive")
