"""Records and other numbers as CSV. Nothing is rounded; nested parameters become one JSON text per field."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longeval.printable import printable
from longeval.report.document import Document
from longeval.report.formats import register

_PROVENANCE = ("date", "commit", "dirty", "device", "platform", "command")


@register("csv")
def csv_report(document: Document) -> str:
    """All records of a report, one a line: their fields, a column `params.NAME` per parameter, and provenance.

    The last column, `older`, is true for cells that tables leave out for newer ones.
    """
    names = sorted({name for record in document.records for name in record.params})
    lines: list[dict[str, Any]] = []
    for record in document.records:
        plain = record.to_json()
        provenance = plain.pop("provenance")
        params = plain.pop("params")
        line = plain | {f"params.{name}": params.get(name) for name in names}
        line |= {f"provenance.{name}": provenance[name] for name in _PROVENANCE}
        lines.append(line | {"older": record.cell in document.older})
    return csv_text(list(lines[0]), lines)


def csv_text(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a header; a key that a line lacks is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _plain(value) for name, value in line.items()})
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Empty for null, `true`/`false`, JSON for what is nested, printable text; floats as Python writes them."""
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        value = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return printable(value) if isinstance(value, str) else value
