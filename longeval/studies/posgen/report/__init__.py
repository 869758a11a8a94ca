"""PosGen's report: accuracies with their spread over seeds, a comparison with published numbers, and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from longeval.report.build import StudyReport
from longeval.report.collect import Collection
from longeval.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Note,
    Paragraph,
    Prose,
    Section,
    Table,
    TableCell,
    joined,
    prose,
)
from longeval.report.facts import codes, parameters_text, unique
from longeval.report.numbers import MISSING, count_range, counted, format_factor
from longeval.report.tables import error_text, factor_text, method_row, slugs_of
from longeval.studies.posgen.report.figures import (
    SMOOTHED,
    RowCurves,
    has_bands,
    loss_figure,
    position_figure,
    row_curves,
)
from longeval.studies.posgen.report.paper import csv_data, paper_tables
from longeval.studies.posgen.report.phases import phases_blocks
from longeval.studies.posgen.report.published import comparison, published_blocks
from longeval.studies.posgen.report.tables import (
    GENERATED,
    IN_DISTRIBUTION,
    OOD,
    REGIMES,
    PosGenRow,
    PosGenTable,
    build_tables,
    columns,
    difference_cell,
    mean_cell,
    place_of,
)
from longeval.studies.posgen.request import FEW_SEEDS

INTRODUCTION = (
    "PosGen (Wang et al. 2024, arXiv 2403.00071) asks whether a model can read positions that it never saw, and "
    "nothing else: small models are trained on short sequences and tested on longer ones, in which each next token is "
    "as easy as before, the sum of a few earlier ones modulo m. What a model loses beyond the training length, it "
    "loses to the positions."
)

_LEARNED = 90
"""In-distribution accuracy in % below which a rule counts as not learned."""

_TASKS = {
    "recursive": "the last j + k tokens",
    "cot": "the first j tokens of the sequence and the last k",
    "semi_recursive": "the j tokens at index ⌊(l − (j + k)) / 2⌋ and the last k, where l is the new token's index",
}
"""The summed tokens of each rule."""


def posgen_sections(collection: Collection) -> list[Section]:
    """Makes one section for each table, in the order of their first cells."""
    tables = build_tables(collection)
    same_title = Counter(table.title for table in tables)
    titles = [
        table.title + (f" ({table.differs})" if same_title[table.title] > 1 and table.differs else "")
        for table in tables
    ]
    slugs = slugs_of([title.removeprefix("regime ") for title in titles])
    return [_section(*found, collection) for found in zip(tables, map(_capital, titles), slugs, strict=True)]


def _section(table: PosGenTable, title: str, slug: str, collection: Collection) -> Section:
    """The section of one table: the table, comparisons, figures, and settings."""
    curves = row_curves(table, lambda cell: collection.stores[cell].curves(cell))
    beside = comparison(table)
    meaning = REGIMES.get(table.regime)
    blocks: list[Block] = [Note(text=text) for text in cautions(table)]
    blocks += [] if meaning is None else [Paragraph(text=f"{_capital(meaning)}.")]
    blocks.append(_main_table(table))
    blocks += [] if beside is None else published_blocks(beside)
    blocks += _pair_blocks(table)
    blocks += phases_blocks(table, slug)
    if (chart := position_figure(table, curves)) is not None:
        text = f"Each point is the mean of {SMOOTHED} neighbouring positions{_bands(curves)}."
        description = "Accuracy by position of the predicted token"
        blocks += [Heading(text="Accuracy by position"), Paragraph(text=text)]
        blocks.append(Figure(name=f"accuracy-{slug}", description=description, chart=chart))
    blocks += _generated_blocks(table)
    if (chart := loss_figure(table, curves)) is not None:
        text = (
            "Mean negative log-likelihood of the validation sequences' tokens after each epoch that was validated, "
            f"under the table of evaluation (the paper's Figure 3){_bands(curves)}."
        )
        blocks += [Heading(text="Validation loss"), Paragraph(text=text)]
        blocks.append(Figure(name=f"loss-{slug}", description="Validation loss by epoch", chart=chart))
    blocks += [Heading(text="What was trained"), setting_facts(table)]
    return Section(
        title=title,
        blocks=tuple(blocks),
        paper=tuple(paper_tables(table, beside, slug)),
        data=tuple(csv_data(table, beside, curves)),
        differs=(table.differs,),
    )


def cautions(table: PosGenTable) -> Iterator[str]:
    """Why the order of methods in a table may be chance: few seeds, or seeds that differ more than methods do."""
    if len(table.seeds) < FEW_SEEDS:
        yield (
            f"{_capital(counted(len(table.seeds), 'seed'))}: the order of the methods here is no evidence, another "
            "seed may turn it round."
        )
        return
    wide = []
    for task in table.tasks:
        values = [[*found.values()] for row in table.rows if (found := row.values(task))]
        if len(values) < 2:
            continue
        means = [sum(one) / len(one) for one in values]
        by_seed, by_method = max(max(one) - min(one) for one in values), max(means) - min(means)
        if by_seed > by_method:
            wide.append(f"on {task} by up to {by_seed:.1f} points, and the means of methods by up to {by_method:.1f}")
    if wide:
        yield (
            f"Seeds of one method differ more than methods do: {'; '.join(wide)}. Only differences seed by seed whose "
            "interval excludes 0 say something of a method."
        )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bands(curves: Sequence[RowCurves]) -> str:
    """An explanation of lines and bands; empty with one seed."""
    bands = ", bands reach from the lowest to the highest seed" if has_bands(curves) else ""
    return f"; lines are means over seeds{bands}" if any(len(one.curves) > 1 for one in curves) else ""


def _main_table(table: PosGenTable) -> Table:
    """The table of OOD and in-distribution accuracies, with its explanation and notes on failed or missing cells."""
    params = table.params
    first, length, end = int(params["j"]) + int(params["k"]), int(params["train_length"]), int(params["test_length"])
    spread = (
        f"Mean ± variance over {table.seeds_phrase} and 95% t-interval of the mean; the variance is that of a sample "
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
    """A mean such as `**98.30 ± 0.04** [98.05, 98.55] (3 of 5 seeds)`, or `failed`."""
    runs = row.runs[task]
    mean = runs.mean(metric)
    if mean is None and any(record.status != "ok" for record in runs.records):
        return TableCell(text="failed", is_failure=True)
    return mean_cell(mean, num_seeds=len(table.seeds), is_strong=table.is_best(row, task, metric))


def _outcomes(table: PosGenTable) -> list[str]:
    """Notes on failed cells with reasons, missing seeds, rules that were not learned, and replaced cells."""
    failed: dict[tuple[str, str], list[str]] = {}
    missing: dict[tuple[int, ...], list[str]] = {}
    not_learned = []
    for task in table.tasks:
        for row in table.rows:
            runs = row.runs[task]
            for seed, records in runs.cells.items():
                record = next(iter(records.values()))
                if record.status != "ok":
                    reason = error_text(record)
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
    """The table of differences between each method's resonance form and the method, paired by seed."""
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


