"""The report as Markdown: tables, figures, and plainly what was scored and how to repeat it.

Written for GitHub's dialect, and to be legible as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from longeval.report.collect import Collection
from longeval.report.gfm import code, escape_markdown, figure, table_lines
from longeval.report.grid import Grid
from longeval.report.numbers import counted, format_interval, format_outcome, format_percent
from longeval.report.pairs import PairCell
from longeval.report.provenance import provenance_lines, repeat_lines, scored_lines, server_lines
from longeval.report.published_markdown import published_lines
from longeval.report.rows import factor_text, outcome_lines
from longeval.report.sections import MAX_DRAWN, POSITION_BINS, Section, ordered_unique
from longeval.report.task_markdown import task_section_lines
from longeval.report.task_sections import TaskSection
from longeval.report.task_tables import is_group
from longeval.store.records import Record
from longeval.values import format_length


class ReportNames(NamedTuple):
    """File names that the Markdown refers to, relative to itself."""

    folder: str
    """Folder of figures and small tables: `demo_files`."""
    beside: tuple[str, ...]
    """Other files of the report: CSV, JSON, LaTeX."""


class Preface(NamedTuple):
    """What the author of a report says in front of it."""

    title: str = ""
    """The heading; default: by what the report holds."""
    text: str = ""
    """Markdown of their own, under the heading."""


def markdown_report(
    collection: Collection,
    sections: Sequence[Section],
    task_sections: Sequence[TaskSection],
    names: ReportNames,
    command: str,
    preface: Preface,
    *,
    published: bool = False,
) -> str:
    """The whole report as Markdown text, ending in a newline; `published`: with a section of numbers from papers."""
    lines = [f"# {escape_markdown(preface.title or _title(sections, task_sections))}", ""]
    if preface.text.strip():
        lines += [preface.text.strip(), ""]
    lines += [_summary(collection), "", _beside(names), ""]
    notes = [*collection.notes, *_told_apart(sections, task_sections), *_undrawn(sections, task_sections)]
    lines += [f"> {escape_markdown(note)}\n" for note in notes]
    for section in sections:
        lines += _section_lines(section, names)
    for task_section in task_sections:
        lines += task_section_lines(task_section, names.folder)
    if published:
        lines += published_lines([section.grid for section in sections], [s.tasks for s in task_sections])
    lines += ["## How to repeat it", "", *repeat_lines(collection, command), ""]
    lines += ["## Provenance", "", *provenance_lines(collection.records), ""]
    return "\n".join(lines).rstrip() + "\n"


def _title(sections: Sequence[Section], task_sections: Sequence[TaskSection]) -> str:
    if not task_sections:
        return "Perplexity by context length"
    return "Perplexity and tasks by context length" if sections else "Tasks by context length"


def _summary(collection: Collection) -> str:
    statuses = [cell.status for cell in collection.cells]
    counts = ", ".join(
        f"{statuses.count(status)} {word}"
        for status, word in (("ok", "done"), ("failed", "failed"), ("skipped", "skipped"))
        if status in statuses
    )
    dates = sorted(record.provenance.date[:10] for record in collection.records)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    folders = ", ".join(code(run.path) for run in collection.runs)
    text = f"{counted(len(collection.cells), 'cell')} ({counts}) from {folders}, computed {when}."
    first = [cell.records[0] for cell in collection.cells]
    num_tasks = sum(record.task is not None and not is_group(record) for record in first)
    num_groups = sum(map(is_group, first))
    if 0 < num_tasks < len(first) or 0 < num_groups < len(first):
        kinds = [(len(first) - num_tasks - num_groups, "of perplexity"), (num_tasks, "of tasks")]
        kinds.append((num_groups, "averages of groups"))
        text += f" By kind: {', '.join(f'{count:,} {kind}' for count, kind in kinds if count)}."
    return text


def _told_apart(sections: Sequence[Section], task_sections: Sequence[TaskSection]) -> list[str]:
    """A sentence on tables that stand apart since their cells were asked with other settings; none without any."""
    every = [section.tasks for section in task_sections]
    named = [section.grid.differs for section in sections] + [tasks.differs for tasks in every]
    named += [table.differs for tasks in every for table in (*tasks.tasks, *tasks.groups)]
    different = ordered_unique(list(filter(None, named)))
    if not different:
        return []
    return [
        "Not all cells were asked with the same settings. Those that differ stand in sections or tables of their own, "
        f"named by the difference ({'; '.join(different)}), and are not compared with each other."
    ]


def _undrawn(*kinds: Sequence[Section] | Sequence[TaskSection]) -> list[str]:
    """A sentence on tables without figures where there are very many; none without any."""
    undrawn = sum(max(0, len(sections) - MAX_DRAWN) for sections in kinds)
    if not undrawn:
        return []
    return [
        f"Figures are drawn of the first {MAX_DRAWN} tables, not of the other {undrawn}. A report of fewer run folders "
        "has them."
    ]


_BITS_CAPTION = (
    "The same cells in a unit that does not depend on the tokenizer (lower is better); – where there is no value."
)


def _beside(names: ReportNames) -> str:
    """Links to the other files of the report."""
    links = [f"[{name}]({quote(name)})" for name in names.beside]
    return f"The same numbers for other programs: {', '.join(links)}, and the tables in `{names.folder}/`."


def _section_lines(section: Section, names: ReportNames) -> list[str]:
    grid = section.grid
    lines = [f"## {escape_markdown(grid.title)}", ""]
    lines += [_caption(grid), "", *server_lines(grid.records), *_grid_table(grid, with_interval=True), ""]
    reasons = outcome_lines(grid.rows, grid.lengths)
    if reasons:
        lines += [*(f"- {escape_markdown(reason)}" for reason in reasons), ""]
    if section.curve is not None:
        lines += [figure(names.folder, f"perplexity-{section.slug}", "Perplexity by context length"), ""]
    lines += _pair_lines(section)
    lines += _position_lines(section, names)
    if section.bits is not None:
        lines += ["### Bits per byte", "", _BITS_CAPTION, ""]
        lines += [*_grid_table(section.bits, with_interval=False), ""]
    return [*lines, "### What was scored", "", *scored_lines(grid, section.documents), ""]


def _caption(grid: Grid) -> str:
    text = "Perplexity (lower is better)"
    if any(record.ci_low is not None for record in grid.records):
        text += " with its 95% bootstrap interval"
    text += "; the best of each length in bold"
    if grid.native_length is not None:
        own = grid.records[0].params.get("own_native_length")
        set_by_hand = bool(own) and own != grid.native_length
        whose = "Taken as native length (`--native`):" if set_by_hand else "The native length of the model is"
        text += f". {whose} {format_length(grid.native_length)}"
    return text + "."


def _grid_table(grid: Grid, *, with_interval: bool) -> list[str]:
    rows = []
    for row in grid.rows:
        cells = []
        for length in grid.lengths:
            record = row.cells.get(length)
            cells.append(_cell(grid, record, with_interval=with_interval))
        rows.append([code(row.label), factor_text(row), *cells])
    return table_lines(["method", "s", *map(format_length, grid.lengths)], rows)


def _cell(grid: Grid, record: Record | None, *, with_interval: bool) -> str:
    text = format_outcome(record)
    if record is not None and grid.is_best(record):
        text = f"**{text}**"
    interval = format_interval(record) if with_interval else ""
    return f"{text} {interval}" if interval else text


def _pair_lines(section: Section) -> list[str]:
    """The table of differences between each method and its resonance form."""
    if not section.pairs:
        return []
    grid = section.grid
    differences = [c.difference for pair in section.pairs for c in pair.cells.values() if c.difference is not None]
    text = (
        "Relative change of perplexity when the wavelengths of the method are rounded (negative: resonance is better)"
    )
    if differences:
        text += (
            f", with the {differences[0].level:.0%} interval from resampling the same {differences[0].kind}s in both. "
            "Bold: the interval excludes 0. The intervals are not corrected for how many there are"
        )
    if any(cell.difference is None for pair in section.pairs for cell in pair.cells.values()):
        text += ". Differences without an interval: the token-level NLLs are not stored, or are of other tokens"
    rows = [
        [
            f"{code(pair.resonance.label)} vs {code(pair.base.label)}",
            factor_text(pair.base),
            *(_pair_cell(pair.cells.get(length)) for length in grid.lengths),
        ]
        for pair in section.pairs
    ]
    header = ["pair", "s", *map(format_length, grid.lengths)]
    return ["### Resonance against its base", "", f"{text}.", "", *table_lines(header, rows), ""]


def _pair_cell(cell: PairCell | None) -> str:
    if cell is None:
        return "–"
    text = format_percent(cell.ratio)
    if cell.difference is None:
        return text
    interval = f"[{format_percent(cell.difference.low)}, {format_percent(cell.difference.high)}]"
    return f"**{text}** {interval}" if cell.difference.excludes_zero else f"{text} {interval}"


def _position_lines(section: Section, names: ReportNames) -> list[str]:
    lines = ["### Perplexity by position", ""]
    if section.position_length is None:
        return [*lines, "No token-level NLLs are stored with these cells, so there is no curve by position.", ""]
    text = (
        f"Windows of {format_length(section.position_length)} tokens; a token at position p was predicted from the p "
        f"tokens before it. Each point is a bin of about "
        f"{max(1, round(section.position_length / POSITION_BINS)):,} positions."
    )
    if section.grid.protocol.startswith("sliding"):
        text += " Only the first window of a document is scored at its early positions, later ones only at their end."
    if section.position is None:
        return [*lines, f"{text} The numbers are in `{names.folder}/positions.csv`.", ""]
    return [
        *lines,
        text,
        "",
        figure(names.folder, f"position-{section.slug}", "Perplexity by position in the window"),
        "",
    ]
