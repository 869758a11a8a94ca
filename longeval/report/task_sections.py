"""Everything that a report says about the tasks of one model: analysed here, written in task_markdown.py and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longeval.report.beside import Beside, beside
from longeval.report.collect import Collection
from longeval.report.depths import DepthTable, depth_table
from longeval.report.grid import Grid
from longeval.report.plots import Picture
from longeval.report.sections import MAX_DRAWN
from longeval.report.task_pairs import TaskPair, task_pairs
from longeval.report.task_plots import depth_figure, score_figure
from longeval.report.task_tables import TaskSet, build_task_sets, slug_of


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """A task's scores by depth, and their picture."""

    depths: DepthTable
    slug: str
    """Its name in file names, unique in the report."""
    picture: Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSection:
    """One set of tasks with what belongs to it."""

    tasks: TaskSet
    slug: str
    """Its name in file names, unique in the report."""
    pairs: tuple[TaskPair, ...]
    curve: Picture | None
    """Score by context length; None with fewer than two lengths."""
    maps: tuple[DepthMap, ...]
    beside: tuple[Beside, ...]
    """Perplexity of the same model, by length; empty where the report has none."""
    unstored: tuple[str, ...]
    """Tasks with a score whose samples are not stored: nothing here is said of them that needs samples."""


def build_task_sections(collection: Collection, grids: Sequence[Grid]) -> list[TaskSection]:
    """Analyses the tasks of a collection: one section per model and way of asking, in the order of their titles.

    Args:
        collection: The cells.
        grids: Perplexity tables of the same report.
    """
    sections: list[TaskSection] = []
    for number, tasks in enumerate(build_task_sets(collection.records), start=1):
        slug = slug_of(tasks.title)
        if slug in {section.slug for section in sections}:
            slug = f"{slug}-{number}"
        sections.append(
            TaskSection(
                tasks=tasks,
                slug=slug,
                pairs=tuple(pair for table in tasks.tasks for pair in task_pairs(table, collection.samples)),
                curve=score_figure(tasks) if number <= MAX_DRAWN else None,
                maps=_maps(tasks, slug, collection),
                beside=tuple(beside(tasks, grids)),
                unstored=_unstored(tasks, collection),
            )
        )
    return sections


def _maps(tasks: TaskSet, slug: str, collection: Collection) -> tuple[DepthMap, ...]:
    maps: list[DepthMap] = []
    for number, table in enumerate(tasks.tasks, start=1):
        depths = depth_table(table, collection.samples)
        if depths is None:
            continue
        name = f"{slug}-{slug_of(table.title)}"
        if name in {other.slug for other in maps}:
            name = f"{name}-{number}"
        maps.append(DepthMap(depths=depths, slug=name, picture=depth_figure(depths)))
    return tuple(maps)


def _unstored(tasks: TaskSet, collection: Collection) -> tuple[str, ...]:
    return tuple(
        table.title
        for table in tasks.tasks
        if any(record.status == "ok" and not collection.samples(record.cell) for record in table.records)
    )