def setting_facts(table: PosGenTable) -> Bullets:
    """The settings of a table as a list."""
    sums = [f"{task}: sums {_TASKS[task]}." for task in table.tasks if task in _TASKS]
    facts: list[Prose] = [_data(table), *sums, _model(table), _training(table), *_trained_with(table)]
    return Bullets(items=(*facts, *_methods(table), *_counts(table)))


def _data(table: PosGenTable) -> str:
    """A sentence about the sequences, and which data each seed has."""
    params = table.params
    seeds = {place_of(record).seed: record.params.get("data_seed") for record in table.records}
    if all(data in (None, seed) for seed, data in seeds.items()):
        whose = "each seed has data of its own" if len(seeds) > 1 else f"data of seed {next(iter(seeds))}"
    else:
        whose = f"all seeds have the data of seed {next(iter(seeds.values()))}"
    counts = ", ".join(
        f"{params[name]:,} {what}"
        for name, what in (("num_train", "to train on"), ("num_valid", "for losses"), ("num_test", "to test"))
    )
    return (
        f"Data: numbers from 0 to {params['modulus'] - 1}; the first {params['j'] + params['k']} are random and the "
        f"same in no two sequences, then each is a sum modulo {params['modulus']} (j = {params['j']}, k = "
        f"{params['k']}). Sequences: {counts}; {params['train_length']} tokens in training, {params['test_length']} in "
        f"validation and test; {whose}."
    )


