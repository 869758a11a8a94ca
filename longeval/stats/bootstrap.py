"""Statistics of token-level negative log-likelihoods: means, bootstrap intervals, paired differences, curves.

Perplexity is exp of a mean, so everything here works on means in float64 and takes exp last. Intervals are percentile
bootstraps (Efron & Tibshirani 1993, ch. 13) over units that are close to independent: whole documents if there are
enough, otherwise contiguous blocks of text (block bootstrap, Künsch 1989). For the difference of two methods the same
units are resampled in both cells. The difficulty of the text, which both share, then cancels in the difference.

Each unit has a numerator and a denominator, and the statistic is the ratio of their sums over units: a token-weighted
mean, or the mean of window means.

Shapes: W windows, S scored tokens, U resampling units, R resamples, K position bins.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from longeval.store.nll import LARGEST_EXPONENT, TokenNll

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
UnitKind = Literal["document", "block"]

MIN_DOCUMENTS = 10
"""With fewer documents than this, blocks are resampled instead."""
BLOCK_TOKENS = 512
"""Length of a block. NLLs that are more than a few hundred tokens apart are nearly uncorrelated."""
MIN_BLOCK_TOKENS = 16
"""Length of the shortest block, used if blocks of BLOCK_TOKENS would be fewer than MIN_BLOCKS."""
MIN_BLOCKS = 32
"""Number of blocks aimed at. With fewer than about thirty units a percentile interval is clearly too narrow."""

_INDEX_BUDGET = 1 << 21
"""Most unit indices drawn at once: 16 MiB, and as much again for each array that they index."""

MIN_UNITS = 8
"""Fewest units for an interval. With fewer, a percentile interval covers far less than its nominal level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """How a bootstrap interval was computed."""

    kind: UnitKind
    """What was resampled."""
    units: int
    """Number of units."""
    level: float
    """Nominal coverage, 0.95 for 95%."""
    resamples: int
    """Number of bootstrap resamples."""
    seed: int
    """Seed of the random numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval(Resampling):
    """A percentile bootstrap interval of a perplexity."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference(Resampling):
    """Difference of two perplexities on the same tokens, with intervals from resampling the same units in both."""

    ratio: float
    """exp(mean_b − mean_a) − 1; −0.01 means that b's perplexity is 1% lower than a's."""
    low: float
    """Lower end of the interval of `ratio`."""
    high: float
    """Upper end of the interval of `ratio`."""
    points: float
    """Perplexity of b minus perplexity of a."""
    points_low: float
    """Lower end of the interval of `points`."""
    points_high: float
    """Upper end of the interval of `points`."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of `ratio` lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositionCurve:
    """Mean NLL by position in the window."""

    edges_K1: FloatArray
    """Bin edges in tokens, shape (K+1,); bin k holds positions in [edge k, edge k+1)."""
    mean_nll_K: FloatArray
    """Mean NLL of each bin's tokens in nats, shape (K,); NaN for empty bins."""
    tokens_K: IntArray
    """Number of scored tokens in each bin, shape (K,)."""


