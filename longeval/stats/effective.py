"""Effective length: the longest length up to which a model keeps its quality, with a bootstrap interval.

A rule says of each length that was tried whether the model passes there. The effective length is the longest one at
which it passes *and* at which it passes at every shorter one: the first failure ends it. The longest length that passes
would reward luck, since each further length is one more chance to pass by noise, and a model that fails at 8k can't be
said to work at 16k. Nothing is interpolated between lengths, so the answer is always one of those that were tried.

Rules:

- perplexity: not above the one at the reference, the native length. Lengths are judged from there upward, as
  perplexity falls with context before it.
- share of the base score: at least 85% of the best score at short lengths (NoLiMa, Modarressi et al. 2025, arXiv
  2502.05167, whose short lengths are 250, 500 and 1k).
- bar: a score of at least 85.6%, that of Llama-2-7B at 4k (RULER, Hsieh et al. 2024, arXiv 2404.06654).

The interval comes from bootstrap resamples. Each draws the same units at all lengths, so that the difficulty of a text
or question, which lengths share, cancels. The low end is a percentile of the effective lengths of the resamples. The
high end is the last length before the first one that fails in (nearly) all resamples, each length taken alone. A
percentile of the effective lengths would be too low there: where a curve stays near its threshold for several lengths,
a resample has several chances to fail. In simulated studies of curves that lie on their threshold at three lengths,
95% intervals with such an end covered the truth in 81% to 88% of studies, these in 89% to 94%.

Shapes: N lengths, U resampling units, R resamples, S scored tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longeval.stats.bootstrap import MIN_UNITS, FloatArray, IntArray, block_tokens, resampling_units
from longeval.store.nll import TokenNll
from longeval.store.samples import Sample

BoolArray = npt.NDArray[np.bool_]
Rule = Callable[[FloatArray], BoolArray]
"""Values by length, shape (…, N), to whether each length passes, same shape."""

BASE_SHARE = 0.85
"""Share of the base score that NoLiMa asks for."""
SHORT_TOKENS = 1024
"""The longest length from which NoLiMa takes base scores."""
RULER_BAR = 0.856
"""Score of Llama-2-7B at 4k, RULER's bar."""

