"""From cells to a document: what the studies say of them, how to repeat it, and where it was computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longeval.report.collect import Collection
from longeval.report.document import Block, Document, Paragraph, Preface, Prose, Section, Table, code, joined, prose
from longeval.report.facts import provenance_facts, repeat_blocks, unique
from longeval.report.numbers import counted
from longeval.report.rows import is_group
from longeval.store.records import Record

MAX_DRAWN = 20
"""Sections of one study that get figures, the first ones: drawing one takes as long as hundreds of cells, and nobody
looks at hundreds."""

_PUBLISHED = (
    "From papers, and not computed here. Ours stand below them in the same table so that they can be read together; no "
    "conclusion should rest on a difference that the list under a table explains as well."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyReport:
    """What a study says of its cells; each is made in the study's own `report` module."""

    subject: str
    """What its tables show, as a title begins: `Perplexity`."""
    sections: Callable[[Collection], Sequence[Section]]
    """Sections of a report. It gets all cells, and leaves those of other studies out."""
    summary: Callable[[Sequence[Record]], Sequence[Table]]
    """Tables for the terminal, from records of any study."""
    files: tuple[str, ...]
    """Patterns of the names that its figures and data have, by which those of an earlier report are found."""


def build_document(
    collection: Collection,
    studies: Sequence[StudyReport],
    *,
    command: str,
    preface: Preface,
    published: bool,
    files: tuple[str, ...] = (),
    folder: str = "",
) -> Document:
    """The document of a collection.

    Args:
        collection: All cells.
        studies: Who says something of them, in the order of their sections.
        command: The command line that makes the report.
        preface: A title and text of the author's own.
        published: Add the section of numbers from papers.
        files: Names of the report in other formats.
        folder: Name of the folder of its figures and data.
    """
    sections: list[Section] = []
    subjects: list[str] = []
    for study in studies:
        found = study.sections(collection)
        sections += found
        subjects += [study.subject] if found else []
    notes = [*collection.notes, *_told_apart(sections), *_undrawn(sections)]
    if published:
        sections.append(_published_section(sections))
    repeat = Section(title="How to repeat it", blocks=tuple(repeat_blocks(collection, command)))
    provenance = Section(title="Provenance", blocks=(provenance_facts(collection.records),))
    return Document(
        title=preface.title or _title(subjects),
        preface=preface.text,
        summary=_summary(collection),
        files=files,
        folder=folder,
        notes=tuple(notes),
        sections=(*sections, repeat, provenance),
        records=tuple(collection.records),
        older=collection.older,
    )


def _title(subjects: Sequence[str]) -> str:
    """`Perplexity and tasks by context length`."""
    return f"{' and '.join(subjects).capitalize()} by context length"


def _summary(collection: Collection) -> Prose:
    statuses = [cell.status for cell in collection.cells]
    counts = ", ".join(
        f"{statuses.count(status)} {word}"
        for status, word in (("ok", "done"), ("failed", "failed"), ("skipped", "skipped"))
        if status in statuses
    )
    dates = sorted(record.provenance.date[:10] for record in collection.records)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    folders = joined(", ", (code(run.path) for run in collection.runs))
    kinds = ", ".join(f"{count:,} {kind}" for count, kind in _kinds(collection) if count)
    by_kind = f" By kind: {kinds}." if kinds else ""
    number = counted(len(collection.cells), "cell")
    return prose("{} ({}) from {}, computed {}.{}", number, counts, folders, when, by_kind)


def _kinds(collection: Collection) -> Iterator[tuple[int, str]]:
    """How many cells of each kind there are; nothing where all are of one kind."""
    first = [cell.records[0] for cell in collection.cells]
    num_tasks = sum(record.task is not None and not is_group(record) for record in first)
    num_groups = sum(map(is_group, first))
    if 0 < num_tasks < len(first) or 0 < num_groups < len(first):
        yield len(first) - num_tasks - num_groups, "of perplexity"
        yield num_tasks, "of tasks"
        yield num_groups, "averages of groups"


def _told_apart(sections: Sequence[Section]) -> list[str]:
    """A sentence on tables that stand apart since their cells were asked with other settings; none without any."""
    different = unique(differs for section in sections for differs in section.differs if differs)
    if not different:
        return []
    return [
        "Not all cells were asked with the same settings. Those that differ stand in sections or tables of their own, "
        f"named by the difference ({'; '.join(different)}), and are not compared with each other."
    ]


def _undrawn(sections: Sequence[Section]) -> list[str]:
    """A sentence on tables without figures where there are very many; none without any."""
    undrawn = sum(not section.is_drawn for section in sections)
    if not undrawn:
        return []
    return [
        f"Figures are drawn of the first {MAX_DRAWN} tables, not of the other {undrawn}. A report of fewer run folders "
        "has them."
    ]


def _published_section(sections: Sequence[Section]) -> Section:
    """All that the studies have found in papers, or a sentence that says that there is nothing."""
    found: list[Block] = [block for section in sections for block in section.published]
    if found:
        return Section(title="Published numbers", blocks=(Paragraph(text=_PUBLISHED), *found))
    nothing = prose("None of the tables kept in `published.yaml` is about the tasks or data of this report.")
    return Section(title="Published numbers", blocks=(Paragraph(text=nothing),))
