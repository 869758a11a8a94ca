"""What the parts of a training give to one another: the lengths that it is about, and the batch of a step.

Shapes: B sequences of a step, T tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Lengths(NamedTuple):
    """The lengths of a training, in tokens."""

    window: int
    """c, the tokens of a sequence."""
    target: int
    """s·L, the length that the method is set up for."""
    native: int
    """L, the length that the model was trained for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """The sequences of one optimiser step."""

    tokens_BT: npt.NDArray[np.int64]
    """Token ids, shape (B, T)."""
    positions_BT: npt.NDArray[np.int64]
    """Positions, shape (B, T); under E²-LLM those before the division by g."""
    documents_BT: npt.NDArray[np.int64] | None = None
    """Number of each token's document, shape (B, T), where attention ends at its borders; None where it doesn't. No
    token predicts the first token of another document."""
    factor: float | None = None
    """The factor of this step's table, under E²-LLM; None: the table of the method."""
