"""PosGen's tables as Markdown: accuracies with their spread over seeds, the published numbers beside them, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from longeval.report.collect import Collection
from longeval.report.document import Picture, Preface
from longeval.report.facts import provenance_facts, repeat_blocks
from longeval.report.formats.markdown import block_text, code, escape_markdown, figure, table_lines
from longeval.report.numbers import MISSING, counted
from longeval.report.posgen_beside import published_lines
from longeval.report.posgen_curves import RowCurves
from longeval.report.posgen_plots import SMOOTHED
from longeval.report.posgen_published import Comparison
from longeval.report.posgen_settings import settings_lines
from longeval.report.posgen_tables import GENERATED, IN_DISTRIBUTION, OOD, PosGenRow, PosGenTable
from longeval.report.posgen_text import REGIMES, interval_text, mean_text, points_text, seeds_phrase
from longeval.report.rows import factor_text
from longeval.stats.seeds import SeedMean

INTRODUCTION = (
    "PosGen (Wang et al. 2024, arXiv 2403.00071) asks whether a model can read positions that it never saw, and "
    "nothing else: small models are trained on short sequences and tested on longer ones, in which each next token is "
    "as easy as before, the sum of a few earlier ones modulo m. What a model loses beyond the training length, it "
    "loses to the positions."
)


_LEARNED = 90
"""In-distribution accuracy in % from which a model can be said to know the rule."""


class PosGenNames(NamedTuple):
    """File names that the Markdown refers to, relative to itself."""

    folder: str
    """Folder of figures and tables: `posgen_files`."""
    beside: tuple[str, ...]
    """Other files: CSV, JSON, LaTeX."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PosGenSection:
    """One table with what belongs to it."""

    table: PosGenTable
    heading: str
    """Unique in the report."""
    slug: str
    """Its name in file names, unique too."""
    beside: Comparison | None
    """Published numbers."""
    curves: tuple[RowCurves, ...]
    by_position: Picture | None
    by_epoch: Picture | None


def posgen_markdown(
    collection: Collection, sections: Sequence[PosGenSection], names: PosGenNames, command: str, preface: Preface
) -> str:
    """The whole report as Markdown text, ending in a newline."""
    lines = [f"# {escape_markdown(preface.title or 'PosGen: accuracy beyond the training length')}", ""]
    if preface.text.strip():
        lines += [preface.text.strip(), ""]
    lines += [INTRODUCTION, "", _summary(collection), "", _beside(names), ""]
    notes = [*collection.notes, *_apart(sections)]
    lines += [f"> {escape_markdown(note)}\n" for note in notes]
    for section in sections:
        lines += _section_lines(section, names)
    lines += [
        "## How to repeat it",
        "",
        "\n\n".join(block_text(block, "") for block in repeat_blocks(collection, command)),
        "",
    ]
    lines += ["## Provenance", "", block_text(provenance_facts(collection.records), ""), ""]
    return "\n".join(lines).rstrip() + "\n"


def _summary(collection: Collection) -> str:
    statuses = [cell.status for cell in collection.cells]
    words = (("ok", "done"), ("failed", "failed"), ("skipped", "skipped"))
    counts = ", ".join(f"{statuses.count(status)} {word}" for status, word in words if status in statuses)
    dates = sorted(record.provenance.date[:10] for record in collection.records)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    folders = ", ".join(code(run.path) for run in collection.runs)
    return f"{counted(len(collection.cells), 'cell')} ({counts}) from {folders}, computed {when}."


def _beside(names: PosGenNames) -> str:
    links = [f"[{name}]({quote(name)})" for name in names.beside]
    return f"The same for other programs: {', '.join(links)}, and the tables in `{names.folder}/`."


def _apart(sections: Sequence[PosGenSection]) -> list[str]:
    """A sentence on settings that differ between tables; none without any."""
    different = list(dict.fromkeys(section.table.differs for section in sections if section.table.differs))
    if not different:
        return []
    return [
        "Not all cells have the same settings. Those that differ stand in tables of their own and are not compared "
        f"with each other: {'; '.join(different)}."
    ]


