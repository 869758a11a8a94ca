"""The section that a report has for the tasks of each model, asked in one way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from longeval.report.build import MAX_DRAWN, StudyReport
from longeval.report.collect import Collection
from longeval.report.document import Block, Data, Figure, Heading, Paragraph, Section, Table, TableCell
from longeval.report.facts import server_notes
from longeval.report.published import (
    AVERAGE,
    PublishedSet,
    comparison_blocks,
    factor_differences,
    model_differences,
    own_row,
    published_columns,
    published_row,
    published_sets,
)
from longeval.report.rows import GridRow, factor_text
from longeval.report.tables import DASH, Grid, build_grids
from longeval.store.records import Record
from longeval.studies.tasks.report.figures import DepthTable, depth_data, depth_table
from longeval.studies.tasks.report.notes import CHANCE_MARK, is_chance, scored_facts
from longeval.studies.tasks.report.pairs import pair_data, pair_table, paper_pair_table, task_pairs
from longeval.studies.tasks.report.scores import (
    beside_tables,
    caption,
    further_table,
    heading,
    paper_table,
    summary_table,
    task_table,
)
from longeval.studies.tasks.report.tables import TaskSet, TaskTable, build_task_sets, slug_of
from longeval.values import format_length

# Published scores beside ours, and every difference of setting in words.


def published_blocks(tasks: TaskSet) -> Iterator[Block]:
    """A table of each paper about the same tasks with ours below, and a list of what differs."""
    for published in published_sets():
        tables = {table.task: table for table in tasks.tasks if table.task in published.columns}
        if published.kind == "tasks" and tables:
            yield from _comparison(published, tasks, tables)


def _comparison(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable]) -> tuple[Block, ...]:
    columns = [column for column in published.columns if column in tables or column == AVERAGE]
    averages = next((t for t in tasks.groups if set(t.members or ()) == set(published.columns) - {AVERAGE}), None)
    own = {column: averages if column == AVERAGE else tables.get(column) for column in columns}
    length = max(length for table in tables.values() for length in table.lengths)
    rows = [published_row(row, [_percent_cell(row.values.get(column)) for column in columns]) for row in published.rows]
    rows += [
        own_row(tasks.model, row, length, [_own_cell(table, row, length) for table in own.values()])
        for row in _own_rows(list(tables.values()), length)
    ]
    table = Table(columns=published_columns(columns), rows=tuple(rows), left=3)
    differences = [*_differences(published, tasks, tables, length)]
    if averages is None or not any(record.value is not None for record in averages.records):
        differences.append("no average of ours: not all of its tasks have a score here")
    return comparison_blocks(published, tasks.model, table, differences)


def _own_rows(tables: Sequence[TaskTable], length: int) -> list[GridRow]:
    """Methods with a cell at `length` in any of the tables, each once."""
    rows: dict[tuple[str, str], GridRow] = {}
    for table in tables:
        for row in table.rows:
            if length in row.cells:
                rows.setdefault((row.label, factor_text(row)), row)
    return list(rows.values())


def _percent_cell(value: float | None) -> TableCell:
    return DASH if value is None else TableCell(text=f"{value:.2f}")


def _own_cell(table: TaskTable | None, row: GridRow, length: int) -> TableCell:
    """The score of the row with the same label and factor."""
    record = None if table is None else _record(table, row, length)
    if table is None or record is None or record.value is None:
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


def _record(table: TaskTable, row: GridRow, length: int) -> Record | None:
    same = (row.label, factor_text(row))
    return next((r.cells.get(length) for r in table.rows if (r.label, factor_text(r)) == same), None)


def _differences(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable], length: int) -> Iterator[str]:
    records = [record for table in tables.values() for record in table.records]
    params = records[0].params
    yield from model_differences(published, tasks.model)
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
    yield from factor_differences(published, [row for table in tables.values() for row in table.rows])


_BARS = (
    "Bars are 95% intervals, drawn a little beside each other; a point without a bar has none (an average, or too few "
    "independent samples). Dotted: the native length, and what guessing scores."
)


def sections(collection: Collection) -> list[Section]:
    """One section for each model and way of asking, in the order of their first cells."""
    records = collection.current
    sets = build_task_sets(records)
    grids = build_grids(records) if sets else []
    found: list[Section] = []
    slugs: set[str] = set()
    for number, tasks in enumerate(sets, start=1):
        slug = slug_of(tasks.title)
        slug = f"{slug}-{number}" if slug in slugs else slug
        slugs.add(slug)
        found.append(_section(tasks, slug, grids, collection, is_drawn=number <= MAX_DRAWN))
    return found


def summary(records: Sequence[Record]) -> list[Table]:
    """Tables for the terminal."""
    return [summary_table(tasks) for tasks in build_task_sets(records)]


def _section(tasks: TaskSet, slug: str, grids: Sequence[Grid], collection: Collection, *, is_drawn: bool) -> Section:
    from longeval.studies.tasks.report.figures import score_figure  # matplotlib takes its time to import

    pairs = [pair for table in tasks.tasks for pair in task_pairs(table, collection.samples)]
    depths = {
        table.title: found for table in tasks.tasks if (found := depth_table(table, collection.samples)) is not None
    }
    unstored = [
        table.title
        for table in tasks.tasks
        if any(record.status == "ok" and not collection.samples(record.cell) for record in table.records)
    ]
    blocks: list[Block] = [*server_notes(tasks.records), Paragraph(text=caption(tasks, unstored))]
    if is_drawn and (picture := score_figure(tasks)) is not None:
        blocks.append(Figure(name=f"score-{slug}", description="Score by context length", picture=picture))
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


def _task_blocks(tasks: TaskSet, slug: str, depths: dict[str, DepthTable]) -> Iterable[Block]:
    """A table for each task, with its map of depths, and for each average."""
    from longeval.studies.tasks.report.figures import depth_figure

    names: set[str] = set()
    for number, table in enumerate((*tasks.tasks, *tasks.groups), start=1):
        yield Heading(text=heading(table))
        yield task_table(table)
        if table.members is None and (found := depths.get(table.title)) is not None:
            name = f"depth-{slug}-{slug_of(table.title)}"
            name = f"{name}-{number}" if name in names else name
            names.add(name)
            description = f"{table.title} by depth and length"
            yield Figure(name=name, description=description, picture=depth_figure(found))


def _score_data(tasks: TaskSet) -> Data:
    """One row per method, length, task (or average) and metric; values and errors as the records have them."""
    columns = (
        *("model", "differs", "task", "metric", "kind", "pe", "factor", "length", "status", "value", "stderr"),
        *("ci_low", "ci_high", "ci_method", "ci_unit", "ci_units", "chance", "n", "documents", "truncated", "skipped"),
        *("cell", "error"),
    )
    rows = []
    for kind, tables in (("main", tasks.tasks), ("average", tasks.groups), ("further", tasks.further)):
        for table in tables:
            place: dict[str, Any] = {
                "model": tasks.model,
                "differs": tasks.differs,
                "task": table.title,
                "metric": table.metric,
            }
            place |= {"kind": kind, "chance": table.chance if kind == "main" else None}
            for row in table.rows:
                for length, record in sorted(row.cells.items()):
                    method = {"pe": row.label, "factor": record.factor, "length": length}
                    rows.append(place | method | _numbers(record))
    return Data(name="scores", columns=columns, rows=tuple(rows))


def _numbers(record: Record) -> dict[str, Any]:
    how = record.params.get("ci") or {}
    names = ("status", "value", "ci_low", "ci_high", "n", "documents", "truncated", "skipped", "cell", "error")
    drawn = {"ci_method": how.get("method"), "ci_unit": how.get("kind"), "ci_units": how.get("units")}
    return {name: getattr(record, name) for name in names} | {"stderr": record.params.get("stderr")} | drawn


REPORT = StudyReport(
    subject="Tasks",
    sections=sections,
    summary=summary,
    files=(
        *("score-*.png", "score-*.svg", "depth-*.png", "depth-*.svg"),
        *("scores.csv", "score_pairs.csv", "depths.csv"),
    ),
)
