"""The order in which prompts share as long beginnings as can be, and the lengths that are worth coming back to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_RETURNS = 2
"""Lengths of one prompt that are worth a copy, at most."""
MIN_GAIN = 64
"""Tokens that a copy must save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOrder:
    """Prompts sorted by their tokens: each shares as much as it can with the one before."""

    indices: tuple[int, ...]
    """Which prompt comes when."""
    shared: tuple[int, ...]
    """By place: tokens in common with the next prompt, which has at least one more; 0 for the last."""
    lower: tuple[int, ...]
    """By place: the next place whose `shared` is smaller."""

    def returns(self, place: int) -> tuple[int, ...]:
        """Lengths of the prompt at `place`, ascending, that later prompts go back to and that are worth a copy."""
        lengths: list[int] = []
        while place < len(self.shared) and self.shared[place] >= MIN_GAIN:
            lengths.append(self.shared[place])
            place = self.lower[place]
        gains: dict[int, int] = {}
        below = 0
        for length in reversed(lengths):
            if length - below >= MIN_GAIN:
                gains[length] = length - below
                below = length
        return tuple(sorted(sorted(gains, key=gains.__getitem__)[-MAX_RETURNS:]))


def order_prompts(prompts: Sequence[npt.NDArray[np.int32]]) -> PromptOrder:
    """Sorts prompts by their token ids."""
    # Big-endian bytes sort as the ids do, and much faster than lists of them.
    keys = [prompt_T.astype(">u4").tobytes() for prompt_T in prompts]
    indices = sorted(range(len(prompts)), key=keys.__getitem__)
    shared = [
        min(common_prefix(prompts[one], prompts[other]), len(prompts[other]) - 1)
        for one, other in itertools.pairwise(indices)
    ]
    shared += [0] * bool(indices)
    lower = [len(shared)] * len(shared)
    open_places: list[int] = []
    for place, length in enumerate(shared):
        while open_places and shared[open_places[-1]] > length:
            lower[open_places.pop()] = place
        open_places.append(place)
    return PromptOrder(indices=tuple(indices), shared=tuple(shared), lower=tuple(lower))


def common_prefix(one_T: npt.NDArray[np.int32], other_T: npt.NDArray[np.int32]) -> int:
    """Number of tokens that two prompts begin with alike."""
    length = min(len(one_T), len(other_T))
    differs_T = one_T[:length] != other_T[:length]
    return int(differs_T.argmax()) if differs_T.any() else length