def _section_lines(section: PosGenSection, names: PosGenNames) -> list[str]:
    table = section.table
    meaning = REGIMES.get(table.regime)
    lines = [f"## {escape_markdown(_capital(section.heading))}", ""]
    lines += [f"{_capital(meaning)}.", ""] if meaning else []
    lines += _main_lines(table)
    if section.beside is not None:
        lines += published_lines(section.beside)
    lines += _pair_lines(table)
    lines += _position_lines(section, names)
    lines += _generated_lines(table)
    lines += _loss_lines(section, names)
    return [*lines, "### What was trained", "", *settings_lines(table), ""]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _main_lines(table: PosGenTable) -> list[str]:
    """The table of OOD and in-distribution accuracy, how to read it, and what failed or is missing."""
    params = table.params
    first, length, end = int(params["j"]) + int(params["k"]), int(params["train_length"]), int(params["test_length"])
    text = (
        "Accuracy in % of the next token, given the true ones before it. OOD: at positions "
        f"{length} to {end - 1}, which training never saw; seen (in distribution): at {first} to {length - 1}. "
        f"{_spread(table)} Bold: the higher mean of a method and its resonance form (whether seeds "
        "can tell them apart: below). Guessing gives "
        f"{100 / int(params['modulus']):.1f}."
    )
    header = ["method", "s"]
    for task in table.tasks:
        header += [f"{escape_markdown(task)}, OOD", "seen"]
    rows = []
    for row in table.rows:
        cells = [code(row.row.label), factor_text(row.row)]
        for task in table.tasks:
            cells += [_cell(table, row, task, OOD), _short_cell(row, task)]
        rows.append(cells)
    return [text, "", *table_lines(header, rows), "", *_outcome_lines(table)]


def _spread(table: PosGenTable) -> str:
    """What stands behind a mean, in words."""
    if len(table.seeds) == 1:
        return (
            f"One seed ({table.seeds[0]}), so there is no variance and no interval: whether another seed would give "
            "the same order is not known."
        )
    return (
        f"Mean ± variance over {seeds_phrase(table)} and 95% t-interval of the mean; the variance is that of a sample "
        "(n − 1), in squared points."
    )


def _cell(table: PosGenTable, row: PosGenRow, task: str, metric: str) -> str:
    """`**98.30 ± 0.04** [98.05, 98.55] (3 of 5 seeds)`."""
    mean = row.runs[task].mean(metric) if task in row.runs else None
    if mean is None:
        return "failed" if _has_failed(row, task) else MISSING
    text = mean_text(mean)
    if table.is_best(row, task, metric):
        text = f"**{text}**"
    fewer = f"({mean.n} of {counted(len(table.seeds), 'seed')})" if mean.n < len(table.seeds) else ""
    return " ".join(filter(None, (text, interval_text(mean), fewer)))


def _short_cell(row: PosGenRow, task: str) -> str:
    """In-distribution accuracy, without an interval."""
    return mean_text(row.runs[task].mean(IN_DISTRIBUTION) if task in row.runs else None)


def _has_failed(row: PosGenRow, task: str) -> bool:
    return task in row.runs and any(record.status != "ok" for record in row.runs[task].records)


def _outcome_lines(table: PosGenTable) -> list[str]:
    """Bullets: failed cells with their reasons, cells that a mean lacks, and cells replaced by newer ones."""
    failed: dict[tuple[str, str], list[str]] = {}
    missing: dict[tuple[int, ...], list[str]] = {}
    for task in table.tasks:
        for row in table.rows:
            cells = row.runs[task].cells if task in row.runs else {}
            for seed, records in cells.items():
                record = next(iter(records.values()))
                if record.status != "ok":
                    reason = " ".join((record.error or "no reason was recorded").split())
                    failed.setdefault((record.status, reason), []).append(f"{row.name} on {task}, seed {seed}")
            absent = tuple(seed for seed in table.seeds if seed not in cells)
            if absent:
                missing.setdefault(absent, []).append(f"{row.name} on {task}")
    lines = [f"- {status}: {'; '.join(where)}: {reason}" for (status, reason), where in failed.items()]
    for seeds, where in missing.items():
        shown = ", ".join(map(str, seeds))
        lines.append(f"- no cell of {'seed' if len(seeds) == 1 else 'seeds'} {shown}: {'; '.join(where)}")
    lines += _not_learned(table)
    if table.replaced:
        lines.append(f"- {counted(table.replaced, 'cell')} left out for newer ones of the same settings")
    return [*map(_escaped_bullet, lines), ""] if lines else []


