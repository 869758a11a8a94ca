"""PosGen's sequences: made from a seed, the same on every machine, no two with the same start.

A sequence starts with j + k random tokens. Each token after them is the sum, modulo m, of some earlier ones; a rule
says which. Source: Wang et al. 2024 (arXiv 2403.00071), section 5 and C.1. There, sequences of different splits may
start alike. Here no two sequences do, so that a model can't know a test sequence by heart.

Starts come from the 64-bit numbers of numpy's PCG64, because numpy promises never to change its stream (unlike that of
`Generator`). Each token is one number modulo m, and each start is the next j + k tokens; a repeated start is skipped.
The test split gets its starts first, then the validation split, then the training split. So the test data stay the same
when `num_train` grows, and the training data only get longer. The starts don't depend on the rule: tasks of one seed
differ in their rules only.

N sequences, T tokens, K = j + k tokens of a start.
"""

from __future__ import annotations

import bisect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.registry import Registry

Rule = Callable[[int, int, int], Sequence[int]]
"""(index l of the new token, j, k) → indices of the earlier tokens that are summed. Indices count from 0, and l is at
least j + k. An index that is given twice counts twice. A rule raises LongEvalError for values of j or k that it can't
use."""

RULES: Registry[Rule] = Registry("--task")
"""Rules by the name that users type; `RULES.register(name, rule)` adds one."""

_MOST_MODULUS = 2**31
"""The largest m; a sum of tokens stays within 64 bits, whatever a rule sums."""
_RULE_TRIED = 1024
"""Tokens for which a rule is tried when the setting is checked; `generate` uses it for all."""
_MOST_DRAWN = 2**20
"""The largest number of starts that are drawn at once."""

Number = TypeVar("Number", bound=np.integer[Any])


def recursive(index: int, j: int, k: int) -> Sequence[int]:
    """The last j + k tokens."""
    return range(index - j - k, index)


def cot(index: int, j: int, k: int) -> Sequence[int]:
    """The first j tokens of the sequence and the last k, as a chain of thought needs question and latest steps."""
    _check_both("cot", "the first j tokens", j, k)
    return (*range(j), *range(index - k, index))


def semi_recursive(index: int, j: int, k: int) -> Sequence[int]:
    """The j tokens from index ⌊(l − (j+k)) / 2⌋ on, half as fast as the sequence grows, and the last k."""
    _check_both("semi_recursive", "j tokens half way back", j, k)
    far = (index - j - k) // 2
    return (*range(far, far + j), *range(index - k, index))


def _check_both(name: str, far: str, j: int, k: int) -> None:
    """Raises LongEvalError for j = 0, where nothing far is summed, and for k = 0, where nothing near is."""
    for flag, value in (("--j", j), ("--k", k)):
        if value < 1:
            raise LongEvalError(
                f"{flag} {value}: --task {name} sums {far} and the last k, and needs at least one of each",
                f"Give {flag} 1 or more; --task recursive does with 0 of one of them, and then with fewer sequences.",
            )


RULES.register("recursive", recursive)
RULES.register("cot", cot)
RULES.register("semi_recursive", semi_recursive)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSetting:
    """The settings of PosGen data. Those that contradict each other raise LongEvalError; numbers are not negative."""

    task: str
    """Name of a rule in `RULES`."""
    modulus: int = 17
    """m: tokens are 0 … m − 1."""
    j: int = 1
    """Tokens that are summed at the rule's own place."""
    k: int = 3
    """Tokens that are summed right before the new one."""
    length: int = 64
    """Tokens of a training sequence."""
    test_length: int = 256
    """Tokens of a validation or test sequence."""
    num_train: int = 10000
    """Sequences to train on."""
    num_valid: int = 1000
    """Sequences for validation."""
    num_test: int = 1000
    """Sequences for the test."""
    seed: int = 0
    """Seed of the starts."""

    def __post_init__(self) -> None:
        RULES.lookup(self.task)
        if self.start_length == 0:
            raise LongEvalError("--j 0, --k 0: no token would be summed", "Give at least 1 for one of them.")
        if self.modulus > _MOST_MODULUS:
            raise LongEvalError(
                f"--modulus {self.modulus}: must be at most {_MOST_MODULUS}, so that sums stay within 64 bits",
                "The paper's is 17.",
            )
        if self.length <= self.start_length:
            raise LongEvalError(
                f"--length {self.length}: the first {self.start_length} tokens (j + k) are random, and none follows",
                f"Give --length {self.start_length + 1} or more, or fewer --j and --k.",
            )
        if self.test_length < self.length:
            raise LongEvalError(
                f"--test-length {self.test_length}: is shorter than the training length {self.length}",
                "PosGen trains short and tests long: give more than --length, such as four times it.",
            )
        summed_indices(self.task, j=self.j, k=self.k, length=min(self.test_length, _RULE_TRIED))
        self._check_starts()

    def _check_starts(self) -> None:
        """Raises LongEvalError if there aren't as many starts as sequences, or no sequence is asked for."""
        wanted = sum(self.sizes.values())
        if wanted == 0:
            raise LongEvalError("--num-train 0, --num-valid 0, --num-test 0: no sequence is asked for", "Ask for some.")
        there = self.modulus**self.start_length
        if wanted > there:
            moduli = range(min(wanted, sys.maxsize))
            least = bisect.bisect_left(moduli, wanted, key=lambda modulus: modulus**self.start_length)
            raise LongEvalError(
                f"--modulus {self.modulus}, --j {self.j}, --k {self.k}: there are {there:,} ways to start "
                f"({self.modulus}^{self.start_length}), and {wanted:,} sequences need one each "
                f"(--num-train {self.num_train}, --num-valid {self.num_valid}, --num-test {self.num_test})",
                f"Ask for at most {there} sequences in all, or give --modulus {least} or more, or more --j or --k.",
            )

    @property
    def start_length(self) -> int:
        """Tokens at the start of a sequence, j + k, that are random and that no loss or accuracy counts."""
        return self.j + self.k

    @property
    def num_tokens(self) -> int:
        """Tokens of all splits."""
        return self.num_train * self.length + (self.num_valid + self.num_test) * self.test_length

    @property
    def sizes(self) -> dict[str, int]:
        """Sequences of each split."""
        return {"train": self.num_train, "valid": self.num_valid, "test": self.num_test}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PosGenData:
    """The sequences of a setting, as tokens 0 … m − 1."""

    setting: DataSetting
    """The settings that they were made with."""
    train_NT: npt.NDArray[np.int64]
    """[num_train, length]."""
    valid_NT: npt.NDArray[np.int64]
    """[num_valid, test_length]."""
    test_NT: npt.NDArray[np.int64]
    """[num_test, test_length]."""

    @property
    def splits(self) -> dict[str, npt.NDArray[np.int64]]:
        """The arrays by the names of their splits."""
        return {"train": self.train_NT, "valid": self.valid_NT, "test": self.test_NT}


