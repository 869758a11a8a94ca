"""Scores of a downstream task from its samples: the mean with its standard error and interval, and paired differences.

- Standard error: samples about the same document are not independent, so the error is clustered by document (Miller
  2024, "Adding Error Bars to Evals", arXiv 2411.00640, section 2.2). The factor G/(G−1) for G clusters (Cameron &
  Miller 2015, eq. 12) makes it equal to s/√n if every cluster has one sample.
- Interval: Wilson's (1927) for independent samples that are right or wrong; otherwise a percentile bootstrap over
  samples, or over clusters if samples share documents.
- Two methods are compared on the same samples with the same prompts. Independent samples that are right or wrong get
  McNemar's test (exact, two-sided, not mid-p) and Bonett & Price's (2012) interval; others get a bootstrap of the
  differences over the same units.

Shapes: N samples, U resampling units (samples or clusters), R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from longeval.stats.bootstrap import MIN_UNITS, FloatArray, IntArray, percentiles, resampled_means
from longeval.store.samples import Sample

ScoreUnit = Literal["sample", "document"]

LEVEL = 0.95
"""Nominal coverage of every interval here."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


class Spread(NamedTuple):
    """The ends of an interval and how it was computed; all None if there is no interval."""

    low: float | None
    high: float | None
    how: dict[str, Any] | None


