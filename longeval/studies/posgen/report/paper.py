"""PosGen's tables for a paper: one for each metric, published numbers below ours, and differences of pairs."""

from __future__ import annotations

from longeval.report.document import Row, Table, TableCell, prose, symbol
from longeval.report.tables import DASH, method_row
from longeval.studies.posgen.report.facts import REGIMES, seeds_phrase
from longeval.studies.posgen.report.means import columns, difference_cell, mean_cell
from longeval.studies.posgen.report.published import Comparison
from longeval.studies.posgen.report.tables import GENERATED, IN_DISTRIBUTION, OOD, PosGenRow, PosGenTable

_CAPTIONS = {
    OOD: "accuracy in % at positions that training never saw (OOD), with the true tokens before each",
    IN_DISTRIBUTION: "accuracy in % at positions seen in training",
    GENERATED: "accuracy in % of free-running generation at positions that training never saw",
}
"""Of the tables for a paper, in their order."""

_LABELS = {OOD: "ood", IN_DISTRIBUTION: "seen", GENERATED: "generated"}


def paper_tables(table: PosGenTable, beside: Comparison | None, slug: str) -> list[Table]:
    """A table for each metric that has values, and one of the pairs' differences."""
    found = []
    for metric, what in _CAPTIONS.items():
        if any(row.runs[task].mean(metric) for row in table.rows for task in table.tasks):
            found.append(_mean_table(table, metric, what, beside if metric == OOD else None, slug))
    pairs = list(table.pairs())
    if pairs:
        several = len(table.seeds) > 1
        caption = "Mean over seeds of the differences seed by seed, with paired 95% {}-intervals."
        cells = [[difference_cell(pair.differences.get(t), for_paper=True) for t in table.tasks] for pair in pairs]
        found.append(
            Table(
                columns=columns(table.tasks),
                rows=tuple(method_row(pair.base.row, shown) for pair, shown in zip(pairs, cells, strict=True)),
                title=f"PosGen, change of OOD accuracy by Resonance RoPE, in points: {_setting(table)}",
                caption=prose(caption, symbol("t")) if several else "",
                label=f"posgen-pairs-{slug}",
            )
        )
    return found


def _mean_table(table: PosGenTable, metric: str, what: str, beside: Comparison | None, slug: str) -> Table:
    """Means of one metric; published numbers stand below ours."""
    rows = []
    fewer = []
    for row in table.rows:
        means = {task: row.runs[task].mean(metric) for task in table.tasks}
        rows.append(
            method_row(
                row.row,
                [mean_cell(mean, is_strong=table.is_best(row, task, metric)) for task, mean in means.items()],
            )
        )
        fewer += [
            f"{row.name} on {task} {mean.n}"
            for task, mean in means.items()
            if mean is not None and mean.n < len(table.seeds)
        ]
    caption = [prose("Mean ± variance over {}, 95% {}-intervals in brackets.", seeds_phrase(table), symbol("t"))]
    if len(table.seeds) == 1:
        caption = [prose("One seed ({}).", table.seeds[0])]
    caption.append(prose(" The better of a method and its resonance form in bold."))
    caption += [prose(" Fewer seeds: {}.", ", ".join(fewer))] if fewer else []
    if beside is not None:
        rows += [_published_row(beside, row) for row in beside.rows]
        differ = "; settings differ" if any(beside.differences()) else ""
        caption.append(prose(" Published: {}, mean ± variance over 5 seeds{}.", beside.published.source, differ))
    return Table(
        columns=columns(table.tasks),
        rows=tuple(rows),
        title=f"PosGen, {what}: {_setting(table)}",
        caption=tuple(span for part in caption for span in part),
        label=f"posgen-{_LABELS[metric]}-{slug}",
    )


def _published_row(beside: Comparison, row: PosGenRow) -> Row:
    numbers = [beside.number(row, task) for task in beside.table.tasks]
    cells = [DASH if number is None else TableCell(text=number.text) for number in numbers]
    return Row(cells=(TableCell(text=f"{row.row.pe}, published"), TableCell(text=""), *cells))


def _setting(table: PosGenTable) -> str:
    apart = f" ({table.differs})" if table.differs else ""
    meaning = REGIMES.get(table.regime)
    return f"{table.title}{apart}" + ("" if meaning is None else f"; {meaning}")
