"""From run folders to a report: one document of what the studies say of the cells, written in every format.

A report is written whole or not at all: every file is written beside its name, then all are renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from longeval.errors import LongEvalError, reason
from longeval.files import working_folder, write_whole
from longeval.report.charts import PICTURE_FORMATS
from longeval.report.collect import LONGEVAL_REPORT, MAX_DRAWN, Collection, collect
from longeval.report.document import (
    Block,
    Document,
    Paragraph,
    Preface,
    Prose,
    Section,
    Table,
    code,
    joined,
    prose,
)
from longeval.report.effective import TITLE
from longeval.report.facts import provenance_facts, repeat_blocks, unique
from longeval.report.formats import formats
from longeval.report.formats.csv import csv_text
from longeval.report.formats.json import records_json
from longeval.report.numbers import counted
from longeval.report.pairs import DATA_NAME, RowSet, pairs_section
from longeval.report.tables import is_group
from longeval.store.losses import LOSSES
from longeval.store.records import Record

_PUBLISHED = (
    "From papers, and not computed here. Ours stand below them in the same table so that they can be read together; no "
    "conclusion should rest on a difference that the list under a table explains as well."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyReport:
    """What a study says of its cells; each is made in the study's own `report` module."""

    subject: str
    """What its tables show, as a part of the report's title: `perplexity`."""
    sections: Callable[[Collection], Sequence[Section]]
    """Sections of a report. It gets all cells, and leaves those of other studies out."""
    summary: Callable[[Sequence[Record]], Sequence[Table]]
    """Tables for the terminal, from records of any study."""
    opening: Callable[[Collection], Sequence[Section]] = lambda collection: ()
    """Effective lengths, which open the report; a section for each table of theirs."""
    figures: tuple[str, ...] = ()
    """Patterns of its figures' names without suffix (`score-*`), by which those of an earlier report are found."""
    data: tuple[str, ...] = ()
    """Names of its data's files, by which those of an earlier report are found."""
    row_sets: Callable[[Collection], Sequence[RowSet]] = lambda _: ()
    """Tables whose rows `--pairs` may compare."""
    across: str = ""
    """What the columns of its tables are, as the end of the title: `context length`."""
    introduction: str = ""
    """A paragraph in front of all sections."""
    command: str = LONGEVAL_REPORT
    """The command that makes the report; studies share `longeval report` unless they have one of their own."""
    name: str = "report"
    """Name of the Markdown file in a run folder, without suffix."""

    @property
    def own_files(self) -> tuple[str, ...]:
        """Patterns of the names of all its files."""
        return (*(f"{name}.{suffix}" for name in self.figures for suffix in PICTURE_FORMATS), *self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenReport:
    """What `write_report` made."""

    files: tuple[str, ...]
    """Paths, the Markdown or the page first."""
    records: tuple[Record, ...]
    """All records of the report."""
    notes: tuple[str, ...]
    """What the reader must know about cells found twice."""


def write_report(
    runs: Sequence[str],
    *,
    studies: Sequence[StudyReport],
    out: str | None = None,
    json_path: str | None = None,
    command: str | None = None,
    preface: Preface | None = None,
    published: bool = False,
    pairs: Sequence[str] = (),
) -> WrittenReport:
    """Writes the report of one or several run folders; files of an earlier report are overwritten.

    Args:
        runs: Run folders (or fsspec URLs).
        studies: Who says something of their cells, in the order of their sections. All have the same `command`, and
            cells that another one shows are left out.
        out: The Markdown file, `reports/demo.md`; its siblings are demo.csv, demo.json, demo.tex and the folder
            demo_files. Or the page, `reports/demo.html`, which has everything in it. None: Markdown in the first run
            folder.
        json_path: One more file for the JSON array of records.
        command: The command line, for the report's own provenance.
        preface: A title and text of the author's own.
        published: Add a section of numbers from papers about the same tasks and data.
        pairs: Pairs of rows to compare, in place of each method with its resonance form (`report.pairs`).

    Raises:
        LongEvalError: No run folder, no cells, a pair that isn't there, or a place that can't be written. Nothing has
            been written then.
    """
    path = report_path(runs, out, f"{studies[0].name}.md")
    if json_path is not None and os.path.isdir(json_path):
        raise LongEvalError(f"--json {json_path}: is a folder", "Name a file, or - for standard output.")
    stem, dotted = os.path.splitext(path)
    whole = formats(alone=True).get(dotted.removeprefix("."))
    collection = dataclasses.replace(collect(runs, studies[0].command), pairs=tuple(pairs), all_drawn=whole is not None)
    base = os.path.basename(stem)
    known = formats() if whole is None else {}
    document = build_document(
        collection,
        studies,
        command=command or studies[0].command,
        preface=preface or Preface(),
        published=published,
        files=tuple(f"{base}.{suffix}" for suffix in known if suffix != "md"),
        folder=f"{base}_files",
    )
    if whole is not None:
        files = {path: whole(document).encode()}
    else:
        files = {f"{stem}.{suffix}": render(document).encode() for suffix, render in known.items()}
        files |= _own_files(f"{stem}_files", document)
    flags = dict.fromkeys(files, "--out")
    if json_path is not None and os.path.abspath(json_path) not in map(os.path.abspath, files):
        files[json_path], flags[json_path] = records_json(document.records).encode(), "--json"
    _write_all(files, flags)
    if whole is None:
        of_pairs = [f"{DATA_NAME}.csv", *(f"{DATA_NAME}-*.{suffix}" for suffix in PICTURE_FORMATS)]
        _remove_stale(f"{stem}_files", files, [*of_pairs, *(name for study in studies for name in study.own_files)])
    return WrittenReport(files=tuple(files), records=document.records, notes=collection.notes)


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
    found = [(study, study.sections(collection)) for study in studies]
    speaking = [study for study, own in found if own]
    sections = [section for _, own in found for section in own]
    notes = [*collection.notes, *_told_apart(sections), *_undrawn(sections)]
    sections = [*_opening(studies, collection), *sections]
    if collection.pairs:
        row_sets = [rows for study in studies for rows in study.row_sets(collection)]
        sections.append(pairs_section(collection.pairs, row_sets, is_drawn=collection.is_drawn))
    if published:
        sections.append(_published_section(sections))
    repeat = Section(title="How to repeat it", blocks=tuple(repeat_blocks(collection, command)))
    provenance = Section(title="Provenance", blocks=(provenance_facts(collection.records),))
    return Document(
        title=preface.title or _title(speaking),
        preface="\n\n".join(filter(None, (preface.text.strip(), *(study.introduction for study in speaking)))),
        summary=_summary(collection),
        files=files,
        folder=folder,
        notes=tuple(notes),
        sections=(*sections, repeat, provenance),
        records=tuple(collection.records),
        older=collection.older,
    )


def _title(studies: Sequence[StudyReport]) -> str:
    """`Perplexity and tasks by context length`; without the columns where studies have different ones."""
    across = {study.across for study in studies}
    by = f" by {across.pop()}" if len(across) == 1 and all(across) else ""
    title = f"{' and '.join(study.subject for study in studies)}{by}"
    return title[:1].upper() + title[1:] or "Report"


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
    num_trainings = sum(cell.artefact is LOSSES for cell in collection.cells)
    if any(0 < number < len(first) for number in (num_tasks, num_groups, num_trainings)):
        yield num_trainings, "trainings"
        yield len(first) - num_tasks - num_groups - num_trainings, "of perplexity"
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


def _opening(studies: Sequence[StudyReport], collection: Collection) -> list[Section]:
    """One section of the effective lengths that all studies found; none where they found none."""
    found = [section for study in studies for section in study.opening(collection)]
    if not found:
        return []
    return [
        Section(
            title=TITLE,
            blocks=tuple(_said_once([block for section in found for block in section.blocks])),
            paper=tuple(table for section in found for table in section.paper),
            data=tuple(data for section in found for data in section.data),
        )
    ]


def _said_once(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks, where captions and paragraphs that are equal to an earlier one are left out."""
    said: set[Prose] = set()
    for block in blocks:
        if isinstance(block, Paragraph):
            if block.text in said:
                continue
            said.add(block.text)
        if isinstance(block, Table) and block.caption in said:
            yield dataclasses.replace(block, caption="Read as the tables above.")
            continue
        if isinstance(block, Table) and block.caption:
            said.add(block.caption)
        yield block


def _published_section(sections: Sequence[Section]) -> Section:
    """All that the studies have found in papers, or a sentence that says that there is nothing."""
    found: list[Block] = [block for section in sections for block in section.published]
    if found:
        return Section(title="Published numbers", blocks=(Paragraph(text=_PUBLISHED), *found))
    nothing = prose("None of the tables kept in `published.yaml` is about the tasks or data of this report.")
    return Section(title="Published numbers", blocks=(Paragraph(text=nothing),))


def _own_files(folder: str, document: Document) -> dict[str, bytes]:
    """Figures and data, which lie in the report's own folder."""
    from longeval.report import plots  # matplotlib takes long to import, and a page alone needs none of it

    files: dict[str, bytes] = {}
    for figure in (figure for section in document.sections for figure in section.figures):
        picture = plots.draw(figure.chart)
        files |= {f"{folder}/{figure.name}.{suffix}": getattr(picture, suffix) for suffix in PICTURE_FORMATS}
    for data in document.data:
        files[f"{folder}/{data.name}.csv"] = csv_text(data.columns, data.rows).encode()
    return files


def report_path(runs: Sequence[str], out: str | None, default: str) -> str:
    """Where the report goes: `out`, or `default` in the first run folder; LongEvalError for a place that can't be."""
    if out is None:
        if "://" in runs[0]:
            raise LongEvalError(
                f"--out: {runs[0]} is not a local folder to put the report into", "Name a local file: --out report.md."
            )
        return os.path.join(runs[0], default)
    if os.path.isdir(out):
        raise LongEvalError(f"--out {out}: is a folder", f"Name a file in it: {os.path.join(out, default)}.")
    if os.path.splitext(out)[1].removeprefix(".") not in ("md", *formats(alone=True)):
        raise LongEvalError(
            f"--out {out}: must end in .md or .html",
            "report.md is Markdown with CSV, JSON, LaTeX and figures beside it; report.html is one page with charts.",
        )
    return out


def _remove_stale(folder: str, files: Container[str], patterns: Iterable[str]) -> None:
    """Removes what an earlier report left in its own folder (names that fit `patterns`) and is not among `files`."""
    for pattern in patterns:
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            if path not in files:
                os.unlink(path)


def _write_all(files: dict[str, bytes], flags: dict[str, str]) -> None:
    """Writes all files or none: on any error, temporary files and folders made on the way are removed again."""
    beside: dict[str, str] = {}
    working: dict[str, str] = {}
    made: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            for path, content in files.items():
                folder = os.path.dirname(os.path.abspath(path))
                try:
                    made += _make_folders(folder)
                    if folder not in working:
                        working[folder] = stack.enter_context(working_folder(folder))
                    beside[path] = os.path.join(working[folder], os.path.basename(path))
                    if os.path.isdir(path):
                        raise IsADirectoryError(21, "it is a folder", path)
                    write_whole(beside[path], content)
                except OSError as error:
                    raise LongEvalError(
                        f"{flags[path]}: can't write {path} ({reason(error)})", "Choose a place that you may write to."
                    ) from error
            for path, temporary in beside.items():
                os.replace(temporary, path)
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def _make_folders(folder: str) -> list[str]:
    """Makes a folder with its parents; returns those that were not there, outermost first."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    made = missing[::-1]
    for path in made:
        os.mkdir(path)
    return made
