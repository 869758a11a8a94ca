"""Text from outside (names of models, files, documents and servers; stored records) made safe to show."""

from __future__ import annotations

import re

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters (C0, DEL, C1), line and paragraph separators, marks that turn the direction of text around
(Unicode Standard Annex 9), blanks of no width, and halves of surrogate pairs, which Python
makes of file names that are no UTF-8."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Returns `text` with every control character written as an escape: `\x1b`, `\n`, `\u202e`.

    A terminal obeys such characters, an SVG with them is no XML, and a line break in a name starts a line of its own.

    Args:
        text: Any text.
        keep: Characters that stay as they are: `"\n"` for a text of several lines.
    """

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        return character if character in keep else character.encode("unicode_escape").decode("ascii")

    return _UNSEEN.sub(escaped, text)


def as_markup(text: str) -> str:
    """Returns one line of text as a rich table takes it: printable, and brackets are no markup."""
    from rich.markup import escape

    return escape(printable(text))
