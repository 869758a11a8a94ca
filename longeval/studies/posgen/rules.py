"""The rules of PosGen: which earlier tokens are summed, modulo m, to give the next one.

Source: Wang et al. 2024 (arXiv 2403.00071), section 5. A sequence starts with j + k random tokens; each token after
them is the sum of some earlier ones. A rule is one function; `register_rule` adds another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longeval.errors import LongEvalError
from longeval.registry import Registry

Rule = Callable[[int, int, int], Sequence[int]]
"""(index l of the new token, j, k) → indices of the earlier tokens that are summed. Indices count from 0, and l is at
least j + k. An index that is given twice counts twice. A rule raises LongEvalError for values of j or k that it can't
use."""

RULES: Registry[Rule] = Registry("--task")
"""Rules by the name that users type."""


def register_rule(name: str, rule: Rule) -> Rule:
    """Registers a rule as a task, for `DataSetting(task=name)`.

    Args:
        name: What users type.
        rule: The function.

    Raises:
        ValueError: If the name is taken.
    """
    return RULES.register(name, rule)


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


register_rule("recursive", recursive)
register_rule("cot", cot)
register_rule("semi_recursive", semi_recursive)
