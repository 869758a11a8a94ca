"""What the bootstrap resamples: a cell's scored tokens cut into units that can pass for independent.

Whole documents where there are enough of them, else contiguous blocks of text (block bootstrap, Künsch 1989). A unit
carries a numerator and a denominator, so that resampling units resamples a ratio of sums: a token-weighted mean, or
the mean of window means.

Shapes: W windows, S scored tokens, U resampling units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from longeval.store.nll import TokenNll

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
UnitKind = Literal["document", "block"]

MIN_DOCUMENTS = 10
"""Fewer documents than this, and resampling them tells little: blocks instead."""
BLOCK_TOKENS = 512
"""Length of a block: beyond a few hundred tokens, neighbouring NLLs of running text are close to uncorrelated."""
MIN_BLOCK_TOKENS = 16
"""Shortest block, where BLOCK_TOKENS would leave fewer than MIN_BLOCKS of them."""
MIN_BLOCKS = 32
"""Below about thirty units a percentile interval is visibly too narrow, so short texts get shorter blocks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Units:
    """What the bootstrap resamples: the statistic is sum(numerator) / sum(denominator), a mean NLL in nats."""

    numerator_U: FloatArray
    """Sum of each unit's NLLs (of its window means for `sliding_window_mean`), shape (U,)."""
    denominator_U: FloatArray
    """Scored tokens of each unit (windows for `sliding_window_mean`), shape (U,)."""
    kind: UnitKind
    """Whether a unit is a document or a block of text."""

    def __len__(self) -> int:
        return len(self.numerator_U)

    @property
    def mean(self) -> float:
        """The statistic itself, nats."""
        return float(self.numerator_U.sum() / self.denominator_U.sum())


def resampling_units(nll: TokenNll, protocol: str | None) -> Units:
    """Cuts a cell into the units that the bootstrap resamples.

    *Documents* where at least 10 have scored tokens: tokens of one document share topic and author, documents are as
    good as independent, and the interval then speaks of other documents of the same kind.

    *Blocks* where there are fewer: a handful of documents can't show how documents vary, so the interval speaks of
    more text from these documents only (and is narrower than one over documents would be). Blocks are contiguous, so
    that the correlation of neighbouring tokens stays inside, and never cross a document:

    - prefix, sliding (every token once): runs of about 512 scored tokens, of equal length within a document; shorter,
      down to 16, where there would be fewer than 32 blocks, since too few units bias an interval more than the little
      correlation that crosses a block's edge.
    - sliding_window_mean: runs of whole consecutive windows holding as many scored tokens (with a stride of 256, two
      windows), since the statistic is made of windows.
    - stream: runs of whole consecutive windows that advance by at least one window's length, because overlapping
      windows score the same tokens; documents only if they hold that many windows on average, for the same reason.
      Blocks may cross documents here: the stream has no boundaries.

    Returns:
        Units whose `mean` is `nll.mean(protocol)`.

    Raises:
        ValueError: No token was scored.
    """
    if len(nll.nll_S) == 0:
        raise ValueError("no token was scored")
    whole_windows = protocol in ("sliding_window_mean", "stream")
    per_window = protocol == "sliding_window_mean"
    numerator_W = _window_means_W(nll) if per_window else nll.window_sums_W
    denominator_W = np.ones(len(numerator_W)) if per_window else nll.tokens_W.astype(np.float64)

    documents = np.unique(nll.document_W)
    enough = len(documents) >= MIN_DOCUMENTS
    if enough and (protocol != "stream" or len(nll.document_W) >= len(documents) * _windows_per_length(nll)):
        unit_W = np.searchsorted(documents, nll.document_W)
        return _grouped(numerator_W, denominator_W, unit_W, "document")
    if whole_windows:
        unit_W = _stream_blocks_W(nll) if protocol == "stream" else _window_blocks_W(nll)
        return _grouped(numerator_W, denominator_W, unit_W, "block")
    return _grouped(nll.nll_S.astype(np.float64), np.ones(len(nll.nll_S)), _token_blocks_S(nll), "block")


def _window_means_W(nll: TokenNll) -> FloatArray:
    means_W: FloatArray = nll.window_sums_W / nll.tokens_W
    return means_W


def _grouped(numerator: FloatArray, denominator: FloatArray, unit: IntArray, kind: UnitKind) -> Units:
    """Sums tokens or windows into the units they belong to (consecutive numbers from 0)."""
    numerator_U = np.bincount(unit, weights=numerator).astype(np.float64)
    denominator_U = np.bincount(unit, weights=denominator).astype(np.float64)
    return Units(numerator_U=numerator_U, denominator_U=denominator_U, kind=kind)


def _block_tokens(nll: TokenNll) -> int:
    """Block length for this much text: 512 tokens, or what gives 32 blocks, but at least 64."""
    return min(BLOCK_TOKENS, max(MIN_BLOCK_TOKENS, len(nll.nll_S) // MIN_BLOCKS))


def _token_blocks_S(nll: TokenNll) -> IntArray:
    """Numbers the equal runs of tokens that each document is cut into, shape (S,)."""
    document_S = np.repeat(nll.document_W, nll.tokens_W)
    unit_S = np.zeros(len(document_S), dtype=np.int64)
    block_tokens, first = _block_tokens(nll), 0
    for document in np.unique(nll.document_W):
        (index_T,) = np.nonzero(document_S == document)
        num_blocks = max(1, round(len(index_T) / block_tokens))
        unit_S[index_T] = first + np.arange(len(index_T)) * num_blocks // len(index_T)
        first += num_blocks
    return unit_S


def _window_blocks_W(nll: TokenNll) -> IntArray:
    """Numbers runs of consecutive windows of one document that hold at least a block's tokens, shape (W,)."""
    unit_W = np.zeros(len(nll.tokens_W), dtype=np.int64)
    block_tokens, unit, held = _block_tokens(nll), 0, 0
    for window, tokens in enumerate(nll.tokens_W):
        other_document = window > 0 and nll.document_W[window] != nll.document_W[window - 1]
        if other_document or held >= block_tokens:
            unit, held = unit + 1, 0
        unit_W[window] = unit
        held += int(tokens)
    return unit_W


def _windows_per_length(nll: TokenNll) -> int:
    """How many stream windows start within one window's length (and within a block's): stride n gives 1."""
    if len(nll.start_W) < 2:
        return 1
    stride = max(1, int(np.median(np.diff(nll.start_W))))
    # A window's first token is not scored, so its length is one more; with a BOS in front, all of it is text.
    return max(-(-int(nll.tokens_W.max()) // stride), -(-_block_tokens(nll) // stride))


def _stream_blocks_W(nll: TokenNll) -> IntArray:
    """Numbers runs of as many windows as advance by one window's length, equal in size, shape (W,)."""
    num_windows = len(nll.tokens_W)
    num_blocks = max(1, num_windows // _windows_per_length(nll))
    unit_W: IntArray = np.arange(num_windows, dtype=np.int64) * num_blocks // num_windows
    return unit_W
