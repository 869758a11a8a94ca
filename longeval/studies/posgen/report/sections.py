"""What a report says of PosGen: accuracies with their spread over seeds, published numbers beside them, figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from longeval.report.build import StudyReport
from longeval.report.collect import Collection
from longeval.report.document import (
    Block,
    Data,
    Figure,
    Heading,
    Paragraph,
    Picture,
    Preface,
    Row,
    Section,
    Table,
    TableCell,
    prose,
    symbol,
)
from longeval.report.numbers import counted
from longeval.report.tables import DASH, method_row
from longeval.stats.seeds import SeedMean
from longeval.studies.posgen.report.facts import REGIMES, seeds_phrase, setting_facts
from longeval.studies.posgen.report.figures import (
    BY_EPOCH,
    BY_POSITION,
    SMOOTHED,
    RowCurves,
    loss_figure,
    position_figure,
    row_curves,
)
from longeval.studies.posgen.report.published import Comparison, comparison, published_blocks
from longeval.studies.posgen.report.tables import (
    GENERATED,
    IN_DISTRIBUTION,
    METRICS,
    OOD,
    PosGenRow,
    PosGenTable,
    build_tables,
    columns,
    difference_cell,
    mean_cell,
)

# PosGen's numbers for other programs: means, differences of pairs, and curves over seeds; nothing is rounded.

_WHERE = ("regime", "model", "epochs", "dtype", "differs", "task", "pe", "factor")
_MEAN = ("seeds", "mean", "variance", "low", "high")


def csv_data(table: PosGenTable, beside: Comparison | None, curves: Sequence[RowCurves]) -> list[Data]:
    """Means, differences of pairs, and curves over seeds, for other programs."""
    means, pairs = [], []
    for task in table.tasks:
        for row in table.rows:
            for metric in METRICS:
                mean = row.runs[task].mean(metric)
                if mean is None:
                    continue
                line = _where(table, task, row) | {"metric": metric} | _numbers(mean)
                theirs = beside.number(row, task) if beside is not None and metric == OOD else None
                if theirs is not None:
                    line |= {"published": theirs.mean, "published_variance": theirs.variance}
                means.append(line)
    for pair in table.pairs():
        for task, difference in pair.differences.items():
            line = _where(table, task, pair.resonance) | {"base": pair.base.row.label} | _numbers(difference)
            pairs.append(line | {"excludes_zero": difference.excludes_zero if difference.n > 1 else None})
    columns = (*_WHERE, "metric", *_MEAN, "published", "published_variance")
    return [
        Data(name="means", columns=columns, rows=tuple(means)),
        Data(name="pairs", columns=(*_WHERE, "base", *_MEAN, "excludes_zero"), rows=tuple(pairs)),
        _curve_data("positions", table, curves, BY_POSITION, "position"),
        _curve_data("losses", table, curves, BY_EPOCH, "epoch"),
    ]


def _curve_data(file: str, table: PosGenTable, curves: Sequence[RowCurves], names: Sequence[str], along: str) -> Data:
    """One row per curve and point: mean, lowest and highest of the seeds; shares from 0 to 1, losses in nats."""
    rows = []
    for one in curves:
        for name in names:
            band = one.band(name)
            if band is None:
                continue
            where = _where(table, one.task, one.row) | {"curve": name, "seeds": band.seeds}
            points = (values.tolist() for values in (band.x_K, band.mean_K, band.low_K, band.high_K))
            for x, mean, low, high in zip(*points, strict=True):
                if math.isfinite(mean):
                    rows.append(where | {along: int(x), "mean": mean, "low": low, "high": high})
    return Data(name=file, columns=(*_WHERE, "curve", along, "seeds", "mean", "low", "high"), rows=tuple(rows))


def _where(table: PosGenTable, task: str, row: PosGenRow) -> dict[str, Any]:
    first = table.records[0]
    return {
        "regime": table.regime,
        "model": first.model,
        "epochs": first.params.get("epochs"),
        "dtype": first.dtype,
        "differs": table.differs,
        "task": task,
        "pe": row.row.label,
        "factor": row.row.factor,
    }


def _numbers(mean: SeedMean) -> dict[str, Any]:
    return {"seeds": mean.n, "mean": mean.mean, "variance": mean.variance, "low": mean.low, "high": mean.high}


# PosGen's tables for a paper: one for each metric, published numbers below ours, and differences of pairs.

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


INTRODUCTION = (
    "PosGen (Wang et al. 2024, arXiv 2403.00071) asks whether a model can read positions that it never saw, and "
    "nothing else: small models are trained on short sequences and tested on longer ones, in which each next token is "
    "as easy as before, the sum of a few earlier ones modulo m. What a model loses beyond the training length, it "
    "loses to the positions."
)

_LEARNED = 90
"""In-distribution accuracy in % from which a model can be said to know the rule."""


def introduced(title: str, text: str) -> Preface:
    """The author's own title and text, with what PosGen is behind them."""
    parts = [text.strip(), INTRODUCTION]
    return Preface(title=title or "PosGen: accuracy beyond the training length", text="\n\n".join(filter(None, parts)))


