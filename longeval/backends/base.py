"""What a backend is: it holds a model, serves a RoPE table to it, and scores tokens.

T tokens, S scored tokens.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from longeval.rope.base import RopeTable


class OutOfMemoryError(Exception):
    """The device had no memory for a pass; a shorter one may still work."""


class Backend(Protocol):
    """A loaded model. One table is served at a time; nothing else is remembered between calls."""

    name: str
    """`hf`, `vllm`, …: the `backend` of a record."""
    dtype: str
    """The precision that the model computes in: `float32`, `bfloat16`, `float16`."""
    device: str
    """Device name for provenance."""

    def serve(self, table: RopeTable, length: int) -> None:
        """Makes the model use `table` at positions 0 … length−1 from now on."""
        ...

    def rope_digest(self, length: int) -> str:
        """SHA-256 of the table that the model holds for positions 0 … length−1 (see `rope.base.table_digest`)."""
        ...

    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """Negative log-likelihoods (nats) of tokens `first_scored` … T−1, each given all tokens before it; shape (S,).

        Args:
            tokens_T: Token ids of one window, BOS included where there is one.
            first_scored: Index of the first scored token, at least 1.

        Raises:
            OutOfMemoryError: The window is too long for the device.
        """
        ...

    def reset_peak_memory(self) -> None:
        """Starts a new measurement for `peak_memory_bytes`."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Peak since the last reset: of the process on a CPU, of the allocator on a GPU; None if unknown."""
        ...