def interval(units: Units, *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval | None:
    """Percentile bootstrap interval of the perplexity exp(units.mean); None with fewer than MIN_UNITS units."""
    if len(units) < MIN_UNITS:
        return None
    (mean_R,) = resampled_means(units.denominator_U, (units.numerator_U,), resamples, seed)
    # exp is monotonic, so exp of a percentile is the percentile of exp; in this order nothing interpolates between inf.
    low, high = (_exp(end) for end in percentiles(mean_R, level))
    return Interval(low=low, high=high, kind=units.kind, units=len(units), level=level, resamples=resamples, seed=seed)


def paired(
    nll_a: TokenNll,
    nll_b: TokenNll,
    protocol: str,
    *,
    key_S: npt.NDArray[np.bool_] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference | None:
    """Difference between the perplexities of b and a, with intervals from resampling the same units in both.

    Args:
        nll_a: Token NLLs of a.
        nll_b: Token NLLs of b.
        protocol: Their protocol.
        key_S: Which scored tokens count, the same in both (LongPPL); None: all of them.
        resamples: Number of resamples.
        seed: Seed of the random numbers.
        level: Nominal coverage.

    Returns:
        The difference; None if the two did not score the same windows of the same documents, or if there are fewer
        than MIN_UNITS units.

    Raises:
        ValueError: No token was scored.
    """
    if not same_windows(nll_a, nll_b):
        return None
    units_a, units_b = resampling_units(nll_a, protocol, key_S), resampling_units(nll_b, protocol, key_S)
    if len(units_a) < MIN_UNITS:
        return None
    numerators = (units_a.numerator_U, units_b.numerator_U)
    mean_a_R, mean_b_R = resampled_means(units_a.denominator_U, numerators, resamples, seed)
    low, high = (_exp(end) - 1.0 for end in percentiles(mean_b_R - mean_a_R, level))
    points_low, points_high = percentiles(_finite_exp(mean_b_R) - _finite_exp(mean_a_R), level)
    return PairedDifference(
        ratio=_exp(units_b.mean - units_a.mean) - 1.0,
        low=low,
        high=high,
        points=float(_finite_exp(np.array(units_b.mean)) - _finite_exp(np.array(units_a.mean))),
        points_low=points_low,
        points_high=points_high,
        kind=units_a.kind,
        units=len(units_a),
        level=level,
        resamples=resamples,
        seed=seed,
    )


def same_windows(nll_a: TokenNll, nll_b: TokenNll) -> bool:
    """Whether both scored the same tokens in the same windows of documents with the same names."""
    return (
        nll_a.documents == nll_b.documents
        and np.array_equal(nll_a.tokens_W, nll_b.tokens_W)
        and np.array_equal(nll_a.context_W, nll_b.context_W)
        and np.array_equal(nll_a.document_W, nll_b.document_W)
        and np.array_equal(nll_a.start_W, nll_b.start_W)
    )


def shared_windows(nll_a: TokenNll, nll_b: TokenNll) -> tuple[TokenNll, TokenNll] | None:
    """The windows that both scored, with the same tokens and the same context, as two that `same_windows` accepts.

    Windows are the same where their digests are, whatever the documents are called. So two models can be compared if
    their tokenizers make the same token ids.

    Returns:
        The same windows of both in the order of a, with the documents and places of a, maybe none; None if the digests
        of one of them are not stored.
    """
    if nll_a.windows_W is None or nll_b.windows_W is None:
        return None
    _, in_a_W, in_b_W = np.intersect1d(nll_a.windows_W, nll_b.windows_W, return_indices=True)
    order_W = np.argsort(in_a_W)
    in_a_W, in_b_W = in_a_W[order_W], in_b_W[order_W]
    shared_a = dataclasses.replace(
        nll_a,
        nll_S=_values_of(nll_a, in_a_W),
        **{
            name: getattr(nll_a, name)[in_a_W]
            for name in ("tokens_W", "context_W", "document_W", "start_W", "bytes_W", "windows_W")
        },
    )
    return shared_a, dataclasses.replace(shared_a, nll_S=_values_of(nll_b, in_b_W))


def _values_of(nll: TokenNll, index_W: IntArray) -> npt.NDArray[np.float32]:
    """The values of some windows, one window after the other, shape (S,)."""
    offsets_W = nll.offsets_W
    parts = [nll.nll_S[offsets_W[index] : offsets_W[index] + nll.tokens_W[index]] for index in index_W]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def averaged(nlls: Sequence[TokenNll]) -> TokenNll | None:
    """The mean NLL of each token over several models; None for none, or if they did not score the same tokens.

    Its perplexity is the geometric mean of theirs, and its intervals are of the text: they say nothing of other models.
    """
    if not nlls or not all(same_windows(nlls[0], nll) for nll in nlls[1:]):
        return None
    if len(nlls) == 1:
        return nlls[0]
    mean_S: FloatArray = np.stack([nll.nll_S for nll in nlls]).mean(axis=0, dtype=np.float64)
    return dataclasses.replace(nlls[0], nll_S=mean_S.astype(np.float32))


def position_edges(length: int, *, bins: int = 24, spacing: Literal["log", "linear"] = "log") -> FloatArray:
    """Strictly ascending integer edges of at most `bins` position bins between 1 and `length`, shape (K+1,)."""
    make = np.geomspace if spacing == "log" else np.linspace
    return np.unique(np.round(make(1, max(length, 2), bins + 1))).astype(np.float64)


def by_position(nll: TokenNll, edges_K1: FloatArray) -> PositionCurve:
    """Mean NLL by position in the window, which is the number of tokens (BOS included) before the scored token.

    Positions outside the edges are left out. A token that several windows score counts once for each of them.
    """
    bin_S = np.searchsorted(edges_K1, nll.positions_S(), side="right") - 1
    num_bins = len(edges_K1) - 1
    inside_S = (bin_S >= 0) & (bin_S < num_bins)
    tokens_K = np.bincount(bin_S[inside_S], minlength=num_bins).astype(np.int64)
    sums_K = np.bincount(bin_S[inside_S], weights=nll.nll_S[inside_S].astype(np.float64), minlength=num_bins)
    mean_K = np.full(num_bins, np.nan)
    np.divide(sums_K, tokens_K, out=mean_K, where=tokens_K > 0)
    return PositionCurve(edges_K1=edges_K1, mean_nll_K=mean_K, tokens_K=tokens_K)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Units:
    """The units of a bootstrap. The statistic is sum(numerator) / sum(denominator), a mean NLL in nats."""

    numerator_U: FloatArray
    """Sum of each unit's NLLs (of its window means for `sliding_window_mean`), shape (U,)."""
    denominator_U: FloatArray
    """Number of each unit's scored tokens (of its windows for `sliding_window_mean`), shape (U,)."""
    kind: UnitKind
    """Whether a unit is a document or a block of text."""

    def __len__(self) -> int:
        return len(self.numerator_U)

    @property
    def mean(self) -> float:
        """The statistic over all units, nats."""
        return float(self.numerator_U.sum() / self.denominator_U.sum())


def resampling_units(nll: TokenNll, protocol: str | None, key_S: npt.NDArray[np.bool_] | None = None) -> Units:
    """Divides a cell's scored tokens into the units that the bootstrap resamples.

    The units are *documents* if at least 10 documents have scored tokens. Tokens of one document share topic and
    author, while documents are nearly independent. The interval then holds for other documents of the same kind.

    With fewer documents the units are *blocks* of text, because a few documents can't show how documents vary. The
    interval then holds for more text from these documents only, and is narrower than an interval over documents. Blocks
    are contiguous, so that neighbouring tokens, which are correlated, stay together:

    - prefix, sliding (each token is scored once): runs of about 512 scored tokens, equally long within a document, and
      never across documents. If these were fewer than 32 blocks, they become shorter, down to 16 tokens: too few units
      bias an interval more than the correlation between neighbouring blocks does.
    - sliding_window_mean: runs of consecutive windows of one document with at least as many scored tokens (two windows
      at a stride of 256), because the statistic is a mean over windows.
    - stream: runs of consecutive windows that advance by at least one window's length, because overlapping windows
      score the same tokens. Blocks may cross documents, as the stream does. For the same reason documents are units
      only if they hold that many windows on average.

    With `key_S` (LongPPL) the units are the same texts, and only key tokens count in their sums. Units without a key
    token are left out. They contribute 0 to both sums, so they would change the ratio of no resample, but a resample of
    nothing else would have none.

    Args:
        nll: The scored tokens.
        protocol: Their protocol; with `key_S` one that scores each token once.
        key_S: Which tokens count, shape (S,); None: all of them.

    Returns:
        Units whose `mean` is `nll.mean(protocol)`, or the mean NLL of the key tokens.

    Raises:
        ValueError: No token was scored, or none of them counts.
    """
    if len(nll.nll_S) == 0:
        raise ValueError("no token was scored")
    if key_S is not None:
        return _key_units(nll, key_S)
    whole_windows = protocol in ("sliding_window_mean", "stream")
    per_window = protocol == "sliding_window_mean"
    numerator_W = nll.window_sums_W / nll.tokens_W if per_window else nll.window_sums_W
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


def _key_units(nll: TokenNll, key_S: npt.NDArray[np.bool_]) -> Units:
    """The units of tokens that are scored once, of which only key tokens count."""
    if not key_S.any():
        raise ValueError("there is no key token")
    documents = np.unique(nll.document_W)
    by_document = len(documents) >= MIN_DOCUMENTS
    unit_S = (
        np.repeat(np.searchsorted(documents, nll.document_W), nll.tokens_W) if by_document else _token_blocks_S(nll)
    )
    units = _grouped(
        nll.nll_S.astype(np.float64) * key_S, key_S.astype(np.float64), unit_S, "document" if by_document else "block"
    )
    has_key_U = units.denominator_U > 0
    return dataclasses.replace(
        units, numerator_U=units.numerator_U[has_key_U], denominator_U=units.denominator_U[has_key_U]
    )


def _grouped(numerator: FloatArray, denominator: FloatArray, unit: IntArray, kind: UnitKind) -> Units:
    """Sums the values of tokens or windows by unit; `unit` numbers each one's unit from 0."""
    numerator_U = np.bincount(unit, weights=numerator).astype(np.float64)
    denominator_U = np.bincount(unit, weights=denominator).astype(np.float64)
    return Units(numerator_U=numerator_U, denominator_U=denominator_U, kind=kind)


def block_tokens(num_tokens: int) -> int:
    """Tokens per block of a text of `num_tokens`: 512, or fewer to make 32 blocks, but at least 16."""
    return min(BLOCK_TOKENS, max(MIN_BLOCK_TOKENS, num_tokens // MIN_BLOCKS))


def _token_blocks_S(nll: TokenNll) -> IntArray:
    """Block number of each scored token, shape (S,): equal runs of tokens within each document."""
    document_S = np.repeat(nll.document_W, nll.tokens_W)
    unit_S = np.zeros(len(document_S), dtype=np.int64)
    tokens_of_block, first = block_tokens(len(nll.nll_S)), 0
    for document in np.unique(nll.document_W):
        (index_T,) = np.nonzero(document_S == document)
        num_blocks = max(1, round(len(index_T) / tokens_of_block))
        unit_S[index_T] = first + np.arange(len(index_T)) * num_blocks // len(index_T)
        first += num_blocks
    return unit_S


def _window_blocks_W(nll: TokenNll) -> IntArray:
    """Block number of each window, shape (W,): consecutive windows of a document with a block's tokens or more."""
    unit_W = np.zeros(len(nll.tokens_W), dtype=np.int64)
    least, unit, held = block_tokens(len(nll.nll_S)), 0, 0
    for window, tokens in enumerate(nll.tokens_W):
        other_document = window > 0 and nll.document_W[window] != nll.document_W[window - 1]
        if other_document or held >= least:
            unit, held = unit + 1, 0
        unit_W[window] = unit
        held += int(tokens)
    return unit_W


def _windows_per_length(nll: TokenNll) -> int:
    """Number of stream windows that start within the length of one window, or of one block if that is longer."""
    if len(nll.start_W) < 2:
        return 1
    stride = max(1, int(np.median(np.diff(nll.start_W))))
    # The scored tokens stand for the window's length: only its first token, a BOS if there is one, is not scored.
    return max(-(-int(nll.tokens_W.max()) // stride), -(-block_tokens(len(nll.nll_S)) // stride))


def _stream_blocks_W(nll: TokenNll) -> IntArray:
    """Block number of each stream window, shape (W,): equal runs that advance by at least one window's length."""
    num_windows = len(nll.tokens_W)
    num_blocks = max(1, num_windows // _windows_per_length(nll))
    unit_W: IntArray = np.arange(num_windows, dtype=np.int64) * num_blocks // num_windows
    return unit_W


def resampled_means(
    denominator_U: FloatArray, numerators: tuple[FloatArray, ...], resamples: int, seed: int
) -> tuple[FloatArray, ...]:
    """Means of R bootstrap resamples, drawn in chunks of bounded memory.

    Args:
        denominator_U: Weight of each unit, shape (U,).
        numerators: One or more arrays of sums per unit, each of shape (U,).
        resamples: R.
        seed: Seed of the random numbers.

    Returns:
        For each numerator the means, shape (R,). All numerators use the same draws.
    """
    num_units = len(denominator_U)
    at_once = max(1, _INDEX_BUDGET // num_units)
    means = tuple(np.empty(resamples) for _ in numerators)
    draws = (
        (_drawn_at_once(num_units, resamples, seed),) if resamples <= at_once else _drawn(num_units, resamples, seed)
    )
    last = 0
    for index_RU in draws:
        first, last = last, last + len(index_RU)
        total_R = denominator_U[index_RU].sum(axis=1)
        for mean_R, numerator_U in zip(means, numerators, strict=True):
            mean_R[first:last] = numerator_U[index_RU].sum(axis=1) / total_R
    return means


def _drawn(num_units: int, resamples: int, seed: int) -> Iterator[IntArray]:
    """Indices of the units of each resample in chunks of bounded memory, each of shape (R, U)."""
    random = np.random.default_rng(seed)
    at_once = max(1, _INDEX_BUDGET // num_units)
    for first in range(0, resamples, at_once):
        yield random.integers(num_units, size=(min(at_once, resamples - first), num_units))


@functools.lru_cache(maxsize=2)
def _drawn_at_once(num_units: int, resamples: int, seed: int) -> IntArray:
    """The same as one array. Cells of one report mostly have as many units, and drawing takes longer than summing."""
    (index_RU,) = _drawn(num_units, resamples, seed)
    index_RU.flags.writeable = False
    return index_RU


def _exp(mean: float) -> float:
    """Exp that returns infinity instead of raising OverflowError."""
    return math.exp(mean) if mean < LARGEST_EXPONENT else math.inf


def _finite_exp(mean_R: FloatArray) -> FloatArray:
    """Exp that stays finite, so that differences of its values are never NaN, shape (R,)."""
    values_R: FloatArray = np.exp(np.minimum(mean_R, LARGEST_EXPONENT))
    return values_R


def percentiles(values_R: FloatArray, level: float) -> tuple[float, float]:
    """Ends of the interval that holds the central share `level` of the values."""
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
