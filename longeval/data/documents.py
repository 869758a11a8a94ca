"""Document: one text with a name, as every reader yields it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text, as it stands in its source: nothing stripped, no line ends changed."""

    name: str
    """Says where the text is: a file's path in its folder, or `file.jsonl#12` for its twelfth line or row."""
    text: str
    """The text; always encodable as UTF-8."""
