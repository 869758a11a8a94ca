"""Texts of a report as HTML: everything from outside is escaped, and control characters are shown as escapes."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markupsafe import Markup

from longeval.printable import printable
from longeval.report.document import Prose, Style, spans

_TAGS: dict[Style, Markup] = {
    "plain": Markup("{}"),
    "code": Markup("<code>{}</code>"),
    "strong": Markup("<strong>{}</strong>"),
    "emphasis": Markup("<em>{}</em>"),
    "math": Markup("<var>{}</var>"),
}


def inline(text: Prose) -> Markup:
    """A text in its styles, in one line."""
    pieces = (_TAGS[style].format(printable(re.sub(r"\s+", " ", piece))) for piece, style in spans(text))
    return Markup("").join(pieces)


def shown(value: Any) -> Any:
    """What a template puts in place of a value: text with control characters shown; jinja escapes it afterwards."""
    return value if isinstance(value, Markup) else printable(str(value), keep="\n\t")


def as_json(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`, which nothing in it can end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text))  # noqa: S704 (nothing left can end the script)


class _Parser(MarkdownIt):
    """Markdown whose links lead to http, https and relative places only."""

    def validateLink(self, url: str) -> bool:
        """See `MarkdownIt`."""
        try:
            return urlsplit(url.strip()).scheme in ("", "http", "https")
        except ValueError:
            return False


def markdown(text: str) -> Markup:
    """The author's own Markdown as HTML: without HTML of theirs, without images, with harmless links only."""
    parser = _Parser("commonmark", {"html": False}).enable("table").disable("image")
    return Markup(parser.render(printable(text, keep="\n\t")))  # noqa: S704 (the parser lets no HTML through)
