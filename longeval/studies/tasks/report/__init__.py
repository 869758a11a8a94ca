"""What a report says of downstream tasks: one section for the tasks of each model, asked in one way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from longeval.report.build import StudyReport
from longeval.report.collect import MAX_DRAWN, Collection
from longeval.report.document import Block, Data, Figure, Heading, Paragraph, Section, Table, TableCell, View
from longeval.report.facts import server_notes
from longeval.report.pairs import RowSet
from longeval.report.published import AVERAGE, OwnRow, PublishedSet, comparison_blocks, published_sets
from longeval.report.tables import DASH, Grid, GridRow, build_grids, factor_text, slugs_of
from longeval.store.records import Record
from longeval.studies.tasks.report.effective import opening
from longeval.studies.tasks.report.figures import DepthTable, depth_data, depth_figure, depth_table, score_figure
from longeval.studies.tasks.report.notes import CHANCE_MARK, is_chance, scored_facts
from longeval.studies.tasks.report.pairs import pair_data, pair_table, paper_pair_table, task_pairs
from longeval.studies.tasks.report.samples import MOST_BYTES, sample_data
from longeval.studies.tasks.report.scores import (
    beside_tables,
    caption,
    further_table,
    heading,
    paper_table,
    summary_table,
    task_table,
)
from longeval.studies.tasks.report.tables import TaskSet, TaskTable, build_task_sets
from longeval.values import format_length

_BARS = (
    "Bars are 95% intervals, drawn a little beside each other; a point without a bar has none (an average, or too few "
    "independent samples). Dotted: the native length, and what guessing scores."
)


def sections(collection: Collection) -> list[Section]:
    """One section for each model and way of asking, in the order of their first cells."""
    records = collection.current
    sets = build_task_sets(records)
    grids = build_grids(records) if sets else []
    slugs = slugs_of([tasks.title for tasks in sets])
    most = MOST_BYTES // max(1, min(len(sets), MAX_DRAWN))
    found = []
    for number, (tasks, slug) in enumerate(zip(sets, slugs, strict=True)):
        section = _section(tasks, slug, grids, collection, is_drawn=collection.is_drawn(number))
        if number < MAX_DRAWN:
            view = View(kind="samples", title="Samples", load=partial(sample_data, tasks, collection, most))
            section = replace(section, views=(view,))
        found.append(section)
    return found


def summary(records: Sequence[Record]) -> list[Table]:
    """Tables for the terminal."""
    return [summary_table(tasks) for tasks in build_task_sets(records)]


def _section(tasks: TaskSet, slug: str, grids: Sequence[Grid], collection: Collection, *, is_drawn: bool) -> Section:
    compared_tables = () if collection.pairs else tasks.tasks
    pairs = [pair for table in compared_tables for pair in task_pairs(table, collection.samples)]
    depths = {
        table.title: found for table in tasks.tasks if (found := depth_table(table, collection.samples)) is not None
    }
    unstored = [
        table.title
        for table in tasks.tasks
        if any(record.status == "ok" and not collection.samples(record.cell) for record in table.records)
    ]
    blocks: list[Block] = [*server_notes(tasks.records), Paragraph(text=caption(tasks, unstored))]
    if is_drawn and (chart := score_figure(tasks)) is not None:
        blocks.append(Figure(name=f"score-{slug}", description="Score by context length", chart=chart))
        blocks.append(Paragraph(text=_BARS))
    blocks += _task_blocks(tasks, slug, depths)
    paper = [paper_table(tasks, slug)]
    if tasks.further:
        blocks += [Heading(text="Further metrics"), further_table(tasks.further)]
    if pairs:
        compared = pair_table(pairs, tasks.title, slug)
        paper.append(paper_pair_table(compared))
        blocks += [Heading(text="Resonance against its base, sample by sample"), compared]
    beside = list(beside_tables(tasks, grids))
    if beside:
        blocks += [Heading(text="Perplexity and tasks beside each other"), *beside]
    has = {"has_depths": bool(depths), "has_pairs": bool(pairs)}
    blocks += [Heading(text="How the tasks were scored"), scored_facts(tasks, **has)]
    return Section(
        title=tasks.title,
        blocks=tuple(blocks),
        paper=tuple(paper),
        data=(_score_data(tasks), pair_data(tasks, pairs), depth_data(tasks, depths.values())),
        published=tuple(published_blocks(tasks)),
        differs=(tasks.differs, *(table.differs for table in (*tasks.tasks, *tasks.groups))),
        is_drawn=is_drawn,
    )


def row_sets(collection: Collection) -> list[RowSet]:
    """The tables of tasks by their main metric, for `--pairs`."""
    return [
        RowSet(
            subject=f"{table.task}: {table.metric}",
            model=tasks.model,
            differs=", ".join(filter(None, (tasks.differs, table.differs))),
            rows=table.rows,
            found=collection.samples,
        )
        for tasks in build_task_sets(collection.current)
        for table in tasks.tasks
    ]


def _task_blocks(tasks: TaskSet, slug: str, depths: dict[str, DepthTable]) -> Iterable[Block]:
    """A table for each task, with its map of depths, and for each average."""
    tables = (*tasks.tasks, *tasks.groups)
    for table, name in zip(tables, slugs_of([table.title for table in tables]), strict=True):
        yield Heading(text=heading(table))
        yield task_table(table)
        if table.members is None and (found := depths.get(table.title)) is not None:
            description = f"{table.title} by depth and length"
            yield Figure(name=f"depth-{slug}-{name}", description=description, chart=depth_figure(found, tasks.title))


def _score_data(tasks: TaskSet) -> Data:
    """One row per method, length, task (or average) and metric; values and errors as the records have them."""
    rows = [
        {
            "model": tasks.model,
            "differs": tasks.differs,
            "task": table.title,
            "metric": table.metric,
            "kind": kind,
            "pe": row.label,
            "factor": record.factor,
            "length": length,
            **_numbers(record, table.chance if kind == "main" else None),
        }
        for kind, tables in (("main", tasks.tasks), ("average", tasks.groups), ("further", tasks.further))
        for table in tables
        for row in table.rows
        for length, record in sorted(row.cells.items())
    ]
    return Data(name="scores", rows=tuple(rows))


def _numbers(record: Record, chance: float | None) -> dict[str, Any]:
    how = record.params.get("ci") or {}
    return {
        "status": record.status,
        "value": record.value,
        "stderr": record.params.get("stderr"),
        "ci_low": record.ci_low,
        "ci_high": record.ci_high,
        "ci_method": how.get("method"),
        "ci_unit": how.get("kind"),
        "ci_units": how.get("units"),
        "chance": chance,
        "n": record.n,
        "documents": record.documents,
        "truncated": record.truncated,
        "skipped": record.skipped,
        "cell": record.cell,
        "error": record.error,
    }


# Published scores beside ours, and every difference of setting in words.


def published_blocks(tasks: TaskSet) -> Iterator[Block]:
    """A table of each paper about the same tasks with ours below, and a list of what differs."""
    for published in published_sets():
        tables = {table.task: table for table in tasks.tasks if table.task in published.columns}
        if published.kind == "tasks" and tables:
            yield from _comparison(published, tasks, tables)


def _comparison(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable]) -> tuple[Block, ...]:
    members = set(published.columns) - {AVERAGE}
    averages = next((table for table in tasks.groups if set(table.members or ()) == members), None)
    shown: dict[str, TaskTable | None] = {
        column: averages if column == AVERAGE else tables[column]
        for column in published.columns
        if column in tables or column == AVERAGE
    }
    length = max(length for table in tables.values() for length in table.lengths)
    rows: dict[tuple[str, str], GridRow] = {}
    for table in tables.values():
        for row in table.rows:
            if length in row.cells:
                rows.setdefault((row.label, factor_text(row)), row)
    return comparison_blocks(
        published,
        tasks.model,
        [OwnRow(row, length, [_own_cell(table, row, length) for table in shown.values()]) for row in rows.values()],
        title=tasks.model,
        columns=list(shown),
        number="{:.2f}".format,
        differences=_differences(published, tables, averages, length),
    )


def _own_cell(table: TaskTable | None, row: GridRow, length: int) -> TableCell:
    """The score in percent of the row with the same label and factor."""
    if table is None:
        return DASH
    same = (row.label, factor_text(row))
    record = next((r.cells.get(length) for r in table.rows if (r.label, factor_text(r)) == same), None)
    if record is None or record.value is None:
        return DASH
    interval = None
    if record.ci_low is not None and record.ci_high is not None:
        interval = f"{100 * record.ci_low:.1f}", f"{100 * record.ci_high:.1f}"
    return TableCell(
        text=f"{100 * record.value:.2f}",
        interval=interval,
        note="" if record.n is None else f"(n {record.n:,})",
        mark=CHANCE_MARK if is_chance(table, record) else "",
    )


def _differences(
    published: PublishedSet, tables: dict[str, TaskTable], averages: TaskTable | None, length: int
) -> Iterator[str]:
    records = [record for table in tables.values() for record in table.records]
    params = records[0].params
    yield "unit: percent here, ours converted; fractions from 0 to 1 in our own tables"
    yield "error: ours have a 95% interval where there is one, and n samples; theirs were published without"
    yield f"window: ours at {format_length(length)} tokens, the longest here; theirs as said above"
    policy = params.get("overlong")
    if policy != published.cut:
        yield f"cut: theirs by --overlong {published.cut}, ours by --overlong {policy}"
    elif policy is not None and "leval_codeu" in tables:
        yield "cut: theirs kept the end of CodeU's documents, ours the beginning"
    if any(record.params.get("own_prompts") for record in records):
        yield "prompts: ours are in longeval's own words, theirs are L-Eval's"
    template = params.get("chat_template")
    if template is not None:
        yield f"chat template: {'on' if template else 'off'} in ours; not recorded for theirs"
    tokens = sorted({count for record in records if (count := record.params.get("max_new_tokens")) is not None})
    if published.answers is not None and tokens != [published.answers]:
        shown = " or ".join(f"{count:,}" for count in tokens) or "none"
        yield f"answers: theirs have up to {published.answers} new tokens, ours {shown}"
    limits = sorted({limit for record in records if (limit := record.params.get("limit")) is not None})
    if limits:
        yield f"samples: theirs are all, ours at most {' or '.join(map(str, limits))} of each task (--limit)"
    if any(is_chance(table, record) for table in tables.values() for record in table.records):
        yield f"{CHANCE_MARK}: ours can't be told from guessing; theirs have no errors"
    left_out = [column for column in published.columns if column != AVERAGE and column not in tables]
    if left_out:
        yield f"tasks that this report doesn't have: {', '.join(left_out)}"
    if averages is None or not any(record.value is not None for record in averages.records):
        yield "no average of ours: not all of its tasks have a score here"


REPORT = StudyReport(
    subject="tasks",
    across="context length",
    sections=sections,
    summary=summary,
    row_sets=row_sets,
    figures=("score-*", "depth-*"),
    data=("scores.csv", "score_pairs.csv", "depths.csv", "effective.csv"),
    opening=opening,
)
