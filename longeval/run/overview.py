"""The output of `--dry-run`: a table of the plan's cells, and lines about their cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CellList:
    """A group of rows of the table."""

    title: str | None
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """The content of a dry run of any study."""

    columns: tuple[str, ...]
    words: frozenset[str]
    """Columns that hold words and are aligned left; all others hold numbers."""
    sections: tuple[CellList, ...]
    costs: tuple[str, ...]
    """A line for each model: cells, passes, time, memory."""
    title: str = "Cells"


def count(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`, `2 passes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def format_gib(num_bytes: int) -> str:
    """Bytes as text, such as `1.5 GiB`."""
    return f"{num_bytes / 2**30:.1f} GiB"
