"""What a page's views get, read back by other means than theirs; and a small page that shows one."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[1] / "longeval" / "report" / "page"

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
"""No evaluated text, and nothing from outside the file."""


def numbers(text):
    return np.frombuffer(base64.b64decode(text), dtype="<u2")


def token_texts(document):
    """The text of each token, from the document's text in UTF-16."""
    units = document["text"].encode("utf-16-le")
    stops = 2 * np.cumsum(numbers(document["ends"]), dtype=np.int64)
    return [units[start:stop].decode("utf-16-le") for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def values(document, step, place):
    """Token → (NLL in nats, context) of a series."""
    series = document["series"][place]
    stored = numbers((series if "nll" in series else document["series"][series["same"]])["nll"])
    found, done = {}, 0
    for start, count, context in series["windows"]:
        for token in range(count):
            found[start + token] = (stored[done] * step, context + token)
            done += 1
    return found


def keys(document):
    bits = np.unpackbits(np.frombuffer(base64.b64decode(document["keys"]), dtype=np.uint8), bitorder="little")
    return bits[: document["tokens"]].astype(bool)


def view_page(kind, data):
    """A page with one view and nothing else, as the page of a report holds it."""
    plain = json.dumps(data).replace("<", "\\u003c")
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>:root {{ color-scheme: light dark }} body {{ font-family: sans-serif; margin: 1rem }}
{"".join((PAGE / f"{name}.css").read_text() for name in ("style", kind, "views"))}</style>
<script>{(PAGE / "longeval.js").read_text()}</script><script>{(PAGE / f"{kind}.js").read_text()}</script></head>
<body><div id="view" class="view"></div><script type="application/json" id="data">{plain}</script>
<script>
const started = performance.now();
longeval.views.{kind}(document.getElementById("view"), JSON.parse(document.getElementById("data").textContent));
requestAnimationFrame(() => setTimeout(() => {{ document.body.dataset.painted = performance.now() - started; }}));
</script></body></html>"""


def shower(opened):
    """Opens a view, with `opened` of tests/report/page/conftest.py; (kind, data, options) → page."""

    def show(kind, data, **options):
        page = opened(view_page(kind, data), **options)
        page.wait_for_selector("body[data-painted]")
        assert page.evaluate("window.ran === undefined")
        return page

    return show
