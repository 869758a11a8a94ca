"""Records as a JSON array, as `--json` of every command writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from longeval.report.document import Document
from longeval.report.formats import register
from longeval.store.records import Record


@register("json")
def json_report(document: Document) -> str:
    """All records of a report."""
    return records_json(document.records)


def records_json(records: Iterable[Record]) -> str:
    """A JSON array of records."""
    plain = [record.to_json() for record in records]
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
