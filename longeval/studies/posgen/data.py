"""Generates PosGen's sequences from a seed. They are the same on every machine, and all have different starts.

A sequence starts with j + k random tokens. Each further token is the sum, modulo m, of some earlier tokens, which a
rule chooses. Source: Wang et al. 2024 (arXiv 2403.00071), section 5 and C.1. In the paper, sequences of different
splits may have the same start. Here they can't, so a model can't have memorised a test sequence.

Starts are drawn with the 64-bit numbers of numpy's PCG64, whose stream numpy guarantees (unlike that of `Generator`).
Each token is one number modulo m, and each start is the next j + k tokens; repeated starts are skipped. The test split
takes the first starts, then the validation split, then the training split. So if `num_train` grows, the test data stay
the same and training sequences are only added. The starts don't depend on the rule.

Shapes: N sequences, T tokens, K = j + k tokens of a start.
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
"""Maps (index l of the new token, j, k) to the indices of the earlier tokens that are summed.

Indices count from 0, and l is at least j + k. An index that occurs twice counts twice. A rule raises LongEvalError for
values of j or k that it can't use."""

RULES: Registry[Rule] = Registry("--task")
"""Rules by name. `RULES.register(name, rule)` adds one."""

_MOST_MODULUS = 2**31
"""The largest m, so that sums of tokens fit into 64 bits."""
_RULE_TRIED = 1024
"""Number of tokens for which a rule is tried when settings are checked."""
_MOST_DRAWN = 2**20
"""The largest number of starts that are drawn at the same time."""

Number = TypeVar("Number", bound=np.integer[Any])


def recursive(index: int, j: int, k: int) -> Sequence[int]:
    """Sums the last j + k tokens."""
    return range(index - j - k, index)


def cot(index: int, j: int, k: int) -> Sequence[int]:
    """Sums the first j tokens of the sequence and the last k, as a chain of thought uses question and latest steps."""
    _check_both("cot", "the first j tokens", j, k)
    return (*range(j), *range(index - k, index))


def semi_recursive(index: int, j: int, k: int) -> Sequence[int]:
    """Sums j tokens from index ⌊(l − (j+k)) / 2⌋ on, which advance half as fast as the sequence, and the last k."""
    _check_both("semi_recursive", "j tokens half way back", j, k)
    far = (index - j - k) // 2
    return (*range(far, far + j), *range(index - k, index))


def _check_both(name: str, far: str, j: int, k: int) -> None:
    """Raises LongEvalError if j or k is 0: the rule would sum no distant, or no recent, tokens."""
    for flag, value in (("--j", j), ("--k", k)):
        if value < 1:
            raise LongEvalError(
                f"{flag} {value}: --task {name} sums {far} and the last k, and needs at least one of each",
                f"Give {flag} 1 or more, or use --task recursive, for which one of them may be 0.",
            )


RULES.register("recursive", recursive)
RULES.register("cot", cot)
RULES.register("semi_recursive", semi_recursive)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSetting:
    """The settings of PosGen data; contradictory ones raise LongEvalError. Numbers must not be negative."""

    task: str
    """Name of a rule in `RULES`."""
    modulus: int = 17
    """m: tokens are 0 … m − 1."""
    j: int = 1
    """Number of summed tokens at the rule's place."""
    k: int = 3
    """Number of summed tokens right before the new one."""
    length: int = 64
    """Tokens of a training sequence."""
    test_length: int = 256
    """Tokens of a validation or test sequence."""
    num_train: int = 10000
    """Number of training sequences."""
    num_valid: int = 1000
    """Number of validation sequences."""
    num_test: int = 1000
    """Number of test sequences."""
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
                f"--length {self.length}: must be more than the {self.start_length} random tokens (j + k) at the start",
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
        """Raises LongEvalError if there are fewer different starts than sequences, or no sequences."""
        wanted = sum(self.sizes.values())
        if wanted == 0:
            raise LongEvalError(
                "--num-train 0, --num-valid 0, --num-test 0: there would be no sequences", "Give at least 1 for one."
            )
        there = self.modulus**self.start_length
        if wanted > there:
            moduli = range(min(wanted, sys.maxsize))
            least = bisect.bisect_left(moduli, wanted, key=lambda modulus: modulus**self.start_length)
            raise LongEvalError(
                f"--modulus {self.modulus}, --j {self.j}, --k {self.k}: there are {there:,} ways to start "
                f"({self.modulus}^{self.start_length}), but {wanted:,} sequences need different starts "
                f"(--num-train {self.num_train}, --num-valid {self.num_valid}, --num-test {self.num_test})",
                f"Use at most {there} sequences in all, or --modulus {least} or more, or a larger --j or --k.",
            )

    @property
    def start_length(self) -> int:
        """Number of random tokens at the start of a sequence, j + k, which losses and accuracies leave out."""
        return self.j + self.k

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all splits."""
        return self.num_train * self.length + (self.num_valid + self.num_test) * self.test_length

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sequences of each split."""
        return {"train": self.num_train, "valid": self.num_valid, "test": self.num_test}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PosGenData:
    """The sequences of all splits, as tokens 0 … m − 1."""

    setting: DataSetting
    train_NT: npt.NDArray[np.int64]
    """Shape (num_train, length)."""
    valid_NT: npt.NDArray[np.int64]
    """Shape (num_valid, test_length)."""
    test_NT: npt.NDArray[np.int64]
    """Shape (num_test, test_length)."""

    @property
    def splits(self) -> dict[str, npt.NDArray[np.int64]]:
        """The arrays by name of their split."""
        return {"train": self.train_NT, "valid": self.valid_NT, "test": self.test_NT}


