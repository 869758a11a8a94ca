"""The tokens of a job's documents, window by window; token arrays are opened when they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from longeval.data.selection import Selection
from longeval.run.window import Window
from longeval.store.nll import TokenNll


class Texts:
    """Documents of a selection, apart or joined into one stream.

    Args:
        selection: The documents.
        joined: Whether windows count in the joined stream (protocol `stream`).
        prefix: Token ids in front of every window.
    """

    def __init__(self, selection: Selection, *, joined: bool, prefix: Sequence[int]) -> None:
        self._selection = selection
        self._joined = joined
        self._prefix_T = np.array(prefix, dtype=np.int32)
        self._ends = np.cumsum(selection.lengths)
        self._open: tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int64] | None] | None = None

    def window(self, window: Window) -> npt.NDArray[np.int32]:
        """Token ids of a window, prefix included, shape (T,); raises OSError if a document's tokens went away."""
        tokens_T, _ = self._text(window.document)
        part_T = tokens_T[window.start : window.stop]
        assert len(part_T) == window.stop - window.start
        assert window.prefix == len(self._prefix_T)
        return np.concatenate([self._prefix_T, part_T])

    def num_scored_documents(self, windows: Sequence[Window]) -> int:
        """Documents of which at least one token is scored."""
        if not self._joined:
            return len({window.document for window in windows})
        scored = np.zeros(len(self._ends), dtype=bool)
        for window in windows:
            first = int(np.searchsorted(self._ends, window.score_start, side="right"))
            last = int(np.searchsorted(self._ends, window.stop - 1, side="right"))
            scored[first : last + 1] = True
        return int(scored.sum())

    def token_nll(self, windows: Sequence[Window], nlls: Sequence[npt.NDArray[np.float32]]) -> TokenNll:
        """Joins what was measured window by window."""
        return TokenNll(
            nll_S=np.concatenate(nlls),
            tokens_W=np.array([window.num_scored for window in windows], dtype=np.int32),
            context_W=np.array([window.context for window in windows], dtype=np.int32),
            document_W=np.array([window.document for window in windows], dtype=np.int32),
            start_W=np.array([window.score_start for window in windows], dtype=np.int64),
            bytes_W=np.array([self._num_bytes(window) for window in windows], dtype=np.int64),
            documents=tuple(document.name for document in self._selection.documents),
        )

    def _num_bytes(self, window: Window) -> int:
        """UTF-8 bytes of a window's scored tokens, −1 if the tokenizer can't tell."""
        _, byte_ends_T = self._text(window.document)
        if byte_ends_T is None:
            return -1
        before = int(byte_ends_T[window.score_start - 1]) if window.score_start else 0
        return int(byte_ends_T[window.stop - 1]) - before

    def _text(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64] | None]:
        """Tokens and byte ends of a document, or of the stream; the last one stays open."""
        index = 0 if self._joined else index
        if self._open is None or self._open[0] != index:
            tokens_T, byte_ends_T = self._join() if self._joined else self._selection.documents[index].load()
            self._open = (index, tokens_T, byte_ends_T)
        return self._open[1], self._open[2]

    def _join(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64] | None]:
        """All documents one after the other, without separators."""
        tokens, byte_ends, total = [], [], 0
        for document in self._selection.documents:
            tokens_T, byte_ends_T = document.load()
            tokens.append(tokens_T)
            if byte_ends_T is None:
                total = -1
            if total >= 0 and byte_ends_T is not None and len(byte_ends_T):
                byte_ends.append(byte_ends_T + total)
                total += int(byte_ends_T[-1])
        return np.concatenate(tokens), np.concatenate(byte_ends) if total >= 0 else None
