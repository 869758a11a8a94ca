"""Brings a prompt to its length: never over the window, and no more than 1% of the window under it.

Counting the tokens of a long prompt takes long, and how many a text has isn't the sum over its parts: the count of the
whole prompt is what holds. So the amount of filler is estimated from the density of what was counted before, counted,
corrected; samples of a task differ little, so that the next one starts where the last one ended.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longeval.errors import LongEvalError
from longeval.studies.tasks.setting import Setting

_MOST_COUNTS = 40
_PROBE_CHARS = 1500
"""Long enough to know about how many tokens a character has, short enough to cost nothing."""

LEVELS = 10
_ORDER = (0, 9, 4, 7, 2, 5, 8, 1, 6, 3)


def depth_of(index: int) -> float:
    """Depth of sample `index`: one of ten levels, 0 (start) to 1 (end), so ordered that any first few span them all."""
    return _ORDER[index % LEVELS] / (LEVELS - 1)


def seeded(*parts: object) -> random.Random:
    """Random numbers that depend on `parts` alone: the same on every machine and in every process."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311 (samples, not secrets)


class TooShortError(LongEvalError):
    """The window is too short for a task's prompt without any filler."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a prompt may take of the window."""

    task: str
    """Its name, for messages."""
    length: int
    """The window in tokens."""
    max_new_tokens: int
    """Tokens of the window that belong to the answer."""

    @property
    def top(self) -> int:
        """Most tokens of a prompt."""
        return self.length - self.max_new_tokens

    @property
    def slack(self) -> int:
        """How many tokens a prompt may stay below `top`: 1% of the window."""
        return self.length // 100

    def too_short(self, prompt_tokens: int) -> TooShortError:
        """The error where a prompt without any filler has `prompt_tokens`, more than the window takes."""
        needed = prompt_tokens + self.max_new_tokens
        shorter = f", --max-new-tokens {self.length - prompt_tokens}" if prompt_tokens < self.length else ""
        return TooShortError(
            f"--lengths {self.length}: too short for {self.task}, whose question, instruction and answer alone need "
            f"{needed} tokens ({self.max_new_tokens} of them for its answer)",
            f"Use --lengths {needed} or more{shorter}, or leave the task out.",
        )


class Fitted(NamedTuple):
    """A prompt with as much filler as it takes."""

    step: int
    """How much filler: index into the ladder."""
    text: str
    """The user's message."""
    tokens: int
    """Tokens of the whole prompt."""


class Search:
    """Finds how much filler a prompt takes; remembers from prompt to prompt how much the last one took.

    Args:
        measure: Counts the tokens of a prompt (see `Setting.measure`).
        budget: The window.
        top: Most tokens, if not the budget's.
        bottom: Fewest tokens, if not the budget's.
    """

    def __init__(
        self, measure: Callable[[str], int], budget: Budget, *, top: int | None = None, bottom: int | None = None
    ) -> None:
        self._measure = measure
        self._budget = budget
        self._top = budget.top if top is None else top
        self._bottom = self._top - budget.slack if bottom is None else bottom
        self._tokens_per_char: float | None = None
        self._last_step = 0

    def fit(self, build: Callable[[int], str], ladder: Sequence[int]) -> Fitted:
        """Returns a prompt of `bottom` … `top` tokens; if no step of the ladder gives one, the longest below `top`.

        Args:
            build: Step of the ladder → the user's message with that much filler.
            ladder: Characters of filler at each step, rising from 0.

        Raises:
            TooShortError: If the prompt is too long without any filler.
            LongEvalError: If it is too short with all of it.
        """
        if self._tokens_per_char is None:
            self._last_step = self.start(build, ladder)
        step, below, above = self._last_step, None, None
        for count in range(_MOST_COUNTS):
            tried = self._count(build, step)
            if tried.tokens > self._top:
                above = tried
            else:
                below = tried
                if tried.tokens >= self._bottom:
                    break
            if above is not None and above.step == 0:
                raise self._budget.too_short(above.tokens)
            if below is not None and below.step == len(ladder) - 1:
                raise LongEvalError(
                    f"{self._budget.task}: the tokenizer makes only {below.tokens} tokens of {ladder[-1]} characters "
                    f"of filler, too few for --lengths {self._budget.length}",
                    "Take another --haystack, or a shorter length.",
                )
            if below is not None and above is not None and above.step - below.step <= 1:
                break
            step = self._next(ladder, below, above, halve=count > _MOST_COUNTS // 4)
        assert below is not None, "the bracket closes within log2 of the ladder"
        self._last_step = below.step
        return below

    def start(self, build: Callable[[int], str], ladder: Sequence[int]) -> int:
        """Learns from two short prompts how many tokens a character has; returns the step that should fit by that.

        Raises:
            TooShortError: If the prompt is too long without any filler.
        """
        bare = self._count(build, 0)
        if bare.tokens > self._top:
            raise self._budget.too_short(bare.tokens)
        step = max(1, min(bisect.bisect_left(ladder, _PROBE_CHARS), len(ladder) - 1))
        tokens = max(self._count(build, step).tokens - bare.tokens, 1)
        self._tokens_per_char = tokens / ladder[step]
        return _at_or_below(ladder, (self._aim - bare.tokens) / self._tokens_per_char)

    def _count(self, build: Callable[[int], str], step: int) -> Fitted:
        text = build(step)
        return Fitted(step, text, self._measure(text))

    @property
    def _aim(self) -> float:
        return (self._top + self._bottom) / 2

    def _next(self, ladder: Sequence[int], below: Fitted | None, above: Fitted | None, *, halve: bool) -> int:
        """The step to try after those that gave too few and too many tokens; strictly between them."""
        assert self._tokens_per_char is not None
        if below is not None and above is not None:
            if halve:
                return (below.step + above.step) // 2
            low, high = ladder[below.step], ladder[above.step]
            chars = low + (high - low) * (self._aim - below.tokens) / (above.tokens - below.tokens)
        else:
            tried = below or above
            assert tried is not None
            chars = ladder[tried.step] + (self._aim - tried.tokens) / self._tokens_per_char
        step = _at_or_below(ladder, chars)
        least = 0 if below is None else below.step + 1
        most = len(ladder) - 1 if above is None else above.step - 1
        return min(max(step, least), most)


def _at_or_below(ladder: Sequence[int], chars: float) -> int:
    """The last step with at most `chars` characters; 0 if there is none."""
    return max(bisect.bisect_right(ladder, chars) - 1, 0)


def budget_of(task: str, setting: Setting, max_new_tokens: int) -> Budget:
    """The budget of a task in a setting."""
    return Budget(task=task, length=setting.length, max_new_tokens=max_new_tokens)
