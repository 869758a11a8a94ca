"""HTML: the report as one page, with charts that answer to the pointer. The page itself is in `report.page`."""

from __future__ import annotations

from longeval.report.document import Document
from longeval.report.formats import register
from longeval.report.page.html import page


@register("html", alone=True)
def html_report(document: Document) -> str:
    """The whole page."""
    return page(document)
