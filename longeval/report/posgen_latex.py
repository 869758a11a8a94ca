r"""PosGen's tables for a paper: accuracies by task, the published numbers below, and differences of pairs."""

from __future__ import annotations

from collections.abc import Sequence

from longeval.report.formats.latex import escape_latex, table_source
from longeval.report.numbers import MISSING
from longeval.report.posgen_published import Comparison
from longeval.report.posgen_tables import GENERATED, IN_DISTRIBUTION, OOD, PosGenPair, PosGenRow, PosGenTable
from longeval.report.posgen_text import REGIMES, mean_text, points_text, seeds_phrase
from longeval.report.rows import factor_text
from longeval.stats.seeds import SeedMean

_CAPTIONS = {
    OOD: "PosGen, accuracy in \\% at positions that training never saw (OOD), with the true tokens before each",
    IN_DISTRIBUTION: "PosGen, accuracy in \\% at positions seen in training",
    GENERATED: "PosGen, accuracy in \\% of free-running generation at positions that training never saw",
}
"""Of the tables, in their order."""

_LABELS = {OOD: "ood", IN_DISTRIBUTION: "seen", GENERATED: "generated"}


def posgen_latex(table: PosGenTable, beside: Comparison | None, name: str) -> list[str]:
    """LaTeX source: a table per metric that has values, and one of the pairs' differences.

    Args:
        table: The table.
        beside: Published numbers, which stand below ours in the table of OOD accuracy.
        name: Part of labels, unique in the document.
    """
    parts = [_mean_table(table, metric, beside if metric == OOD else None, name) for metric in _CAPTIONS]
    pairs = list(table.pairs())
    return [part for part in parts if part] + ([_pair_table(table, pairs, name)] if pairs else [])


def _mean_table(table: PosGenTable, metric: str, beside: Comparison | None, name: str) -> str:
    rows = [
        [
            escape_latex(row.row.label),
            escape_latex(factor_text(row.row)),
            *(_cell(table, row, t, metric) for t in table.tasks),
        ]
        for row in table.rows
    ]
    if not any(row.runs[task].mean(metric) for row in table.rows for task in table.tasks if task in row.runs):
        return ""
    caption = f"{_CAPTIONS[metric]}: {_setting(table)} {_spread(table)}"
    caption += " The better of a method and its resonance form in bold." + escape_latex(_fewer_seeds(table, metric))
    if beside is not None:
        rows += [_published_row(beside, row) for row in beside.rows]
        caption += escape_latex(f" Published: {beside.published.source}, mean ± variance over 5 seeds")
        caption += "; settings differ." if any(beside.differences()) else "."
    return table_source(caption, f"tab:posgen-{_LABELS[metric]}-{name}", _header(table), rows)


def _pair_table(table: PosGenTable, pairs: Sequence[PosGenPair], name: str) -> str:
    rows = [
        [
            escape_latex(pair.base.row.label),
            escape_latex(factor_text(pair.base.row)),
            *(_difference(pair.differences.get(task)) for task in table.tasks),
        ]
        for pair in pairs
    ]
    caption = f"PosGen, change of OOD accuracy by Resonance RoPE, in points: {_setting(table)}"
    if len(table.seeds) > 1:
        caption += " Mean over seeds of the differences seed by seed, with paired 95\\% $t$-intervals."
    return table_source(caption, f"tab:posgen-pairs-{name}", _header(table), rows)


def _setting(table: PosGenTable) -> str:
    apart = f" ({table.differs})" if table.differs else ""
    meaning = REGIMES.get(table.regime, "")
    return escape_latex(f"{table.title}{apart}" + (f"; {meaning}" if meaning else "")).replace("`", "") + "."


def _spread(table: PosGenTable) -> str:
    """What stands behind a mean."""
    if len(table.seeds) == 1:
        return f"One seed ({table.seeds[0]})."
    return f"Mean $\\pm$ variance over {escape_latex(seeds_phrase(table))}, 95\\% $t$-intervals in brackets."


def _fewer_seeds(table: PosGenTable, metric: str) -> str:
    """A sentence on means that lack seeds."""
    found = []
    for task in table.tasks:
        for row in table.rows:
            mean = row.runs[task].mean(metric) if task in row.runs else None
            if mean is not None and mean.n < len(table.seeds):
                found.append(f"{row.name} on {task} {mean.n}")
    return f" Fewer seeds: {', '.join(found)}." if found else ""


def _header(table: PosGenTable) -> list[str]:
    return ["Method", "$s$", *map(escape_latex, table.tasks)]


def _cell(table: PosGenTable, row: PosGenRow, task: str, metric: str) -> str:
    mean = row.runs[task].mean(metric) if task in row.runs else None
    text = escape_latex(mean_text(mean))
    if mean is None:
        return text
    if table.is_best(row, task, metric):
        text = f"\\textbf{{{text}}}"
    return text + _interval(mean)


def _difference(difference: SeedMean | None) -> str:
    if difference is None:
        return escape_latex(MISSING)
    return escape_latex(points_text(difference.mean)) + _interval(difference)


def _interval(mean: SeedMean) -> str:
    if mean.low is None or mean.high is None:
        return ""
    low, high = (escape_latex(f"{end:.2f}".replace("-", "−")) for end in (mean.low, mean.high))
    return f"\\ci{{{low}}}{{{high}}}"


def _published_row(beside: Comparison, row: PosGenRow) -> list[str]:
    numbers = [beside.number(row, task) for task in beside.table.tasks]
    cells = [MISSING if number is None else f"{number.mean:.2f} ± {number.variance:.2f}" for number in numbers]
    return [f"{escape_latex(row.row.pe)}, published", "", *map(escape_latex, cells)]
