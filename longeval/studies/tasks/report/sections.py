"""The section that a report has for the tasks of each model, asked in one way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from longeval.report.build import MAX_DRAWN, StudyReport
from longeval.report.collect import Collection
from longeval.report.document import Block, Data, Figure, Heading, Paragraph, Section, Table
from longeval.report.facts import server_notes
from longeval.report.grid import Grid, build_grids
from longeval.store.records import Record
from longeval.studies.tasks.report.beside import beside_tables
from longeval.studies.tasks.report.depths import DepthTable, depth_data, depth_table
from longeval.studies.tasks.report.pairs import pair_data, pair_table, paper_pair_table, task_pairs
from longeval.studies.tasks.report.published import published_blocks
from longeval.studies.tasks.report.scored import scored_facts
from longeval.studies.tasks.report.scores import caption, further_table, heading, paper_table, summary_table, task_table
from longeval.studies.tasks.report.tables import TaskSet, build_task_sets, slug_of

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