NO_SPREAD = Spread(None, None, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The mean of one metric over a cell's samples, with its uncertainty."""

    value: float
    """Mean over the samples that have the metric."""
    stderr: float | None
    """Standard error, clustered by document; None for a single sample or document."""
    ci_low: float | None
    """Lower end of the 95% interval; None without an interval."""
    ci_high: float | None
    n: int
    """Number of samples that have the metric."""
    clusters: int | None
    """Number of distinct documents among them; None if the task does not name documents."""
    how: dict[str, Any] | None
    """How the interval was computed, as plain JSON for `params.ci`; None without an interval. Keys: `method` (`wilson`
    or `bootstrap`), `kind` (`sample` or `document`), `units` (their number), `level`, and for a bootstrap `resamples`
    and `seed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedScore:
    """Difference between the scores of b and a on the samples that both answered from the same prompt."""

    value_a: float
    """Mean of a over the matched samples."""
    value_b: float
    difference: float
    """Mean of b minus mean of a."""
    stderr: float | None
    """Standard error of the difference, clustered by document."""
    ci_low: float | None
    """Lower end of the difference's 95% interval; None without an interval."""
    ci_high: float | None
    p: float | None
    """McNemar's exact two-sided p; None if scores are not just right or wrong, or if samples share documents."""
    a_only: int
    """Number of samples in which a scored more than b. For right or wrong: those that only a has right."""
    b_only: int
    """Number of samples in which b scored more than a."""
    n: int
    """Number of matched samples."""
    clusters: int | None
    """Number of distinct documents among them; None if the task does not name documents."""
    unmatched: int
    """Number of samples left out because only one of the two has them, or because their prompts differ."""
    how: dict[str, Any] | None
    """How the interval was computed: as in `Score`, with the methods `bonett_price` and `bootstrap`."""

    @property
    def discordant(self) -> int:
        """Number of samples in which the scores of a and b differ. Only these inform the comparison."""
        return self.a_only + self.b_only

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the difference lies on one side of zero."""
        return self.ci_low is not None and self.ci_high is not None and (self.ci_low > 0 or self.ci_high < 0)


def score(samples: Iterable[Sample], metric: str, *, seed: int = 0, resamples: int = 2000) -> Score:
    """Mean of `metric`, a key of `Sample.scores`, over the samples that have it, with standard error and 95% interval.

    There is no interval if the bootstrap would have fewer than MIN_UNITS units.

    Raises:
        ValueError: No sample has the metric.
    """
    having = [sample for sample in samples if metric in sample.scores]
    if not having:
        raise ValueError(f"no sample has the metric {metric}")
    value_N = np.array([sample.scores[metric] for sample in having], dtype=np.float64)
    unit_N = _units_N(having)
    binary = bool(np.isin(value_N, (0.0, 1.0)).all())
    kind, num_units = _kind(unit_N), int(unit_N.max()) + 1
    if binary and (kind == "sample" or value_N.min() == value_N.max()):
        # A bootstrap of equal values has an interval of zero width, so Wilson's is used, with documents as samples.
        spread = wilson(float(value_N.mean()), num_units, kind)
    else:
        spread = _bootstrap(value_N, unit_N, kind, seed, resamples)
    return Score(
        value=float(value_N.mean()),
        stderr=_stderr(value_N, unit_N),
        ci_low=spread.low,
        ci_high=spread.high,
        n=len(having),
        clusters=_clusters(having),
        how=spread.how,
    )


def paired_score(
    samples_a: Iterable[Sample], samples_b: Iterable[Sample], metric: str, *, seed: int = 0, resamples: int = 2000
) -> PairedScore | None:
    """Mean score of b minus that of a on the samples that both have with equal prompts; None if no samples match.

    Samples match if `index` and `prompt_digest` are equal. The same question cut to another window length is another
    prompt, and does not match.
    """
    matched, a_N, b_N, unmatched = _matched(samples_a, samples_b, metric)
    if not matched:
        return None
    unit_N = _units_N(matched)
    kind, num_units = _kind(unit_N), int(unit_N.max()) + 1
    difference_N = b_N - a_N
    a_only, b_only = int((difference_N < 0).sum()), int((difference_N > 0).sum())
    binary = bool(np.isin(np.concatenate([a_N, b_N]), (0.0, 1.0)).all())
    p = None
    if binary and kind == "sample":
        p = mcnemar(a_only, b_only)
        spread = bonett_price(a_only, b_only, len(matched), kind)
    elif binary and a_only == b_only == 0:
        spread = bonett_price(0, 0, num_units, kind)
    else:
        spread = _bootstrap(difference_N, unit_N, kind, seed, resamples)
    return PairedScore(
        value_a=float(a_N.mean()),
        value_b=float(b_N.mean()),
        difference=float(difference_N.mean()),
        stderr=_stderr(difference_N, unit_N),
        ci_low=spread.low,
        ci_high=spread.high,
        p=p,
        a_only=a_only,
        b_only=b_only,
        n=len(matched),
        clusters=_clusters(matched),
        unmatched=unmatched,
        how=spread.how,
    )


class _Matched(NamedTuple):
    """The samples that two methods answered from the same prompt."""

    samples: list[Sample]
    """Those of a."""
    a_N: FloatArray
    """Their scores, shape (N,)."""
    b_N: FloatArray
    unmatched: int
    """As in `PairedScore`."""


def _matched(samples_a: Iterable[Sample], samples_b: Iterable[Sample], metric: str) -> _Matched:
    by_index_a = {sample.index: sample for sample in samples_a if metric in sample.scores}
    by_index_b = {sample.index: sample for sample in samples_b if metric in sample.scores}
    indices = [
        index
        for index in sorted(by_index_a.keys() & by_index_b.keys())
        if by_index_a[index].prompt_digest == by_index_b[index].prompt_digest
    ]
    a_N, b_N = (_values_N(by_index, indices, metric) for by_index in (by_index_a, by_index_b))
    unmatched = len(by_index_a.keys() | by_index_b.keys()) - len(indices)
    return _Matched([by_index_a[index] for index in indices], a_N, b_N, unmatched)


def paired_units(samples_a: Iterable[Sample], samples_b: Iterable[Sample], metric: str) -> FloatArray:
    """Sums of b's scores minus a's over the matched samples of each independent unit (sample or document), shape (U,).

    Samples match as in `paired_score`.
    """
    found = _matched(samples_a, samples_b, metric)
    difference_U: FloatArray = np.bincount(_units_N(found.samples), weights=found.b_N - found.a_N).astype(np.float64)
    return difference_U


def mcnemar(a_only: int, b_only: int) -> float:
    """McNemar's exact two-sided p: twice the smaller tail of Binomial(a_only + b_only, 1/2), at most 1."""
    from scipy.special import bdtr  # imported here because it takes a second

    return min(1.0, 2 * float(bdtr(min(a_only, b_only), a_only + b_only, 0.5)))


def wilson(share: float, n: int, kind: ScoreUnit = "sample") -> Spread:
    """Wilson's 95% interval of a proportion `share` among `n` (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4)."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At shares of 0 and 1 the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
    return Spread(low, high, {"method": "wilson", "kind": kind, "units": n, "level": LEVEL})


def bonett_price(a_only: int, b_only: int, n: int, kind: ScoreUnit = "sample") -> Spread:
    """Bonett & Price's 95% interval of a difference of paired proportions (2012, Wald with Laplace's adjustment).

    Its coverage is close to nominal even for small samples (Fagerland, Lydersen & Laake 2014), and its width is not
    zero if no sample differs.
    """
    more, less = (b_only + 1) / (n + 2), (a_only + 1) / (n + 2)
    half = _Z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    how = {"method": "bonett_price", "kind": kind, "units": n, "level": LEVEL}
    return Spread(max(-1.0, more - less - half), min(1.0, more - less + half), how)


def _bootstrap(value_N: FloatArray, unit_N: IntArray, kind: ScoreUnit, seed: int, resamples: int) -> Spread:
    """Percentile bootstrap interval over units; NO_SPREAD for fewer than MIN_UNITS units or equal values."""
    num_units = int(unit_N.max()) + 1
    if num_units < MIN_UNITS or value_N.min() == value_N.max():
        return NO_SPREAD
    samples_U = np.bincount(unit_N).astype(np.float64)
    sum_U = np.bincount(unit_N, weights=value_N).astype(np.float64)
    (mean_R,) = resampled_means(samples_U, (sum_U,), resamples, seed)
    low, high = percentiles(mean_R, LEVEL)
    how = {"method": "bootstrap", "kind": kind, "units": num_units, "level": LEVEL, "resamples": resamples}
    return Spread(low, high, {**how, "seed": seed})


def _stderr(value_N: FloatArray, unit_N: IntArray) -> float | None:
    """Clustered standard error of the mean: √(G/(G−1) · Σ_g (Σ_{i in g} (x_i − x̄))²) / n."""
    num_units = int(unit_N.max()) + 1
    if num_units < 2:
        return None
    if value_N.min() == value_N.max():
        return 0.0  # the formula would give a rounding error
    residual_U = np.bincount(unit_N, weights=value_N - value_N.mean())
    return math.sqrt(num_units / (num_units - 1) * float((residual_U**2).sum())) / len(value_N)


def _units_N(samples: Sequence[Sample]) -> IntArray:
    """Unit number of each sample from 0, shape (N,). A unit is a document, or a sample that names no document."""
    numbers: dict[tuple[str, str | int], int] = {}
    return np.array(
        [
            numbers.setdefault(("sample", place) if s.cluster is None else ("document", s.cluster), len(numbers))
            for place, s in enumerate(samples)
        ],
        dtype=np.int64,
    )


def _kind(unit_N: IntArray) -> ScoreUnit:
    """`document` if some samples share a unit, otherwise `sample`."""
    return "sample" if int(unit_N.max()) + 1 == len(unit_N) else "document"


def _clusters(samples: Sequence[Sample]) -> int | None:
    names = {sample.cluster for sample in samples} - {None}
    return len(names) or None


def _values_N(by_index: Mapping[int, Sample], indices: Sequence[int], metric: str) -> FloatArray:
    return np.array([by_index[index].scores[metric] for index in indices], dtype=np.float64)
