"""Scores of a downstream task from its samples: the mean with its standard error and interval, and paired differences.

- Standard error: samples that ask about the same document are not independent, so it is clustered by document (Miller
  2024, "Adding Error Bars to Evals", arXiv 2411.00640, section 2.2), with the factor G/(G−1) for G clusters (Cameron &
  Miller 2015, eq. 12), which makes it the usual s/√n where every cluster has one sample.
- Interval: Wilson's (1927) for right-or-wrong samples that are independent, else a percentile bootstrap over samples,
  or over whole clusters where samples share documents.
- Two methods are compared on the same samples with the same prompts: McNemar's test in its exact, two-sided form (not
  mid-p) and Bonett & Price's (2012) interval for independent right-or-wrong samples, else a bootstrap of the
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
    """An interval and how it was drawn."""

    low: float | None
    high: float | None
    how: dict[str, Any] | None


NO_SPREAD = Spread(None, None, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The mean of one metric over a cell's samples, and how well it is known."""

    value: float
    """Mean over the samples that have the metric."""
    stderr: float | None
    """Standard error, clustered by document; null for a single sample or document."""
    ci_low: float | None
    """Lower end of the 95% interval; null where there is none."""
    ci_high: float | None
    n: int
    """Samples that have the metric."""
    clusters: int | None
    """Distinct documents among them; null where the task names none."""
    how: dict[str, Any] | None
    """How the interval was drawn, plain JSON for `params.ci`: `method` (`wilson`, `bootstrap`), `kind` (`sample`,
    `document`) and `units` (how many there were), `level`; `resamples` and `seed` of a bootstrap. Null without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedScore:
    """What b scores more than a on the samples that both answered from the same prompt."""

    value_a: float
    """Mean of a over the matched samples."""
    value_b: float
    difference: float
    """Mean of b minus mean of a."""
    stderr: float | None
    """Standard error of the difference, clustered by document."""
    ci_low: float | None
    """Lower end of the difference's 95% interval; null where there is none."""
    ci_high: float | None
    p: float | None
    """McNemar's exact two-sided p; null where samples are not right or wrong, or share documents."""
    a_only: int
    """Samples in which a scored more than b: of right-or-wrong ones, those that only a has right."""
    b_only: int
    """Samples in which b scored more than a."""
    n: int
    """Matched samples."""
    clusters: int | None
    """Distinct documents among them; null where the task names none."""
    unmatched: int
    """Samples that only one of the two has, or that were given other prompts: left out."""
    how: dict[str, Any] | None
    """How the interval was drawn: as in `Score`, `method` being `bonett_price` or `bootstrap`."""

    @property
    def discordant(self) -> int:
        """Samples in which the two score differently: all that a comparison has to go by."""
        return self.a_only + self.b_only

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the difference lies on one side of zero."""
        return self.ci_low is not None and self.ci_high is not None and (self.ci_low > 0 or self.ci_high < 0)


def score(samples: Iterable[Sample], metric: str, *, seed: int = 0, resamples: int = 2000) -> Score:
    """Mean of `metric` over samples, with its standard error and 95% interval.

    Args:
        samples: A cell's samples; those without the metric are left out.
        metric: A key of their `scores`.
        seed: Of the bootstrap's random numbers.
        resamples: Of the bootstrap.

    Returns:
        The score; without an interval where fewer than MIN_UNITS units could be resampled.

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
        # Resampling samples that are all right gives an interval without width; whole documents then count as samples.
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
    """What b scores more than a, on the samples that both have with equal prompts.

    Samples belong together by `index`, and only where `prompt_digest` is equal: after a cut to another window length,
    the same question is another prompt.

    Args:
        samples_a: Of the base.
        samples_b: Of what is compared with it.
        metric: A key of their `scores`.
        seed: Of the bootstrap's random numbers.
        resamples: Of the bootstrap.

    Returns:
        The difference, or None where no sample matches.
    """
    by_index_a = {sample.index: sample for sample in samples_a if metric in sample.scores}
    by_index_b = {sample.index: sample for sample in samples_b if metric in sample.scores}
    indices = [
        index
        for index in sorted(by_index_a.keys() & by_index_b.keys())
        if by_index_a[index].prompt_digest == by_index_b[index].prompt_digest
    ]
    if not indices:
        return None
    a_N, b_N = (_values_N(by_index, indices, metric) for by_index in (by_index_a, by_index_b))
    matched = [by_index_a[index] for index in indices]
    unit_N = _units_N(matched)
    kind, num_units = _kind(unit_N), int(unit_N.max()) + 1
    difference_N = b_N - a_N
    a_only, b_only = int((difference_N < 0).sum()), int((difference_N > 0).sum())
    binary = bool(np.isin(np.concatenate([a_N, b_N]), (0.0, 1.0)).all())
    p = None
    if binary and kind == "sample":
        p = mcnemar(a_only, b_only)
        spread = bonett_price(a_only, b_only, len(indices), kind)
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
        n=len(indices),
        clusters=_clusters(matched),
        unmatched=len(by_index_a.keys() | by_index_b.keys()) - len(indices),
        how=spread.how,
    )


