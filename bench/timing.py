"""Things timed in turn (first, second, first, second, …), so that a noisy neighbour hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from longeval.backends.base import OutOfMemoryError


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one of them took."""

    seconds: tuple[float, ...]
    """Wall time of each repeat; empty if it never ended."""
    error: str | None = None
    """Why it did not end: out of memory."""

    @property
    def median_s(self) -> float | None:
        """Median wall time; None if it never ended."""
        return statistics.median(self.seconds) if self.seconds else None


class Timed(NamedTuple):
    """Both sides of an alternation."""

    first: Side
    second: Side

    @property
    def ratio(self) -> float | None:
        """Median of the first over median of the second; None unless both ended."""
        if self.first.median_s is None or self.second.median_s is None:
            return None
        return self.first.median_s / self.second.median_s


def alternate(first: Callable[[], object], second: Callable[[], object], *, repeats: int, warm_up: bool) -> Timed:
    """Times `first` and `second` in turn, `repeats` times each.

    Args:
        first: Returns when its work is done (on a GPU too: it must wait for the device).
        second: As `first`.
        repeats: At least 1.
        warm_up: Run each once more in front, untimed.

    Returns:
        Wall times; a side that runs out of memory has its error instead and isn't tried again.
    """
    return Timed(*in_turn(first, second, repeats=repeats, warm_up=warm_up))


def in_turn(*calls: Callable[[], object], repeats: int, warm_up: bool) -> list[Side]:
    """As `alternate`, for any number of calls."""
    seconds: list[list[float]] = [[] for _ in calls]
    errors: list[str | None] = [None for _ in calls]
    for repeat in range(-1 if warm_up else 0, repeats):
        for side, call in enumerate(calls):
            if errors[side] is not None:
                continue
            started = time.perf_counter()
            try:
                call()
            except OutOfMemoryError as error:
                errors[side] = f"out of memory: {error}"
                seconds[side].clear()
                continue
            if repeat >= 0:
                seconds[side].append(time.perf_counter() - started)
    return [Side(seconds=tuple(took), error=error) for took, error in zip(seconds, errors, strict=True)]
