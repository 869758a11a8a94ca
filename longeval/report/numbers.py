"""How numbers are written in every table of a report, so that Markdown, LaTeX and the terminal agree.

Perplexities have four significant digits; whole numbers up to 99,999, powers of ten beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

from longeval.metrics import metric_of
from longeval.store.records import Record

_LEAST_PERCENT = 1e-5
"""Smaller differences, in percent, are rounding of float32 sums."""

MISSING = "–"
"""A cell that no run folder holds."""


def format_perplexity(value: float) -> str:
    """`11.18`, `8.616`, `271.2`, `1057`, `1.057e5`; `∞` beyond what float64 holds."""
    if not math.isfinite(value):
        return "∞"
    if value < 999.95:
        return f"{value:#.4g}"
    if value < 99_999.5:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_value(value: float, record: Record) -> str:
    """A value in the way of its metric: four significant digits, hundredths, or a score's decimals."""
    metric = metric_of(record)
    number = "score" if metric is None else metric.number
    if number == "percent":
        return f"{100 * value:.2f}"
    return format_perplexity(value) if number == "significant" else format_score(value, record.params.get("stderr"))


def format_percent(ratio: float) -> str:
    """A relative difference in percent with its sign: `−0.07%`, `+12.3%`, `0%` for exactly none, `≈0%` for rounding."""
    percent = 100 * ratio
    if not math.isfinite(percent):
        return "∞"
    if percent == 0:
        return "0%"
    size = abs(percent)
    if size < _LEAST_PERCENT:
        return "≈0%"
    if size >= 1000:
        text = format_perplexity(size)
    elif size >= 10:
        text = f"{size:.1f}"
    else:
        text = f"{size:.2f}" if size >= 0.01 else f"{Decimal(f'{size:.1g}'):f}"
    return f"{'+' if percent > 0 else '−'}{text}%"


def format_factor(value: float) -> str:
    """`2`, `1.5`: a factor without needless zeros."""
    return f"{value:.6g}"


def counted(count: int, noun: str) -> str:
    """`1 sample`, `20 samples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def count_range(counts: Iterable[int | None]) -> str:
    """`20` where all known counts agree, `18–20` where they don't, a dash where none is known."""
    known = [count for count in counts if count is not None]
    if not known:
        return MISSING
    return f"{min(known):,}" if min(known) == max(known) else f"{min(known):,}–{max(known):,}"


def numbers_text(numbers: Iterable[int]) -> str:
    """Whole numbers, ascending: `0–4` where there are three or more without a gap, else `1, 3`."""
    ordered = sorted(set(numbers))
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))


def format_score(value: float, stderr: float | None = None) -> str:
    """A score without its error: two decimals, three where the error is below 0.005, one from 10 on (percentages)."""
    return f"{value:.{_score_decimals(value, stderr)}f}"


def format_change(value: float, stderr: float | None = None) -> str:
    """A difference of scores with its sign: `+0.05`, `−0.10`, `0.00`."""
    text = format_score(abs(value), stderr)
    sign = "" if not text.strip("0.") else "+" if value > 0 else "−"
    return sign + text


def format_p(p: float) -> str:
    """`0.034`, `0.63`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _score_decimals(value: float, stderr: float | None) -> int:
    if abs(value) >= 10:
        return 1
    return 3 if stderr and stderr < 0.005 else 2
