"""What a check writes: one JSON object a line, as soon as it is known, so that a check that is cut off still counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
"""A name, what was measured, and `passed`: whether a bound holds (None: a measurement without a bound)."""


class Scale(NamedTuple):
    """Where a check runs, and whether in full."""

    device: str
    """`cpu` or `cuda:N`."""
    full: bool
    """The sizes meant for a GPU; else such that a CPU takes seconds."""


def write_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one row."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows that a check wrote; a last line that was cut off is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def as_table(rows: list[Row]) -> str:
    """Rows as one Markdown table; columns stand in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(_shown(column) for column in columns) + " |", "|" + ":--|" * len(columns)]
    lines += ["| " + " | ".join(_shown(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _shown(value: object) -> str:
    """A value in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
