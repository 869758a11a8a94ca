"""Token-level negative log-likelihoods: what a perplexity run produces, and all that later numbers need.

Perplexities, intervals, bits per byte and curves by position are derived from a `TokenNll` without the model.
Stored as one `.npz` a cell: float32 values with a few integers per window, never pickle.

Shapes: W windows in the order they ran, S scored tokens (those of window 0, then of window 1, …).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenNll:
    """Scored tokens of one cell."""

    nll_S: npt.NDArray[np.float32]
    """Negative log-likelihood of each scored token in nats, shape (S,)."""
    tokens_W: npt.NDArray[np.int32]
    """Scored tokens of each window, shape (W,); sums to S."""
    context_W: npt.NDArray[np.int32]
    """Position inside its window (prefix included) of each window's first scored token = how much context it had."""
    document_W: npt.NDArray[np.int32]
    """Index into `documents` of the window's document (of its first scored token for a stream)."""
    start_W: npt.NDArray[np.int64]
    """Index in its document (in the stream for `stream`) of the window's first scored token, prefix not counted."""
    bytes_W: npt.NDArray[np.int64]
    """UTF-8 bytes of the window's scored tokens; −1 where the tokenizer can't tell."""
    documents: tuple[str, ...]
    """Names of the documents."""

    def __post_init__(self) -> None:
        assert int(self.tokens_W.sum()) == len(self.nll_S)
        assert len(self.tokens_W) == len(self.context_W) == len(self.document_W) == len(self.start_W)

    @property
    def offsets_W(self) -> npt.NDArray[np.int64]:
        """Index in `nll_S` of each window's first scored token, shape (W,)."""
        ends_W = np.cumsum(self.tokens_W, dtype=np.int64)
        return ends_W - self.tokens_W

    @property
    def window_sums_W(self) -> npt.NDArray[np.float64]:
        """Float64 sum of NLL over each window's scored tokens, shape (W,)."""
        if len(self.tokens_W) == 0:
            return np.zeros(0)
        return np.add.reduceat(self.nll_S.astype(np.float64), self.offsets_W)

    def positions_S(self) -> npt.NDArray[np.int64]:
        """Position inside its window of every scored token, shape (S,): how many tokens it was predicted from."""
        within_S = np.arange(len(self.nll_S), dtype=np.int64) - np.repeat(self.offsets_W, self.tokens_W)
        return within_S + np.repeat(self.context_W.astype(np.int64), self.tokens_W)

    def to_bytes(self) -> bytes:
        """The `.npz` file's content (deterministic: equal tables give equal bytes up to zip time stamps)."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            nll=self.nll_S.astype("<f4"),
            tokens=self.tokens_W.astype("<i4"),
            context=self.context_W.astype("<i4"),
            document=self.document_W.astype("<i4"),
            start=self.start_W.astype("<i8"),
            bytes=self.bytes_W.astype("<i8"),
            documents=np.array(self.documents, dtype=np.str_),
        )
        return buffer.getvalue()


def token_nll_from_bytes(content: bytes) -> TokenNll:
    """Inverse of `TokenNll.to_bytes`; raises ValueError for anything else. Never unpickles."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return TokenNll(
                nll_S=arrays["nll"],
                tokens_W=arrays["tokens"],
                context_W=arrays["context"],
                document_W=arrays["document"],
                start_W=arrays["start"],
                bytes_W=arrays["bytes"],
                documents=tuple(str(name) for name in arrays["documents"]),
            )
    except (KeyError, ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile, AssertionError) as error:
        raise ValueError(f"not a token NLL file: {error}") from error
