"""How numbers are written in every table of a report, so that Markdown, LaTeX and the terminal agree.

Perplexities have four significant digits; whole numbers up to 99,999, powers of ten beyond.
"""

from __future__ import annotations

import math

from longeval.records import Record

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


def format_percent(ratio: float) -> str:
    """A relative difference in percent with its sign: `−0.07%`, `+12.3%`, `0%` for exactly none."""
    percent = 100 * ratio
    if not math.isfinite(percent):
        return "∞"
    if percent == 0:
        return "0%"
    size = abs(percent)
    if size >= 1000:
        text = format_perplexity(size)
    elif size >= 10:
        text = f"{size:.1f}"
    else:
        text = f"{size:.2f}" if size >= 0.01 else f"{size:.1g}"
    return f"{'+' if percent > 0 else '−'}{text}%"


def format_factor(value: float) -> str:
    """`2`, `1.5`: a factor without needless zeros."""
    return f"{value:.6g}"


def format_outcome(record: Record | None) -> str:
    """What stands in a cell: the value, `failed`, `skipped`, or a dash where no run folder holds it."""
    if record is None:
        return MISSING
    if record.status != "ok":
        return record.status
    return "∞" if record.value is None else format_perplexity(record.value)


def format_interval(record: Record | None) -> str:
    """`[10.42, 12.01]`, or nothing where a cell has no interval."""
    if record is None or record.ci_low is None or record.ci_high is None:
        return ""
    return f"[{format_perplexity(record.ci_low)}, {format_perplexity(record.ci_high)}]"
