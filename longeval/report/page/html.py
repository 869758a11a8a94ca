"""The page: one file that holds the report, its charts and what draws them, and needs nothing from elsewhere.

Its Content-Security-Policy allows the scripts that are in it, by their digests, and no request at all. The template
is `page.html.jinja`; styles and scripts are the files beside it, each script in a `<script>` of its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

from longeval.report.document import Document, Row, Section, Table, TableCell, code
from longeval.report.formats.latex import SPECIAL_CHARACTERS
from longeval.report.numbers import MISSING, format_factor
from longeval.report.page.markup import as_json, inline, markdown, shown
from longeval.report.page.plotly import plotly_figure
from longeval.report.tables import error_text
from longeval.store.records import Record
from longeval.values import format_length

_FIRST, _LAST = "longeval.js", "start.js"
"""The script that the others build on, and the one that starts them; those between are in the order of their names."""
_STYLE = "style.css"
_PLOTLY = "vendor/plotly-cartesian.min.js"

FAILED_TITLE = "Cells without a value"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Script:
    """One script of the page."""

    text: Markup
    digest: str
    """As a Content-Security-Policy names it: `sha256-…`."""


def page(document: Document, *, version: str | None = None) -> str:
    """The whole page.

    Args:
        document: What it says.
        version: Of what it was made from, for a page that asks its server how far the run is and
            loads itself anew when there are more. None: a page that asks nobody.
    """
    sources: dict[str, Markup] = {}
    sections = [*_with_failures(document)]
    for section in sections:
        for figure in section.figures:
            sources[f"figure-{figure.name}"] = as_json(plotly_figure(figure.chart))
    views = {}
    for place, section in enumerate(sections, start=1):
        for number, view in enumerate(section.views, start=1):
            views[id(view)] = f"view-{place}-{number}"
            sources[views[id(view)]] = as_json(view.load())
    sources["latex-characters"] = as_json(SPECIAL_CHARACTERS)
    text: str = _template().render(
        document=document,
        sections=sections,
        sources=sources,
        view_source=lambda view: views[id(view)],
        scripts=_scripts(),
        style=_style(),
        policy=policy(is_live=version is not None),
        version=version,
    )
    return text.lstrip()


def policy(*, is_live: bool) -> str:
    """The page's Content-Security-Policy: its own scripts, no request, no eval; styles that Plotly writes."""
    scripts = " ".join(f"'{script.digest}'" for script in _scripts())
    parts = [
        "default-src 'none'",
        f"script-src {scripts}",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        *(["connect-src 'self'"] if is_live else []),
    ]
    return "; ".join(parts)


def _with_failures(document: Document) -> Iterator[Section]:
    """The sections, with the list of failed and skipped cells before those that say how to repeat the report."""
    own, last = document.sections[:-2], document.sections[-2:]
    yield from own
    records = [record for record in document.records if record.status != "ok" and record.cell not in document.older]
    if records:
        yield Section(title=FAILED_TITLE, blocks=(failures_table(records),))
    yield from last


def failures_table(records: Iterable[Record]) -> Table:
    """A row for each failed or skipped cell, with its reason."""
    rows = {record.cell: Row(cells=tuple(_failure_cells(record))) for record in records}
    return Table(
        columns=("", "Model", "Method", "s", "Length", "Data or task", "Reason"),
        rows=tuple(rows.values()),
        left=7,
        caption="The same command computes failed cells again.",
    )


def _failure_cells(record: Record) -> Iterator[TableCell]:
    yield TableCell(text=record.status, is_failure=record.status == "failed")
    yield TableCell(text=record.model)
    yield TableCell(text=code(record.pe))
    yield TableCell(text=MISSING if record.factor is None else format_factor(record.factor))
    yield TableCell(text=format_length(record.length))
    yield TableCell(text=record.task or record.data or "")
    yield TableCell(text=error_text(record))


# Files.


@functools.cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _style() -> Markup:
    """The styles of the page, then those of single parts of it."""
    names = {entry.name for entry in resources.files(__package__).iterdir() if entry.name.endswith(".css")}
    return Markup("\n".join(map(_file, (_STYLE, *sorted(names - {_STYLE})))))  # noqa: S704 (our own files)


@functools.cache
def _scripts() -> tuple[_Script, ...]:
    """Plotly, then the page's own."""
    names = {entry.name for entry in resources.files(__package__).iterdir() if entry.name.endswith(".js")}
    between = sorted(names - {_FIRST, _LAST})
    return tuple(_script(_file(name)) for name in (_PLOTLY, _FIRST, *between, _LAST))


def _script(text: str) -> _Script:
    assert "</script" not in text.lower()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return _Script(text=Markup(text), digest=f"sha256-{digest}")  # noqa: S704 (our own file)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=shown, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"inline": inline, "markdown": markdown}
    environment.tests["of_kind"] = lambda value, kind: type(value).__name__ == kind
    return environment.from_string(_file("page.html.jinja"))