def posgen_sections(collection: Collection) -> list[Section]:
    """One section for each table, in the order of their first cells."""
    tables = build_tables(collection)
    same_title = Counter(table.title for table in tables)
    sections: list[Section] = []
    slugs: set[str] = set()
    for number, table in enumerate(tables, start=1):
        heading = table.title + (f" ({table.differs})" if same_title[table.title] > 1 and table.differs else "")
        slug = re.sub(r"[^a-z0-9]+", "-", heading.removeprefix("regime ").lower()).strip("-")[:80]
        slug = f"{slug}-{number}" if slug in slugs else slug
        slugs.add(slug)
        sections.append(_section(table, _capital(heading), slug, collection))
    return sections


def _section(table: PosGenTable, title: str, slug: str, collection: Collection) -> Section:
    """One table with what belongs to it."""
    curves = row_curves(table, lambda cell: collection.stores[cell].curves(cell))
    beside = comparison(table)
    meaning = REGIMES.get(table.regime)
    blocks: list[Block] = [] if meaning is None else [Paragraph(text=f"{_capital(meaning)}.")]
    blocks.append(_main_table(table))
    blocks += [] if beside is None else published_blocks(beside)
    blocks += _pair_blocks(table)
    text = f"Each point is the mean of {SMOOTHED} neighbouring positions{_bands(curves)}."
    description, picture = "Accuracy by position of the predicted token", position_figure(table, curves)
    blocks += _figure_blocks("Accuracy by position", text, f"accuracy-{slug}", description, picture)
    blocks += _generated_blocks(table)
    text = (
        "Mean negative log-likelihood of the validation sequences' tokens after each epoch that was validated, under "
        f"the table of evaluation (the paper's Figure 3){_bands(curves)}."
    )
    description, picture = "Validation loss by epoch", loss_figure(table, curves)
    blocks += _figure_blocks("Validation loss", text, f"loss-{slug}", description, picture)
    blocks += [Heading(text="What was trained"), setting_facts(table)]
    return Section(
        title=title,
        blocks=tuple(blocks),
        paper=tuple(paper_tables(table, beside, slug)),
        data=tuple(csv_data(table, beside, curves)),
        differs=(table.differs,),
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bands(curves: Sequence[RowCurves]) -> str:
    """What a line and its band are, where there are several seeds."""
    several = any(len(one.curves) > 1 for one in curves)
    return "; lines are means over seeds, bands reach from the lowest to the highest seed" if several else ""


def _figure_blocks(heading: str, text: str, name: str, description: str, picture: Picture | None) -> list[Block]:
    """A figure under its heading; nothing where there is nothing to draw."""
    if picture is None:
        return []
    figure = Figure(name=name, description=description, picture=picture)
    return [Heading(text=heading), Paragraph(text=text), figure]


def _main_table(table: PosGenTable) -> Table:
    """OOD and in-distribution accuracy, how to read them, and what failed or is missing."""
    params = table.params
    first, length, end = int(params["j"]) + int(params["k"]), int(params["train_length"]), int(params["test_length"])
    spread = (
        f"Mean ± variance over {seeds_phrase(table)} and 95% t-interval of the mean; the variance is that of a sample "
        "(n − 1), in squared points."
    )
    if len(table.seeds) == 1:
        spread = (
            f"One seed ({table.seeds[0]}), so there is no variance and no interval: whether another seed would give "
            "the same order is not known."
        )
    text = (
        "Accuracy in % of the next token, given the true ones before it. OOD: at positions "
        f"{length} to {end - 1}, which training never saw; seen (in distribution): at {first} to {length - 1}. "
        f"{spread} Bold: the higher mean of a method and its resonance form (whether seeds can tell them apart: "
        f"below). Guessing gives {100 / int(params['modulus']):.1f}."
    )
    names = [column for task in table.tasks for column in (f"{task}, OOD", "seen")]
    rows = []
    for row in table.rows:
        cells = []
        for task in table.tasks:
            cells += [
                _cell(table, row, task, OOD),
                mean_cell(row.runs[task].mean(IN_DISTRIBUTION), with_interval=False),
            ]
        rows.append(method_row(row.row, cells))
    return Table(columns=columns(names), rows=tuple(rows), caption=text, notes=tuple(_outcomes(table)))


def _cell(table: PosGenTable, row: PosGenRow, task: str, metric: str) -> TableCell:
    """`**98.30 ± 0.04** [98.05, 98.55] (3 of 5 seeds)`."""
    runs = row.runs[task]
    mean = runs.mean(metric)
    if mean is None and any(record.status != "ok" for record in runs.records):
        return TableCell(text="failed", is_failure=True)
    return mean_cell(mean, num_seeds=len(table.seeds), is_strong=table.is_best(row, task, metric))


def _outcomes(table: PosGenTable) -> list[str]:
    """Failed cells with their reasons, seeds that a mean lacks, rules not learned, and cells replaced by newer ones."""
    failed: dict[tuple[str, str], list[str]] = {}
    missing: dict[tuple[int, ...], list[str]] = {}
    not_learned = []
    for task in table.tasks:
        for row in table.rows:
            runs = row.runs[task]
            for seed, records in runs.cells.items():
                record = next(iter(records.values()))
                if record.status != "ok":
                    reason = " ".join((record.error or "no reason was recorded").split())
                    failed.setdefault((record.status, reason), []).append(f"{row.name} on {task}, seed {seed}")
            absent = tuple(seed for seed in table.seeds if seed not in runs.cells)
            if absent:
                missing.setdefault(absent, []).append(f"{row.name} on {task}")
            mean = runs.mean(IN_DISTRIBUTION)
            if mean is not None and mean.mean < _LEARNED:
                not_learned.append(f"{row.name} on {task} ({mean.mean:.1f})")
    said = [f"{status}: {'; '.join(where)}: {reason}" for (status, reason), where in failed.items()]
    for seeds, where in missing.items():
        shown = ", ".join(map(str, seeds))
        said.append(f"no cell of {'seed' if len(seeds) == 1 else 'seeds'} {shown}: {'; '.join(where)}")
    if not_learned:
        said.append(
            f"not learned: below {_LEARNED}% even at positions that training saw, so that errors beyond them can't be "
            f"put down to the positions: {', '.join(not_learned)}"
        )
    if table.replaced:
        said.append(f"{counted(table.replaced, 'cell')} left out for newer ones of the same settings")
    return said


def _pair_blocks(table: PosGenTable) -> list[Block]:
    """Differences of each method's resonance form from it, seed by seed."""
    pairs = list(table.pairs())
    if not pairs:
        return []
    text = (
        "Change of OOD accuracy when the wavelengths of a method are rounded, in points (above 0: resonance is better)"
    )
    if any(difference.n > 1 for pair in pairs for difference in pair.differences.values()):
        text += (
            ": mean over seeds of the differences seed by seed, with the paired 95% t-interval. Both forms of a seed "
            "have the same data, initial weights and order of training. Bold: the interval excludes 0; intervals are "
            "not corrected for how many there are"
        )
    rows = tuple(
        method_row(
            pair.base.row,
            [difference_cell(pair.differences.get(task), num_seeds=len(table.seeds)) for task in table.tasks],
            [prose("`{}` vs `{}`", pair.resonance.row.label, pair.base.row.label)],
        )
        for pair in pairs
    )
    return [
        Heading(text="Resonance against its base"),
        Table(columns=columns(table.tasks, "pair"), rows=rows, caption=f"{text}."),
    ]


def _generated_blocks(table: PosGenTable) -> list[Block]:
    """The table of free-running accuracy."""
    if not any(row.runs[task].values(GENERATED) for row in table.rows for task in table.tasks):
        return []
    text = (
        f"Accuracy in % at the same OOD positions when the model is given the first "
        f"{int(table.params['j']) + int(table.params['k'])} tokens alone and goes on from its own (greedy): one wrong "
        "token spoils all that depend on it. Not in the paper."
    )
    rows = [method_row(row.row, [_cell(table, row, task, GENERATED) for task in table.tasks]) for row in table.rows]
    shown = Table(columns=columns(table.tasks), rows=tuple(rows))
    return [Heading(text="Free-running generation"), Paragraph(text=text), shown]


REPORT = StudyReport(
    subject="PosGen",
    sections=posgen_sections,
    summary=lambda records: (),
    files=(
        "accuracy-*.png",
        "accuracy-*.svg",
        "loss-*.png",
        "loss-*.svg",
        "means.csv",
        "pairs.csv",
        "positions.csv",
        "losses.csv",
    ),
)
