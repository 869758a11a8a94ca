"""Two cells compared on the same tokens or samples: the difference, its interval, and its p-value.

Perplexities are compared as a relative difference over the windows that both scored, scores as a difference over the
samples that both answered. What else was scored is left out, since it says more of the texts than of the methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from longeval.report.changes import paired_as
from longeval.report.numbers import counted, format_change, format_p, format_percent
from longeval.stats.bootstrap import resampling_units, same_windows, shared_windows
from longeval.stats.scores import paired_score, paired_units
from longeval.stats.significance import FLIPS, holm, sign_flip
from longeval.store.nll import TokenNll
from longeval.store.records import Record
from longeval.store.samples import Sample

ALPHA = 0.05
"""A difference is bold where its corrected p is below this."""


def how_tested(num_tested: int, *, is_score: bool) -> str:
    """Sentences for captions: which test p-values come from, how they are corrected, and what is bold.

    Args:
        num_tested: The number of comparisons that the correction is for.
        is_score: Whether scores are compared, not perplexities.
    """
    mcnemar = ", which is McNemar's exact test where samples are right or wrong" if is_score else ""
    return (
        f"p: sign-flip test of the units that intervals resample ({FLIPS:,} random choices of signs, or all if there "
        f"are fewer){mcnemar}. Holm: the same p, corrected for all {counted(num_tested, 'comparison')} made here (Holm "
        f"1979). Bold: the corrected p is below {ALPHA}."
    )


Found = TokenNll | tuple[Sample, ...] | None
"""What a cell left: token NLLs or samples; None where nothing is stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """How cell b differs from cell a."""

    kind: Literal["token", "sample"] | None = None
    """What was compared; None where nothing was."""
    difference: float | None = None
    """Tokens: b's perplexity over a's, minus 1. Samples: b's score minus a's. Over what both have."""
    low: float | None = None
    """Lower end of its 95% interval; None where there are too few units."""
    high: float | None = None
    stderr: float | None = None
    """Standard error of a difference of scores."""
    p: float | None = None
    """Not corrected; None without an interval, or where all token NLLs are equal."""
    p_holm: float | None = None
    """Corrected for all comparisons made together (`corrected`)."""
    shared: int = 0
    """Number of tokens or samples that were compared."""
    only_a: int = 0
    """Number of tokens or samples that only a has (samples: or has with another prompt)."""
    only_b: int = 0
    num_different: int = 0
    """Number of those compared in which the two differ: token NLLs, or scores of samples."""
    largest: float | None = None
    """Largest absolute difference of a token's NLL, in nats."""
    why_not: str = ""
    """Why nothing was compared; empty where something was."""

    @property
    def is_identical(self) -> bool:
        """Whether all compared token NLLs are equal, bit for bit."""
        return self.kind == "token" and not self.num_different

    @property
    def is_clear(self) -> bool:
        """Whether the difference holds after the correction for how many were tested."""
        return self.p_holm is not None and self.p_holm < ALPHA

    def shown(self) -> tuple[str, tuple[str, str] | None]:
        """The difference and its interval as tables show them; of something that was compared."""
        ends = (self.difference, *((None, None) if self.is_identical else (self.low, self.high)))
        texts = [
            None if end is None else format_percent(end) if self.kind == "token" else format_change(end, self.stderr)
            for end in ends
        ]
        text, low, high = texts
        return text or "", None if low is None or high is None else (low, high)

    def p_text(self) -> str:
        """`p 0.012, Holm 0.036`, or `identical`; empty without either."""
        if self.is_identical:
            return "identical"
        if self.p is None or self.p_holm is None:
            return ""
        return f"{_named('p', self.p)}, {_named('Holm', self.p_holm)}"


def _named(name: str, p: float) -> str:
    return f"{name} {format_p(p)}"


def compare(a: Record, b: Record, found_a: Found, found_b: Found) -> Compared:
    """Compares two cells of the same subject and metric by what they left.

    Args:
        a: Record of a's main metric.
        b: The same of b.
        found_a: Token NLLs or samples of a.
        found_b: The same of b.
    """
    if isinstance(found_a, TokenNll) and isinstance(found_b, TokenNll):
        return _tokens(a, b, found_a, found_b)
    if isinstance(found_a, tuple) and isinstance(found_b, tuple):
        return _samples(a, b, found_a, found_b)
    return Compared(why_not="values of single tokens or samples are not stored")


def _tokens(a: Record, b: Record, nll_a: TokenNll, nll_b: TokenNll) -> Compared:
    shared = shared_windows(nll_a, nll_b)
    if shared is None:
        if not same_windows(nll_a, nll_b) or not _same_text(a, b):
            return Compared(why_not="that they scored the same tokens is not known (an earlier version stored them)")
        shared = nll_a, nll_b
    of_a, of_b = shared
    num_shared = len(of_a.nll_S)
    if not num_shared:
        return Compared(why_not="no window has the same tokens in both (other documents, or another tokenizer)")
    units_a, units_b = (resampling_units(nll, a.protocol) for nll in shared)
    difference_S = np.abs(of_a.nll_S.astype(np.float64) - of_b.nll_S)
    interval, p = paired_as(a, of_a, of_b), None
    only_a, only_b = len(nll_a.nll_S) - num_shared, len(nll_b.nll_S) - num_shared
    num_different = int((difference_S > 0).sum())
    if interval is not None and num_different:
        p = sign_flip(units_b.numerator_U - units_a.numerator_U)
    return Compared(
        kind="token",
        difference=math.expm1(min(units_b.mean - units_a.mean, 700.0)) if interval is None else interval.ratio,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        p=p,
        shared=num_shared,
        only_a=only_a,
        only_b=only_b,
        num_different=num_different,
        largest=float(difference_S.max()),
    )


def _same_text(a: Record, b: Record) -> bool:
    """Whether two cells read the same texts by the same tokenizer, as far as records tell."""
    names = ("data_digest", "tokenizer", "bos", "prefix", "parse_special")
    same = all(a.params.get(name) == b.params.get(name) for name in names)
    return same and a.model == b.model and a.params.get("data_digest") is not None


def _samples(a: Record, b: Record, samples_a: tuple[Sample, ...], samples_b: tuple[Sample, ...]) -> Compared:
    if not any(a.metric in sample.scores for sample in samples_a):
        return Compared(why_not="the metric is not a mean over samples")
    found = paired_score(samples_a, samples_b, a.metric, seed=int(a.params.get("seed") or 0))
    if found is None:
        return Compared(why_not="no sample had the same prompt in both")
    p = found.p
    if p is None and found.ci_low is not None:
        p = sign_flip(paired_units(samples_a, samples_b, a.metric))
    having_a, having_b = (sum(a.metric in sample.scores for sample in samples) for samples in (samples_a, samples_b))
    return Compared(
        kind="sample",
        difference=found.difference,
        low=found.ci_low,
        high=found.ci_high,
        stderr=found.stderr,
        p=p if found.ci_low is not None else None,
        shared=found.n,
        only_a=having_a - found.n,
        only_b=having_b - found.n,
        num_different=found.discordant,
    )


def corrected(compared: Sequence[Compared]) -> list[Compared]:
    """The same comparisons, their p-values corrected for how many of them have one (Holm)."""
    tested = [place for place, one in enumerate(compared) if one.p is not None]
    adjusted = dict(zip(tested, holm([compared[place].p or 0.0 for place in tested]), strict=True))
    return [replace(one, p_holm=adjusted.get(place)) for place, one in enumerate(compared)]


def count_tested(compared: Iterable[Compared]) -> int:
    """How many comparisons the correction is for."""
    return sum(one.p is not None for one in compared)
