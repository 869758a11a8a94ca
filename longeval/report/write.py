"""Makes a whole report from run folders, or nothing: every file is written beside its name, then all are renamed."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import matplotlib.style

from longeval.errors import LongEvalError
from longeval.files import working_folder
from longeval.report.collect import collect
from longeval.report.flat import pairs_csv, positions_csv, records_csv, records_json
from longeval.report.latex import latex_document
from longeval.report.markdown import Preface, ReportNames, markdown_report
from longeval.report.sections import Section, build_sections
from longeval.report.task_flat import depths_csv, score_pairs_csv, scores_csv
from longeval.report.task_latex import task_tables_latex
from longeval.report.task_sections import TaskSection, build_task_sections
from longeval.store.records import Record

_TABLES = ("pairs.csv", "positions.csv", "scores.csv", "score_pairs.csv", "depths.csv")
"""Tables in the report's own folder."""

_FIGURES = tuple(
    f"{kind}-*.{suffix}" for kind in ("perplexity", "position", "score", "depth") for suffix in ("png", "svg")
)
"""Patterns of the figures there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenReport:
    """What `write_report` made."""

    files: tuple[str, ...]
    """Paths, the Markdown first."""
    records: tuple[Record, ...]
    """All records of the report."""
    notes: tuple[str, ...]
    """What the reader must know about cells found twice."""


def write_report(
    runs: Sequence[str],
    *,
    out: str | None = None,
    json_path: str | None = None,
    command: str = "longeval report",
    preface: Preface | None = None,
    published: bool = False,
) -> WrittenReport:
    """Writes the report of one or several run folders; files of an earlier report are overwritten.

    Args:
        runs: Run folders (or fsspec URLs).
        out: The Markdown file, `reports/demo.md`; its siblings are demo.csv, demo.json, demo.tex and the folder
            demo_files. Default: report.md in the first run folder.
        json_path: One more file for the JSON array of records.
        command: The command line, for the report's own provenance.
        preface: A title and text of the author's own.
        published: Add a section of numbers from papers about the same tasks and data.

    Raises:
        LongEvalError: No run folder, no cells, or a place that can't be written. Nothing has been written then.
    """
    markdown_file = markdown_path(runs, out)
    if json_path is not None and os.path.isdir(json_path):
        raise LongEvalError(f"--json {json_path}: is a folder", "Name a file, or - for standard output.")
    collection = collect(runs)
    records = collection.records
    with matplotlib.style.context("default"):  # not that of a matplotlibrc in the current folder
        sections = build_sections(collection)
        task_sections = build_task_sections(collection, [section.grid for section in sections])
    stem = markdown_file.removesuffix(".md")
    names = ReportNames(
        folder=f"{os.path.basename(stem)}_files",
        beside=tuple(f"{os.path.basename(stem)}.{suffix}" for suffix in ("csv", "json", "tex")),
    )
    array = records_json(records).encode()
    text = markdown_report(
        collection, sections, task_sections, names, command, preface or Preface(), published=published
    )
    task_tables = [table for section in task_sections for table in task_tables_latex(section)]
    files = {
        markdown_file: text.encode(),
        f"{stem}.csv": records_csv(records, collection.older).encode(),
        f"{stem}.json": array,
        f"{stem}.tex": latex_document([(section.grid, section.pairs) for section in sections], task_tables).encode(),
        **_section_files(f"{stem}_files", sections),
        **_task_files(f"{stem}_files", task_sections),
    }
    flags = dict.fromkeys(files, "--out")
    if json_path is not None and os.path.abspath(json_path) not in {os.path.abspath(path) for path in files}:
        files[json_path], flags[json_path] = array, "--json"
    write_all(files, flags)
    remove_stale(f"{stem}_files", files, (*_FIGURES, *_TABLES))
    return WrittenReport(files=tuple(files), records=tuple(records), notes=collection.notes)


def markdown_path(runs: Sequence[str], out: str | None, default: str = "report.md") -> str:
    """Where the Markdown goes: `out`, or `default` in the first run folder; LongEvalError for a place that can't be."""
    if out is None:
        if "://" in runs[0]:
            raise LongEvalError(
                f"--out: {runs[0]} is not a local folder to put the report into", "Name a local file: --out report.md."
            )
        return os.path.join(runs[0], default)
    if os.path.isdir(out):
        raise LongEvalError(f"--out {out}: is a folder", f"Name a file in it: {os.path.join(out, default)}.")
    if not out.endswith(".md") or os.path.basename(out) == ".md":
        raise LongEvalError(
            f"--out {out}: must end in .md",
            "The report is Markdown; CSV, JSON, LaTeX and figures are written beside it under the same name.",
        )
    return out


def _section_files(folder: str, sections: Sequence[Section]) -> dict[str, bytes]:
    """Figures and small tables of the report's own folder."""
    files: dict[str, bytes] = {}
    for section in sections:
        for kind, picture in (("perplexity", section.curve), ("position", section.position)):
            if picture is not None:
                files[f"{folder}/{kind}-{section.slug}.png"] = picture.png
                files[f"{folder}/{kind}-{section.slug}.svg"] = picture.svg
    if any(section.pairs for section in sections):
        files[f"{folder}/pairs.csv"] = pairs_csv(sections).encode()
    if any(section.position_rows for section in sections):
        files[f"{folder}/positions.csv"] = positions_csv(sections).encode()
    return files


def _task_files(folder: str, sections: Sequence[TaskSection]) -> dict[str, bytes]:
    """Figures and tables of tasks in the report's own folder."""
    pictures = {f"score-{section.slug}": section.curve for section in sections if section.curve is not None}
    pictures |= {f"depth-{item.slug}": item.picture for section in sections for item in section.maps}
    files = {f"{folder}/{name}.png": picture.png for name, picture in pictures.items()}
    files |= {f"{folder}/{name}.svg": picture.svg for name, picture in pictures.items()}
    if sections:
        files[f"{folder}/scores.csv"] = scores_csv(sections).encode()
    if any(section.pairs for section in sections):
        files[f"{folder}/score_pairs.csv"] = score_pairs_csv(sections).encode()
    if any(section.maps for section in sections):
        files[f"{folder}/depths.csv"] = depths_csv(sections).encode()
    return files


def remove_stale(folder: str, files: Collection[str], patterns: Iterable[str]) -> None:
    """Removes what an earlier report left in its own folder (names that fit `patterns`) and is not among `files`."""
    for pattern in patterns:
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            if path not in files:
                os.unlink(path)


def write_all(files: dict[str, bytes], flags: dict[str, str]) -> None:
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
                    _write(path, beside[path], content)
                except OSError as error:
                    raise LongEvalError(
                        f"{flags[path]}: can't write {path} ({error.strerror})", "Choose a place that you may write to."
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


def _write(path: str, temporary: str, content: bytes) -> None:
    """Writes what shall become `path` under another name; a folder called `path` is refused."""
    if os.path.isdir(path):
        raise IsADirectoryError(21, "it is a folder", path)
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
