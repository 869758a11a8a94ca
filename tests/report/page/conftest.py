"""Chromium for tests marked `browser`: one for the session; its pages may neither ask for anything nor complain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OWN = ("file:", "data:", "blob:", "http://127.0.0.1:")
"""What a page may load: itself, and what it made."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: make setup")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: make setup-browser")
    # As root, as in most containers, Chromium has no sandbox of its own.
    flags = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


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