def generate(setting: DataSetting) -> PosGenData:
    """Generates the data. They depend only on the settings, not on the machine or the version of numpy."""
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
    """Draws different starts. A larger `num` gives the same starts, followed by more.

    Taking 64 bits modulo m biases a token's probability by less than m / 2^64.

    Args:
        modulus: m.
        width: K = j + k, the tokens of a start.
        num: N, the number of starts; at most m^(j+k).
        seed: At least 0.

    Returns:
        Tokens of shape (N, K).
    """
    there = modulus**width
    assert num <= there, "there are not so many different starts"
    bits = np.random.PCG64(seed)
    found: dict[tuple[int, ...], None] = {}
    while (missing := num - len(found)) > 0:
        # Allows for repeats of earlier starts. The number of rows doesn't change the result.
        rows = min(missing * there // (there - len(found)) + 64, _MOST_DRAWN)
        drawn_NK = bits.random_raw((rows, width)) % np.uint64(modulus)
        found |= dict.fromkeys(map(tuple, drawn_NK.tolist()))
    return np.array(list(found)[:num], dtype=np.int64).reshape(num, width)


def summed_indices(task: str, *, j: int, k: int, length: int) -> list[list[int]]:
    """The indices that a rule sums for each token after the start, up to token `length` − 1.

    Returns:
        A list whose entry i holds the indices for token j + k + i.

    Raises:
        LongEvalError: The rule is unknown, refuses j or k, or gives no indices or indices of later tokens.
    """
    rule = RULES.lookup(task)
    summed = []
    for index in range(j + k, length):
        indices = list(rule(index, j, k))
        wrong = [str(other) for other in indices if not 0 <= other < index]
        if wrong or not indices:
            raise LongEvalError(
                f"--task {task}: for token {index} its rule sums {', '.join(wrong) or 'no token'}",
                f"A rule must give at least one earlier token, 0 … {index - 1}.",
            )
        summed.append(indices)
    return summed


def extend(starts_NK: npt.NDArray[Number], summed: Sequence[Sequence[int]], *, modulus: int) -> npt.NDArray[Number]:
    """Continues starts by a rule.

    Args:
        starts_NK: The first tokens of each sequence, shape (N, K).
        summed: For each further token, the indices of the summed tokens (see `summed_indices`).
        modulus: m.

    Returns:
        Tokens of shape (N, K + len(summed)), in the dtype of the starts.
    """
    num, width = starts_NK.shape
    tokens_TN = np.empty((width + len(summed), num), dtype=starts_NK.dtype)  # tokens first, so rows are contiguous
    tokens_TN[:width] = starts_NK.T
    for index, indices in enumerate(summed, start=width):
        tokens_TN[index] = tokens_TN[list(indices)].sum(axis=0, dtype=np.int64) % modulus
    return np.ascontiguousarray(tokens_TN.T)


def json_lines(data: PosGenData) -> Iterator[str]:
    """Yields a JSON object for each sequence, split by split, such as `{"split": "train", "tokens": [3, 1, …]}`."""
    for split, tokens_NT in data.splits.items():
        for tokens_T in tokens_NT:
            yield json.dumps({"split": split, "tokens": tokens_T.tolist()})