def _model(table: PosGenTable) -> Prose:
    params = table.params
    switches = [
        f"embeddings {'tied with' if params.get('tied') else 'apart from'} the output layer",
        f"attention logits {'' if params.get('attention_scale') else 'not '}divided by √{params['head_dim']}",
        "initial weights `{}`",
        "one more token in front" if params.get("start_token") else "no token in front",
        f"dropout {format_factor(params['dropout'])}" if params.get("dropout") else "no dropout",
        *(["feed-forward layers frozen"] if params.get("frozen_mlp") else []),
    ]
    return prose(
        f"Model `{{}}`: decoder of {counted(params['layers'], 'layer')}, width {params['d_model']}, feed-forward "
        f"{params['d_ff']}, {counted(params['heads'], 'head')} of {params['head_dim']}, RoPE base "
        f"{format_factor(params['theta'])}; {', '.join(switches)}.",
        table.records[0].model,
        params.get("init"),
    )


def _training(table: PosGenTable) -> str:
    params = table.params
    return (
        f"Training: {counted(params['epochs'], 'epoch')} in batches of {params['batch_size']}, AdamW, highest "
        f"learning rate {format_factor(params['lr'])}, weight decay {format_factor(params['weight_decay'])}, one cycle "
        f"with {100 * params['warmup']:g}% warm-up, {table.records[0].dtype}; the first "
        f"{params['j'] + params['k']} tokens are left out of the loss; {table.seeds_phrase}."
    )


def _trained_with(table: PosGenTable) -> list[Prose]:
    """Names the rows that were trained with another method than they are tested with, such as "`yarn` with `none`"."""
    found = []
    for row in table.rows:
        records = [record for runs in row.runs.values() for record in runs.records]
        names = unique(str(record.params.get("trained_with", row.row.pe)) for record in records)
        if names != [row.row.pe]:
            found.append(prose("`{}` with {}", row.name, joined(" and ", map(codes, ([name] for name in names)))))
    return [prose("Trained with: {}.", joined(", ", found))] if found else []


def _methods(table: PosGenTable) -> list[Prose]:
    """Factor and parameters of each method that has any, such as "`yarn`: s = 4, L = 64, beta_fast 32"."""
    facts: list[Prose] = []
    for row in table.rows:
        said = []
        if row.row.factor is not None:
            native = next(iter(row.row.cells.values())).params["native_length"]
            said.append(f"s = {factor_text(row.row)}, L = {native}")
        said += filter(None, [parameters_text(row.row)])
        if said:
            facts.append(prose("`{}`: {}.", row.name, ", ".join(said)))
    return facts


def _counts(table: PosGenTable) -> list[str]:
    """Numbers of test sequences and scored tokens of a cell."""
    facts = []
    for metric, what in ((OOD, "OOD accuracy"), (GENERATED, "Free-running accuracy")):
        found = [record for record in table.records if record.metric == metric and record.status == "ok"]
        sequences, tokens = count_range([r.n for r in found]), count_range([r.tokens for r in found])
        if MISSING not in (sequences, tokens):
            facts.append(f"{what} of a cell: {tokens} tokens of {sequences} sequences.")
    return facts


REPORT = StudyReport(
    subject="PosGen: accuracy beyond the training length",
    sections=posgen_sections,
    summary=lambda records: (),
    figures=("accuracy-*", "phases-*", "loss-*"),
    data=("means.csv", "pairs.csv", "positions.csv", "losses.csv"),
    introduction=INTRODUCTION,
    command="longeval posgen table",
    name="posgen",
)
