"""Makes PosGen's report from run folders, or nothing: see write.py, whose files these are like."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

import matplotlib.style

from longeval.errors import LongEvalError
from longeval.report.document import Preface
from longeval.report.formats.csv import records_csv
from longeval.report.formats.json import records_json
from longeval.report.formats.latex import latex_document
from longeval.report.posgen_cells import PosGenCollection, collect_posgen
from longeval.report.posgen_curves import row_curves
from longeval.report.posgen_flat import losses_csv, means_csv, pairs_csv, positions_csv
from longeval.report.posgen_latex import posgen_latex
from longeval.report.posgen_markdown import PosGenNames, PosGenSection, posgen_markdown
from longeval.report.posgen_plots import loss_figure, position_figure
from longeval.report.posgen_published import comparison
from longeval.report.posgen_tables import PosGenTable, build_tables
from longeval.report.write import WrittenReport, markdown_path, remove_stale, write_all

_OWN_FILES = (
    *("accuracy-*.png", "accuracy-*.svg", "loss-*.png", "loss-*.svg"),
    *("means.csv", "pairs.csv", "positions.csv", "losses.csv"),
)
"""Patterns of what the report's folder may hold."""


def write_posgen_table(
    runs: Sequence[str],
    *,
    out: str | None = None,
    json_path: str | None = None,
    command: str = "longeval posgen table",
    preface: Preface | None = None,
) -> WrittenReport:
    """Writes the tables and figures of one or several run folders; files of an earlier one are overwritten.

    Args:
        runs: Run folders (or fsspec URLs) with PosGen cells.
        out: The Markdown file, `reports/posgen.md`; its siblings are posgen.csv, posgen.json, posgen.tex and the folder
            posgen_files. Default: posgen.md in the first run folder.
        json_path: One more file for the JSON array of records.
        command: The command line, for the report's own provenance.
        preface: A title and text of the author's own.

    Raises:
        LongEvalError: No run folder, no PosGen cells, or a place that can't be written. Nothing has been written then.
    """
    markdown_file = markdown_path(runs, out, "posgen.md")
    if json_path is not None and os.path.isdir(json_path):
        raise LongEvalError(f"--json {json_path}: is a folder", "Name a file, or - for standard output.")
    found = collect_posgen(runs)
    collection = found.collection
    with matplotlib.style.context("default"):  # not that of a matplotlibrc in the current folder
        sections = posgen_sections(found)
    stem = markdown_file.removesuffix(".md")
    folder, name = f"{stem}_files", os.path.basename(stem)
    names = PosGenNames(folder=f"{name}_files", beside=tuple(f"{name}.{suffix}" for suffix in ("csv", "json", "tex")))
    array = records_json(collection.records).encode()
    tables = [part for section in sections for part in posgen_latex(section.table, section.beside, section.slug)]
    files = {
        markdown_file: posgen_markdown(collection, sections, names, command, preface or Preface()).encode(),
        f"{stem}.csv": records_csv(collection.records).encode(),
        f"{stem}.json": array,
        f"{stem}.tex": latex_document(tables).encode(),
        **_section_files(folder, sections),
    }
    flags = dict.fromkeys(files, "--out")
    if json_path is not None and os.path.abspath(json_path) not in {os.path.abspath(path) for path in files}:
        files[json_path], flags[json_path] = array, "--json"
    write_all(files, flags)
    remove_stale(folder, files, _OWN_FILES)
    return WrittenReport(files=tuple(files), records=tuple(collection.records), notes=collection.notes)


def posgen_sections(found: PosGenCollection) -> list[PosGenSection]:
    """Analyses all cells: one section per table, in the order of their first cells."""
    tables = build_tables(found)
    same_title = Counter(table.title for table in tables)
    sections: list[PosGenSection] = []
    for number, table in enumerate(tables, start=1):
        heading = table.title + (f" ({table.differs})" if same_title[table.title] > 1 and table.differs else "")
        slug = re.sub(r"[^a-z0-9]+", "-", heading.removeprefix("regime ").lower()).strip("-")[:80]
        if slug in {section.slug for section in sections}:
            slug = f"{slug}-{number}"
        sections.append(_section(table, heading, slug, found))
    return sections


def _section(table: PosGenTable, heading: str, slug: str, found: PosGenCollection) -> PosGenSection:
    curves = tuple(row_curves(table, found.curves))
    return PosGenSection(
        table=table,
        heading=heading,
        slug=slug,
        beside=comparison(table),
        curves=curves,
        by_position=position_figure(table, curves),
        by_epoch=loss_figure(table, curves),
    )


def _section_files(folder: str, sections: Sequence[PosGenSection]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for section in sections:
        for kind, picture in (("accuracy", section.by_position), ("loss", section.by_epoch)):
            if picture is not None:
                files[f"{folder}/{kind}-{section.slug}.png"] = picture.png
                files[f"{folder}/{kind}-{section.slug}.svg"] = picture.svg
    files[f"{folder}/means.csv"] = means_csv(sections).encode()
    if any(True for section in sections for _ in section.table.pairs()):
        files[f"{folder}/pairs.csv"] = pairs_csv(sections).encode()
    if any(section.curves for section in sections):
        files[f"{folder}/positions.csv"] = positions_csv(sections).encode()
        files[f"{folder}/losses.csv"] = losses_csv(sections).encode()
    return files
