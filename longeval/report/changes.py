"""A change of perplexity between two cells that scored the same tokens: its interval, and how tables show it."""

from __future__ import annotations

from typing import NamedTuple

from longeval.report.document import TableCell
from longeval.report.numbers import format_percent
from longeval.stats.bootstrap import PairedDifference, paired
from longeval.store.nll import TokenNll
from longeval.store.records import Record


class Resampled(NamedTuple):
    """How intervals are drawn: the keyword arguments of `stats.bootstrap.interval` and `paired`."""

    resamples: int
    seed: int
    level: float


def resampled_as(record: Record) -> Resampled:
    """How the interval of a record was drawn; the defaults where it has none."""
    how = record.params.get("ci") or {}
    return Resampled(int(how.get("resamples") or 2000), int(how.get("seed") or 0), float(how.get("level") or 0.95))


def paired_as(record: Record, nll_a: TokenNll | None, nll_b: TokenNll | None) -> PairedDifference | None:
    """The difference of b from a, resampled as the interval of `record` was; None without NLLs of the same tokens."""
    if nll_a is None or nll_b is None:
        return None
    resamples, seed, level = resampled_as(record)
    return paired(nll_a, nll_b, record.protocol or "", resamples=resamples, seed=seed, level=level)


def change_cell(
    ratio: float, difference: PairedDifference | None, *, note: str = "", is_clear: bool | None = None
) -> TableCell:
    """A relative change with its interval.

    Args:
        ratio: The change, −0.01 for a perplexity that is 1% lower.
        difference: With its interval; None where there is none.
        note: What stands behind it.
        is_clear: Whether it is bold; None: where the interval excludes 0.
    """
    interval = None if difference is None else (format_percent(difference.low), format_percent(difference.high))
    excludes_zero = difference is not None and difference.excludes_zero
    return TableCell(
        text=format_percent(ratio),
        interval=interval,
        note=note,
        is_strong=excludes_zero if is_clear is None else is_clear,
    )
