"""How reports show an effective length, which opens them: its cell, its data, and how its interval was drawn.

What passes and what does not is in `stats.effective`; which lengths are judged is for each study to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longeval.report.document import TableCell
from longeval.report.tables import DASH
from longeval.stats.effective import Effective
from longeval.values import format_length

TITLE = "Effective length"


def effective_cell(found: Effective | None) -> TableCell:
    """`12k [8k, 16k]`; `≥ 16k` if the longest length tried still passes, `below 4k` if even the shortest one fails."""
    if found is None:
        return DASH
    interval = None
    if found.ends is not None:
        interval = _shown(found, found.ends.low), _shown(found, found.ends.high)
    return TableCell(text=_shown(found, found.length), interval=interval)


def _shown(found: Effective, length: int | None) -> str:
    if length is None:
        return f"below {format_length(found.lengths[0])}"
    return f"{'≥ ' if length == found.lengths[-1] else ''}{format_length(length)}"


def effective_numbers(found: Effective | None) -> dict[str, Any]:
    """Columns of data: lengths in tokens, 0 where even the shortest fails, empty where nothing is known."""
    ends = None if found is None else found.ends
    return {
        "lengths": None if found is None else list(found.lengths),
        "effective_length": None if found is None else found.length or 0,
        "low": None if ends is None else ends.low or 0,
        "high": None if ends is None else ends.high or 0,
        "longest_passes": None if found is None else found.length == found.lengths[-1],
        **{name: getattr(ends, name, None) for name in ("kind", "units", "level", "resamples", "seed")},
    }


def interval_sentence(every: Iterable[Effective]) -> str:
    """How the intervals of a table were computed, in one line with a space behind it; empty without any answer."""
    found = list(every)
    ends = [answer.ends for answer in found if answer.ends is not None]
    if not ends:
        why = "too few documents, blocks or samples to resample, or their values are not stored"
        return f"No intervals: {why}. " if found else ""
    first = ends[0]
    kinds = " or ".join(dict.fromkeys(f"{found.kind}s" for found in ends))
    tail = (1 - first.level) / 2
    return (
        f"Intervals: {first.level:.0%} bootstrap, {first.resamples} resamples of {kinds}, the same at all lengths of "
        f"a method, seed {first.seed}; from the {100 * tail:g}th percentile of the effective length to the last length "
        f"before one that fails in more than {1 - tail:.1%} of them. "
    )
