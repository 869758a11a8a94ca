"""Makes untrusted text safe to display: names of models, files, documents and servers, and stored records."""

from __future__ import annotations

import re

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters (C0, DEL, C1), line and paragraph separators, marks that change the direction of text (Unicode
Standard Annex 9), zero-width spaces, and lone surrogates, which Python uses for file names that aren't UTF-8."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Returns `text` with every control character written as an escape: `\x1b`, `\n`, `\u202e`.

    Such characters control a terminal, are invalid in SVG, and can start new lines.

    Args:
        text: Any text.
        keep: Characters that are not escaped, such as `"\n"` for a text of several lines.
    """

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        return character if character in keep else character.encode("unicode_escape").decode("ascii")

    return _UNSEEN.sub(escaped, text)


def as_markup(text: str) -> str:
    """Returns one line of text for a rich table: printable, with brackets escaped."""
    from rich.markup import escape

    return escape(printable(text))