def mcnemar(a_only: int, b_only: int) -> float:
    """McNemar's exact two-sided p: twice the smaller tail of Binomial(a_only + b_only, 1/2), at most 1."""
    from scipy.special import bdtr  # only here: it takes a second to import

    return min(1.0, 2 * float(bdtr(min(a_only, b_only), a_only + b_only, 0.5)))


def wilson(share: float, n: int, kind: ScoreUnit = "sample") -> Spread:
    """Wilson's 95% interval of a proportion `share` among `n` (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4)."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and 1 the formula's own ends, without the last digits of its rounding.
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
    return Spread(low, high, {"method": "wilson", "kind": kind, "units": n, "level": LEVEL})


def bonett_price(a_only: int, b_only: int, n: int, kind: ScoreUnit = "sample") -> Spread:
    """Bonett & Price's 95% interval of a difference of paired proportions (2012, Wald with Laplace's adjustment).

    Its coverage is close to nominal from small samples on (Fagerland, Lydersen & Laake 2014), and it has a width where
    no sample differs.
    """
    more, less = (b_only + 1) / (n + 2), (a_only + 1) / (n + 2)
    half = _Z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    how = {"method": "bonett_price", "kind": kind, "units": n, "level": LEVEL}
    return Spread(max(-1.0, more - less - half), min(1.0, more - less + half), how)


def _bootstrap(value_N: FloatArray, unit_N: IntArray, kind: ScoreUnit, seed: int, resamples: int) -> Spread:
    """Percentile interval from resampled units; none below MIN_UNITS, or where all values are alike (no width)."""
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
        return 0.0  # the mean of equal values may miss them by a rounding
    residual_U = np.bincount(unit_N, weights=value_N - value_N.mean())
    return math.sqrt(num_units / (num_units - 1) * float((residual_U**2).sum())) / len(value_N)


def _units_N(samples: Sequence[Sample]) -> IntArray:
    """Numbers the unit of each sample from 0: its document, or the sample itself where it names none, shape (N,)."""
    numbers: dict[tuple[str, str | int], int] = {}
    return np.array(
        [
            numbers.setdefault(("sample", place) if s.cluster is None else ("document", s.cluster), len(numbers))
            for place, s in enumerate(samples)
        ],
        dtype=np.int64,
    )


def _kind(unit_N: IntArray) -> ScoreUnit:
    """Whether some samples share a document."""
    return "sample" if int(unit_N.max()) + 1 == len(unit_N) else "document"


def _clusters(samples: Sequence[Sample]) -> int | None:
    names = {sample.cluster for sample in samples} - {None}
    return len(names) or None


def _values_N(by_index: Mapping[int, Sample], indices: Sequence[int], metric: str) -> FloatArray:
    return np.array([by_index[index].scores[metric] for index in indices], dtype=np.float64)
