"""How numbers are written in every table of a report, so that Markdown, LaTeX and the terminal agree.

Perplexities have four significant digits; whole numbers up to 99,999, powers of ten beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from longeval.store.records import Record

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


def counted(count: int, noun: str) -> str:
    """`1 sample`, `20 samples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_outcome(record: Record | None) -> str:
    """What stands in a cell: the value, `failed`, `skipped`, or a dash where no run folder holds it."""
    if record is None:
        return MISSING
    if record.status != "ok":
        return record.status
    return "∞" if record.value is None else format_perplexity(record.value)


def format_score(value: float, stderr: float | None = None) -> str:
    """A score without its error: two decimals, three where the error is below 0.005, one from 10 on (percentages)."""
    return f"{value:.{_score_decimals(value, stderr)}f}"


ScoreError = Literal["interval", "stderr", "none"]
"""What stands behind a score: its 95% interval, one standard error, or nothing."""


def score_error(records: Iterable[Record]) -> ScoreError:
    """What stands behind the scores of one table: intervals where any has one, so that a table has one notation."""
    every = list(records)
    if any(record.ci_low is not None for record in every):
        return "interval"
    return "stderr" if any(record.params.get("stderr") is not None for record in every) else "none"


def format_score_outcome(record: Record | None, error: ScoreError = "none") -> str:
    """What stands in a cell of a task: `0.45 [0.26, 0.66]`, `0.45 ± 0.05`, `failed`, `skipped`, or a dash."""
    if record is None or record.status != "ok" or record.value is None:
        return MISSING if record is None else record.status
    stderr = record.params.get("stderr")
    text = format_score(record.value, stderr)
    if error == "interval":
        return f"{text} {format_score_interval(record)}".rstrip()
    if error == "stderr" and stderr is not None:
        return f"{text} ± {format_score(stderr, stderr) if record.value < 10 else f'{stderr:.1f}'}"
    return text


def format_score_interval(record: Record) -> str:
    """`[0.26, 0.66]`, or nothing where a score has no interval."""
    if record.ci_low is None or record.ci_high is None:
        return ""
    stderr = record.params.get("stderr")
    return f"[{format_score(record.ci_low, stderr)}, {format_score(record.ci_high, stderr)}]"


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


def format_interval(record: Record | None) -> str:
    """`[10.42, 12.01]`, or nothing where a cell has no interval."""
    if record is None or record.ci_low is None or record.ci_high is None:
        return ""
    return f"[{format_perplexity(record.ci_low)}, {format_perplexity(record.ci_high)}]"