_SLACK = 1e-9
"""Equal values pass, whatever their last digits: 0.85 · 1.0 against 17 of 20."""
_BUDGET = 1 << 21
"""Most weights of units drawn at once: 16 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """The interval of an effective length, and how it was computed."""

    low: int | None
    """Lower end, tokens; None: below the shortest length, as in `Effective.length`."""
    high: int | None
    """Upper end."""
    kind: str
    """What was resampled: `document`, `block` or `sample`."""
    units: int
    """Number of units."""
    level: float
    """Nominal coverage, 0.95 for 95%."""
    resamples: int
    """Number of bootstrap resamples."""
    seed: int
    """Seed of the random numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effective:
    """An effective length."""

    lengths: tuple[int, ...]
    """The lengths that were judged, ascending, tokens."""
    length: int | None
    """The effective length; None: even the shortest fails. If it is the longest one tried, it is a lower bound."""
    ends: Ends | None
    """Its interval; None where there are too few units."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Joint:
    """One quality at several lengths, divided into the same units at each. Values are ratios of sums over units."""

    numerator_NU: FloatArray
    """Sums of NLLs or scores, shape (N, U)."""
    denominator_NU: FloatArray
    """Numbers of tokens, windows or samples, shape (N, U); 0 where a length has nothing of a unit."""
    stratum_U: IntArray
    """Units are redrawn among those of the same stratum, shape (U,)."""
    kind: str
    """What a unit is: `document`, `block` or `sample`."""

    @property
    def value_N(self) -> FloatArray:
        """The values of all units together, shape (N,)."""
        values_N: FloatArray = self.numerator_NU.sum(axis=1) / self.denominator_NU.sum(axis=1)
        return values_N

    @property
    def can_resample(self) -> bool:
        """Whether there are enough units for an interval in every stratum."""
        return int(np.bincount(self.stratum_U).min()) >= MIN_UNITS

    def resampled(self, resamples: int, seed: int) -> FloatArray:
        """Values of bootstrap resamples, shape (R, N); NaN where a resample has nothing of a length."""
        at_once = max(1, _BUDGET // len(self.stratum_U))
        draws: Iterable[FloatArray] = (
            (_drawn_at_once(self.stratum_U.tobytes(), resamples, seed),)
            if resamples <= at_once
            else _drawn(self.stratum_U, resamples, seed)
        )
        with np.errstate(invalid="ignore"):
            return np.concatenate(
                [(weight_RU @ self.numerator_NU.T) / (weight_RU @ self.denominator_NU.T) for weight_RU in draws]
            )


def _drawn(stratum_U: IntArray, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each resample draws each unit, in chunks of bounded memory, each of shape (R, U)."""
    random = np.random.default_rng(seed)
    places = [np.flatnonzero(stratum_U == stratum) for stratum in np.unique(stratum_U)]
    at_once = max(1, _BUDGET // len(stratum_U))
    for first in range(0, resamples, at_once):
        # A multinomial in each stratum is drawing with replacement.
        weight_RU = np.zeros((min(at_once, resamples - first), len(stratum_U)))
        for place_U in places:
            shares_U = np.full(len(place_U), 1 / len(place_U))
            weight_RU[:, place_U] = random.multinomial(len(place_U), shares_U, size=len(weight_RU))
        yield weight_RU


@functools.lru_cache(maxsize=2)
def _drawn_at_once(strata: bytes, resamples: int, seed: int) -> FloatArray:
    """The same as one array, by the bytes of `stratum_U`. Rows of one table mostly have the same units."""
    (weight_RU,) = _drawn(np.frombuffer(strata, dtype=np.int64), resamples, seed)
    weight_RU.flags.writeable = False
    return weight_RU


def effective_length(
    lengths: Sequence[int],
    rule: Rule,
    parts: Sequence[Joint],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Effective:
    """The effective length with its interval.

    Args:
        lengths: The lengths, ascending, shape (N,).
        rule: Which values pass.
        parts: The quality; of several parts the plain mean counts (the tasks of an average), and each is resampled.
        resamples: R.
        seed: Seed of the random numbers.
        level: Nominal coverage.
    """
    found = from_values(lengths, rule, np.mean([part.value_N for part in parts], axis=0))
    if not all(part.can_resample for part in parts):
        return found
    drawn = [part.resampled(resamples, seed + number) for number, part in enumerate(parts)]
    passes_RN = rule(np.mean(drawn, axis=0))
    tail = (1 - level) / 2
    # A percentile that is a value itself: there is nothing between two lengths.
    low = int(np.quantile(_num_passed(passes_RN), tail, method="inverted_cdf"))
    high = int(_num_passed((passes_RN.mean(axis=0) >= tail)[None, :])[0])
    ends = Ends(
        low=_length(lengths, low),
        high=_length(lengths, high),
        kind=parts[0].kind,
        units=sum(len(part.stratum_U) for part in parts),
        level=level,
        resamples=resamples,
        seed=seed,
    )
    return dataclasses.replace(found, ends=ends)


def from_values(lengths: Sequence[int], rule: Rule, value_N: Sequence[float] | FloatArray) -> Effective:
    """The effective length without an interval, from the value at each length."""
    passed = int(_num_passed(rule(np.asarray(value_N, dtype=np.float64)[None, :]))[0])
    return Effective(lengths=tuple(lengths), length=_length(lengths, passed), ends=None)


def _num_passed(passes_RN: BoolArray) -> IntArray:
    """How many lengths, from the first on, pass without a failure between them, shape (R,)."""
    passed_R: IntArray = np.logical_and.accumulate(passes_RN, axis=1).sum(axis=1)
    return passed_R


def _length(lengths: Sequence[int], passed: int) -> int | None:
    return lengths[passed - 1] if passed else None


# Rules.


def not_above_first(value_N: FloatArray) -> BoolArray:
    """Values that are not above the first one, which passes by definition."""
    passes_N: BoolArray = value_N <= value_N[..., :1] + _SLACK
    passes_N[..., 0] = True
    return passes_N


def keeps_base(num_base: int) -> Rule:
    """Scores of at least 85% of the best among the first `num_base` ones; none if that is 0, as all would pass."""

    def passes(value_N: FloatArray) -> BoolArray:
        base = value_N[..., :num_base].max(axis=-1, keepdims=True)
        found: BoolArray = (value_N >= BASE_SHARE * base - _SLACK) & (base > 0)
        return found

    return passes


def reaches_bar(value_N: FloatArray) -> BoolArray:
    """Scores of at least RULER's bar."""
    passes_N: BoolArray = value_N >= RULER_BAR - _SLACK
    return passes_N


def num_base(lengths: Sequence[int]) -> int:
    """How many first lengths give the base score: those up to 1k, as in NoLiMa, or else the shortest alone."""
    return max(1, sum(length <= SHORT_TOKENS for length in lengths))


# Units that all lengths share.


def joint_scores(samples_N: Sequence[Sequence[Sample]], metric: str) -> Joint | None:
    """Scores of a task at several lengths on the samples that all of them have; None for none.

    A unit is a document, or a sample that names none. A sample has the same index at every length.
    """
    by_length = [{sample.index: sample for sample in found if metric in sample.scores} for found in samples_N]
    shared = sorted(set.intersection(*(set(found) for found in by_length))) if by_length else []
    if not shared:
        return None
    first = by_length[0]
    names = [("sample", i) if first[i].cluster is None else ("document", first[i].cluster) for i in shared]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    unit = np.array([numbers[name] for name in names], dtype=np.int64)
    scores = [np.array([found[index].scores[metric] for index in shared], dtype=np.float64) for found in by_length]
    count_U = np.bincount(unit).astype(np.float64)
    return Joint(
        numerator_NU=np.stack([np.bincount(unit, weights=values) for values in scores]),
        denominator_NU=np.stack([count_U] * len(scores)),
        stratum_U=np.zeros(len(numbers), dtype=np.int64),
        kind="sample" if len(numbers) == len(shared) else "document",
    )


def joint_nll(nlls: Sequence[TokenNll], protocol: str | None) -> Joint | None:
    """Mean NLL at several lengths on the documents that all of them have; None for none.

    Units are documents or, where `resampling_units` takes blocks, blocks of text: a token belongs to the block in which
    it stands in its document, whatever the length of its window. Where a longer length scores text that a shorter one
    doesn't reach (`prefix`), that text is a stratum of its own, so that each resample has as much of it as the study.

    Under `sliding_window_mean` and `stream`, whose units are windows, a window belongs to the block in which its first
    scored token stands. Blocks of a stream are as long as the longest window, because windows overlap.
    """
    found = nlls if protocol == "stream" else _of_shared_documents(nlls)
    if not found or any(nll.documents != found[0].documents or not len(nll.nll_S) for nll in found):
        return None
    units = [resampling_units(nll, protocol) for nll in found]
    if all(unit.kind == "document" for unit in units) and len({len(unit) for unit in units}) == 1:
        return Joint(
            numerator_NU=np.stack([unit.numerator_U for unit in units]),
            denominator_NU=np.stack([unit.denominator_U for unit in units]),
            stratum_U=np.zeros(len(units[0]), dtype=np.int64),
            kind="document",
        )
    if protocol in ("sliding_window_mean", "stream"):
        return _window_blocks(found, protocol)
    return _token_blocks(found)


def num_documents(nlls: Sequence[TokenNll]) -> tuple[int, int]:
    """Documents that all lengths have, and documents that any has."""
    names = [{nll.documents[d] for d in np.unique(nll.document_W)} for nll in nlls]
    return len(set.intersection(*names)), len(set.union(*names))


def _of_shared_documents(nlls: Sequence[TokenNll]) -> list[TokenNll]:
    """The windows of documents that every length has, with documents numbered alike; empty for none."""
    names = [{nll.documents[d] for d in np.unique(nll.document_W)} for nll in nlls]
    shared = tuple(sorted(set.intersection(*names))) if names else ()
    number = {name: place for place, name in enumerate(shared)}
    return [_only(nll, number) for nll in nlls] if shared else []


def _only(nll: TokenNll, number: Mapping[str, int]) -> TokenNll:
    number_D = np.array([number.get(name, -1) for name in nll.documents], dtype=np.int32)
    document_W = number_D[nll.document_W]
    keep_W = document_W >= 0
    return TokenNll(
        nll_S=nll.nll_S[np.repeat(keep_W, nll.tokens_W)],
        tokens_W=nll.tokens_W[keep_W],
        context_W=nll.context_W[keep_W],
        document_W=document_W[keep_W],
        start_W=nll.start_W[keep_W],
        bytes_W=nll.bytes_W[keep_W],
        documents=tuple(number),
    )


def _token_blocks(nlls: Sequence[TokenNll]) -> Joint:
    """Blocks of scored tokens, by document and by which lengths reach them."""
    document_NS = [np.repeat(nll.document_W, nll.tokens_W) for nll in nlls]
    place_NS = [_places_S(nll) for nll in nlls]
    num_docs = len(nlls[0].documents)
    start_D, ends_DN = np.zeros(num_docs, dtype=np.int64), np.zeros((num_docs, len(nlls)), dtype=np.int64)
    for d in range(num_docs):
        inside = [place_S[document_S == d] for place_S, document_S in zip(place_NS, document_NS, strict=True)]
        start_D[d] = min(int(place_S.min()) for place_S in inside)
        # A length whose text ends before that of a shorter one has no text of its own.
        ends_DN[d] = np.maximum.accumulate([int(place_S.max()) + 1 for place_S in inside])
    edges_DN1 = np.column_stack([start_D, ends_DN])
    tokens_N = np.diff(edges_DN1, axis=1).sum(axis=0)
    blocks_DN = np.zeros(ends_DN.shape, dtype=np.int64)
    for n in np.flatnonzero(tokens_N):
        sizes_D = edges_DN1[:, n + 1] - edges_DN1[:, n]
        blocks_DN[:, n] = np.where(sizes_D > 0, np.maximum(1, np.round(sizes_D / block_tokens(int(tokens_N[n])))), 0)
    first_DN = (np.cumsum(blocks_DN) - blocks_DN.ravel()).reshape(blocks_DN.shape)
    unit_NS = []
    for document_S, place_S in zip(document_NS, place_NS, strict=True):
        stratum_S = (ends_DN[document_S] <= place_S[:, None]).sum(axis=1)
        low_S, high_S = edges_DN1[document_S, stratum_S], edges_DN1[document_S, stratum_S + 1]
        within_S = (place_S - low_S) * blocks_DN[document_S, stratum_S] // (high_S - low_S)
        unit_NS.append(first_DN[document_S, stratum_S] + within_S)
    stratum_U = np.repeat(np.tile(np.arange(len(nlls)), num_docs), blocks_DN.ravel())
    return _summed(
        [nll.nll_S.astype(np.float64) for nll in nlls],
        [np.ones(len(nll.nll_S)) for nll in nlls],
        unit_NS,
        np.unique(stratum_U, return_inverse=True)[1],
    )


def _window_blocks(nlls: Sequence[TokenNll], protocol: str) -> Joint:
    """Blocks of windows, by document and by where their first scored token stands."""
    size = block_tokens(max(len(nll.nll_S) for nll in nlls))
    is_stream = protocol == "stream"
    size = max(size, *(int(nll.tokens_W.max()) for nll in nlls)) if is_stream else size
    keys = [
        np.stack([np.zeros_like(nll.document_W) if is_stream else nll.document_W, nll.start_W // size], axis=1)
        for nll in nlls
    ]
    _, unit = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    unit_NW = np.split(unit.ravel(), np.cumsum([len(key) for key in keys])[:-1])
    sums = [nll.window_sums_W if is_stream else nll.window_sums_W / nll.tokens_W for nll in nlls]
    counts = [nll.tokens_W.astype(np.float64) if is_stream else np.ones(len(nll.tokens_W)) for nll in nlls]
    return _summed(sums, counts, unit_NW, np.zeros(int(unit.max()) + 1, dtype=np.int64))


def _summed(
    numerators: Sequence[FloatArray], denominators: Sequence[FloatArray], units: Sequence[IntArray], stratum_U: IntArray
) -> Joint:
    """Sums by unit at each length."""
    num_units = len(stratum_U)

    def sums(weights: Sequence[FloatArray]) -> FloatArray:
        pairs = zip(units, weights, strict=True)
        return np.stack([np.bincount(unit, weights=weight, minlength=num_units) for unit, weight in pairs])

    return Joint(numerator_NU=sums(numerators), denominator_NU=sums(denominators), stratum_U=stratum_U, kind="block")


def _places_S(nll: TokenNll) -> IntArray:
    """Where each scored token stands in its document, shape (S,)."""
    within_S = np.arange(len(nll.nll_S), dtype=np.int64) - np.repeat(nll.offsets_W, nll.tokens_W)
    places_S: IntArray = within_S + np.repeat(nll.start_W, nll.tokens_W)
    return places_S
