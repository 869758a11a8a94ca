"""Pages in Chromium for tests marked `browser`: they may neither ask for anything nor complain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

OWN = ("file:", "data:", "blob:", "http://127.0.0.1:")
"""What a page may load: itself, and what it made."""


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the text of a page, or an address. After the test, nothing may have gone wrong in any of them."""
    wrong: list[str] = []
    contexts = []

    def open_page(text: str, *, width: int = 1200, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True, **options
        )
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(5_000)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith(OWN) else wrong.append(request.url))
        if not text.startswith("http"):
            path = tmp_path / f"page{len(contexts)}.html"
            path.write_text(text, encoding="utf-8")
            text = path.as_uri()
        page.goto(text)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