def generate(setting: DataSetting) -> PosGenData:
    """Makes the data of a setting: a pure function of it, on every machine and with every version of numpy."""
    width, modulus = setting.start_length, setting.modulus
    starts_NK = draw_starts(modulus=modulus, width=width, num=sum(setting.sizes.values()), seed=setting.seed)
    summed = summed_indices(setting.task, j=setting.j, k=setting.k, length=setting.test_length)
    ends = np.cumsum([setting.num_test, setting.num_valid])
    test_NK, valid_NK, train_NK = np.split(starts_NK, ends)
    return PosGenData(
        setting=setting,
        train_NT=extend(train_NK, summed[: setting.length - width], modulus=modulus),
        valid_NT=extend(valid_NK, summed, modulus=modulus),
        test_NT=extend(test_NK, summed, modulus=modulus),
    )


def draw_starts(*, modulus: int, width: int, num: int, seed: int) -> npt.NDArray[np.int64]:
    """Draws different starts, [num, width] tokens; a larger `num` gives the same starts, followed by more.

    A token's bias, from taking 64 bits modulo m, is below m / 2^64.

    Args:
        modulus: m.
        width: j + k, the tokens of a start.
        num: How many starts; at most m^(j+k).
        seed: At least 0.
    """
    there = modulus**width
    assert num <= there, "no end to the drawing"
    bits = np.random.PCG64(seed)
    found: dict[tuple[int, ...], None] = {}
    while (missing := num - len(found)) > 0:
        # About as many as are needed when many repeat earlier ones; the number doesn't change the result.
        rows = min(missing * there // (there - len(found)) + 64, _MOST_DRAWN)
        drawn_NK = bits.random_raw((rows, width)) % np.uint64(modulus)
        found |= dict.fromkeys(map(tuple, drawn_NK.tolist()))
    return np.array(list(found)[:num], dtype=np.int64).reshape(num, width)


def summed_indices(task: str, *, j: int, k: int, length: int) -> list[list[int]]:
    """The indices that a rule sums for each token after the start; entry i is for token j + k + i, up to `length` − 1.

    Raises:
        LongEvalError: If the rule is unknown, refuses j or k, or sums nothing or tokens that aren't there yet.
    """
    rule = RULES.lookup(task)
    summed = []
    for index in range(j + k, length):
        indices = list(rule(index, j, k))
        wrong = [str(other) for other in indices if not 0 <= other < index]
        if wrong or not indices:
            raise LongEvalError(
                f"--task {task}: for token {index} its rule sums {', '.join(wrong) or 'no token'}",
                f"A rule names at least one earlier token: 0 … {index - 1}.",
            )
        summed.append(indices)
    return summed


def extend(starts_NK: npt.NDArray[Number], summed: Sequence[Sequence[int]], *, modulus: int) -> npt.NDArray[Number]:
    """Continues starts by a rule.

    Args:
        starts_NK: The first tokens of each sequence.
        summed: For each token after them, the indices of the tokens that are summed (see `summed_indices`).
        modulus: m.

    Returns:
        [N, K + len(summed)] tokens, in the type of the starts.
    """
    num, width = starts_NK.shape
    tokens_TN = np.empty((width + len(summed), num), dtype=starts_NK.dtype)  # a rule reads and writes whole rows
    tokens_TN[:width] = starts_NK.T
    for index, indices in enumerate(summed, start=width):
        tokens_TN[index] = tokens_TN[list(indices)].sum(axis=0, dtype=np.int64) % modulus
    return np.ascontiguousarray(tokens_TN.T)


def json_lines(data: PosGenData) -> Iterator[str]:
    """Yields `{"split": "train", "tokens": [3, 1, …]}` for each sequence, without line ends, split by split."""
    for split, tokens_NT in data.splits.items():
        for tokens_T in tokens_NT:
            yield json.dumps({"split": split, "tokens": tokens_T.tolist()})
