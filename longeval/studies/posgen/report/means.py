"""How means over seeds are written: the number with its variance, its interval, and how many seeds it is of."""

from __future__ import annotations

from collections.abc import Sequence

from longeval.report.document import Prose, TableCell, symbol
from longeval.report.numbers import counted
from longeval.report.tables import DASH
from longeval.stats.seeds import SeedMean


def mean_cell(
    mean: SeedMean | None,
    text: str | None = None,
    *,
    num_seeds: int = 0,
    is_strong: bool = False,
    with_interval: bool = True,
) -> TableCell:
    """`98.30 ± 0.04 [98.05, 98.55] (3 of 5 seeds)`; `98.30` from one seed, a dash for none.

    Args:
        mean: The mean.
        text: How the number reads, where not with its variance.
        num_seeds: Seeds that there are; where the mean is of fewer, the cell says so.
        is_strong: In bold.
        with_interval: Show the interval, if there is one.
    """
    if mean is None:
        return DASH
    shown = f"{mean.mean:.2f}" if mean.variance is None else f"{mean.mean:.2f} ± {mean.variance:.2f}"
    return TableCell(
        text=shown if text is None else text,
        interval=_interval(mean) if with_interval else None,
        note=f"({mean.n} of {counted(num_seeds, 'seed')})" if mean.n < num_seeds else "",
        is_strong=is_strong,
    )


def columns(names: Sequence[str], first: str = "method") -> tuple[Prose, ...]:
    """Column titles: the method, its factor, then `names`."""
    return (first, symbol("s"), *names)


def difference_cell(difference: SeedMean | None, num_seeds: int = 0, *, for_paper: bool = False) -> TableCell:
    """A difference in points with its interval; in bold where the interval excludes 0, not in a paper."""
    if difference is None:
        return DASH
    is_strong = difference.excludes_zero and not for_paper
    return mean_cell(difference, points_text(difference.mean), num_seeds=num_seeds, is_strong=is_strong)


def _interval(mean: SeedMean) -> tuple[str, str] | None:
    """Its ends as they are shown."""
    if mean.low is None or mean.high is None:
        return None
    return f"{mean.low:.2f}".replace("-", "−"), f"{mean.high:.2f}".replace("-", "−")


def interval_text(mean: SeedMean) -> str:
    """`98.05 to 98.55`, in a sentence; nothing from one seed."""
    return " to ".join(_interval(mean) or ())


def points_text(points: float) -> str:
    """A difference in points with its sign: `+0.88`, `−2.65`, `0.00`."""
    text = f"{abs(points):.2f}"
    return text if not text.strip("0.") else f"{'+' if points > 0 else '−'}{text}"
