"""A backend whose answer is known in closed form, for tests of everything above it.

Token t's negative log-likelihood is a given function of (token id, position in the window), so every perplexity can be
worked out by hand; tables are really built and digested, nothing else is computed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from longeval.backends.base import OutOfMemoryError
from longeval.rope.base import RopeTable, table_digest

NllFunction = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int64], RopeTable], npt.NDArray[np.float64]]


class FakeBackend:
    """See `Backend`.

    Args:
        nll: (token ids (S,), their positions (S,), the served table) → nats (S,).
        max_tokens: Windows longer than this raise OutOfMemoryError.
    """

    name = "fake"
    dtype = "float32"
    device = "fake"

    def __init__(self, nll: NllFunction, max_tokens: int | None = None) -> None:
        self._nll = nll
        self._max_tokens = max_tokens
        self._table: RopeTable | None = None
        self._length = 0
        self.windows: list[tuple[int, int]] = []
        """(window length, first scored) of every call, in order."""

    def serve(self, table: RopeTable, length: int) -> None:
        """See `Backend.serve`."""
        self._table, self._length = table, length

    def rope_digest(self, length: int) -> str:
        """See `Backend.rope_digest`."""
        assert self._table is not None and length <= self._length
        tables = [self._table] if self._table.local is None else [self._table, self._table.local]
        return table_digest(*(table.cos_sin(np.arange(length, dtype=np.int64)) for table in tables))

    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        assert self._table is not None and len(tokens_T) <= self._length, "served table is too short"
        assert 1 <= first_scored <= len(tokens_T)
        if self._max_tokens is not None and len(tokens_T) > self._max_tokens:
            raise OutOfMemoryError(f"{len(tokens_T)} tokens")
        self.windows.append((len(tokens_T), first_scored))
        positions_S = np.arange(first_scored, len(tokens_T), dtype=np.int64)
        return self._nll(tokens_T[first_scored:], positions_S, self._table).astype(np.float32)

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`."""

    def peak_memory_bytes(self) -> int | None:
        """See `Backend.peak_memory_bytes`."""
        return None
