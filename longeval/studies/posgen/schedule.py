"""The one-cycle schedule: learning rate and AdamW's β1 as a closed form of the step, so that resuming needs no state.

Source: Smith and Topin 2018 (arXiv 1708.07120); numbers as torch's OneCycleLR has them by default with cosine
annealing, which the paper's published code uses: a start at peak/25, an end at that over 10,000, and β1 going from 0.95
to 0.85 and back while the rate goes up and down.
"""

from __future__ import annotations

import math
from typing import NamedTuple

DIVISOR = 25.0
"""Peak over the first rate."""
FINAL_DIVISOR = 1e4
"""First rate over the last."""
LARGEST_BETA1 = 0.95
SMALLEST_BETA1 = 0.85


class Rate(NamedTuple):
    """What one step uses."""

    learning_rate: float
    beta1: float


def one_cycle(step: int, total_steps: int, *, peak: float, warmup: float) -> Rate:
    """Learning rate and β1 of a step.

    Args:
        step: 0 … total_steps−1.
        total_steps: Steps of the whole training.
        peak: The largest learning rate.
        warmup: Fraction of the steps in which the rate rises, 0 … 1; the peak is at step warmup·total_steps − 1.

    Where that is step 0, torch divides by zero and the peak is the first rate here. The only step of a training has the
    last rate, as in torch, or the peak where all steps are warm-up.
    """
    assert 0 <= step < total_steps
    first, last = peak / DIVISOR, peak / DIVISOR / FINAL_DIVISOR
    top = warmup * total_steps - 1
    if step <= top:
        part = step / top if top > 0 else 1.0
        return Rate(_anneal(first, peak, part), _anneal(LARGEST_BETA1, SMALLEST_BETA1, part))
    # A top before the first step (a warm-up shorter than a step) is a point of departure as any other.
    part = (step - top) / (total_steps - 1 - top)
    return Rate(_anneal(peak, last, part), _anneal(SMALLEST_BETA1, LARGEST_BETA1, part))


def _anneal(start: float, end: float, part: float) -> float:
    """From start (part 0) to end (part 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))