def _not_learned(table: PosGenTable) -> list[str]:
    """A bullet on models that fail at positions that they saw in training; none without any."""
    found = []
    for task in table.tasks:
        for row in table.rows:
            mean = row.runs[task].mean(IN_DISTRIBUTION) if task in row.runs else None
            if mean is not None and mean.mean < _LEARNED:
                found.append(f"{row.name} on {task} ({mean.mean:.1f})")
    if not found:
        return []
    return [
        f"- not learned: below {_LEARNED}% even at positions that training saw, so that errors beyond them can't be "
        f"put down to the positions: {', '.join(found)}"
    ]


def _escaped_bullet(line: str) -> str:
    return f"- {escape_markdown(line.removeprefix('- '))}"


def _pair_lines(table: PosGenTable) -> list[str]:
    """Differences of each method's resonance form from it, seed by seed."""
    pairs = list(table.pairs())
    if not pairs:
        return []
    several = any(difference.n > 1 for pair in pairs for difference in pair.differences.values())
    text = (
        "Change of OOD accuracy when the wavelengths of a method are rounded, in points (above 0: resonance is better)"
    )
    if several:
        text += (
            ": mean over seeds of the differences seed by seed, with the paired 95% t-interval. Both forms of a seed "
            "have the same data, initial weights and order of training. Bold: the interval excludes 0; intervals are "
            "not corrected for how many there are"
        )
    rows = []
    for pair in pairs:
        cells = [_pair_cell(pair.differences.get(task), len(table.seeds)) for task in table.tasks]
        rows.append(
            [f"{code(pair.resonance.row.label)} vs {code(pair.base.row.label)}", factor_text(pair.base.row), *cells]
        )
    header = ["pair", "s", *map(escape_markdown, table.tasks)]
    return ["### Resonance against its base", "", f"{text}.", "", *table_lines(header, rows), ""]


def _pair_cell(difference: SeedMean | None, num_seeds: int) -> str:
    if difference is None:
        return MISSING
    text = points_text(difference.mean)
    if difference.excludes_zero:
        text = f"**{text}**"
    fewer = f"({difference.n} of {counted(num_seeds, 'seed')})" if difference.n < num_seeds else ""
    return " ".join(filter(None, (text, interval_text(difference), fewer)))


def _position_lines(section: PosGenSection, names: PosGenNames) -> list[str]:
    if section.by_position is None:
        return []
    text = f"Each point is the mean of {SMOOTHED} neighbouring positions{_bands(section)}."
    picture = figure(names.folder, f"accuracy-{section.slug}", "Accuracy by position of the predicted token")
    return ["### Accuracy by position", "", text, "", picture, ""]


def _bands(section: PosGenSection) -> str:
    """What a line and its band are, where there are several seeds."""
    several = any(len(one.curves) > 1 for one in section.curves)
    return "; lines are means over seeds, bands reach from the lowest to the highest seed" if several else ""


def _generated_lines(table: PosGenTable) -> list[str]:
    """The table of free-running accuracy."""
    if not any(row.runs[task].values(GENERATED) for row in table.rows for task in table.tasks if task in row.runs):
        return []
    text = (
        f"Accuracy in % at the same OOD positions when the model is given the first "
        f"{int(table.params['j']) + int(table.params['k'])} tokens alone and goes on from its own (greedy): one wrong "
        "token spoils all that depend on it. Not in the paper."
    )
    rows = [
        [code(row.row.label), factor_text(row.row), *(_cell(table, row, task, GENERATED) for task in table.tasks)]
        for row in table.rows
    ]
    header = ["method", "s", *map(escape_markdown, table.tasks)]
    return ["### Free-running generation", "", text, "", *table_lines(header, rows), ""]


def _loss_lines(section: PosGenSection, names: PosGenNames) -> list[str]:
    if section.by_epoch is None:
        return []
    text = (
        "Mean negative log-likelihood of the validation sequences' tokens after each epoch that was validated, under "
        f"the table of evaluation (the paper's Figure 3){_bands(section)}."
    )
    picture = figure(names.folder, f"loss-{section.slug}", "Validation loss by epoch")
    return ["### Validation loss", "", text, "", picture, ""]
