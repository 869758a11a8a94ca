"""How PosGen's means and settings are written, so that Markdown and LaTeX agree."""

from __future__ import annotations

from longeval.report.numbers import MISSING, counted
from longeval.report.posgen_cells import seeds_text
from longeval.report.posgen_tables import PosGenTable
from longeval.stats.seeds import SeedMean

REGIMES = {
    "trained": "the method is on while training and in evaluation, as the paper's text has it",
    "swapped": "the base is off while training (YaRN trains as plain RoPE) and switched on for evaluation, Resonance's "
    "rounding is on in both, as in the paper's published code",
}
"""What each regime means."""


def mean_text(mean: SeedMean | None) -> str:
    """`98.30 ± 0.04`, `98.30` from one seed, a dash for none."""
    if mean is None:
        return MISSING
    return f"{mean.mean:.2f}" if mean.variance is None else f"{mean.mean:.2f} ± {mean.variance:.2f}"


def interval_text(mean: SeedMean) -> str:
    """`[98.05, 98.55]`, or nothing from one seed."""
    if mean.low is None or mean.high is None:
        return ""
    return f"[{mean.low:.2f}, {mean.high:.2f}]".replace("-", "−")


def points_text(points: float) -> str:
    """A difference in points with its sign: `+0.88`, `−2.65`, `0.00`."""
    text = f"{abs(points):.2f}"
    return text if not text.strip("0.") else f"{'+' if points > 0 else '−'}{text}"


def seeds_phrase(table: PosGenTable) -> str:
    """`5 seeds (0–4)`."""
    return f"{counted(len(table.seeds), 'seed')} ({seeds_text(table.seeds)})"
