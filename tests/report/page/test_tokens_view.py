"""The view of tokens in a real browser: what it shows, what keys and buttons do, and how long 32k tokens take."""

from __future__ import annotations

import base64
import random

import numpy as np
import pytest
from page_views import shower

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.ran = true</script><img src=x onerror='window.ran = true'>\u202e\u0000"

POSITION = "RoPE position (tokens before it)"


@pytest.fixture
def show(opened):
    return shower(opened)


def packed(array, kind="<u2"):
    return base64.b64encode(np.asarray(array, dtype=kind).tobytes()).decode()


def token_data(tokens, nll, *, keys=None, name="doc", methods=("none", "yarn"), notes=(), first=1, length=64):
    """Data of one document: `tokens` are texts ("" for a further part of a character), `nll` values of each method."""
    widths = [len(token.encode("utf-16-le")) // 2 for token in tokens]
    mask = None if keys is None else np.packbits([n in keys for n in range(len(tokens))], bitorder="little")
    series = [
        {
            "method": method,
            "length": length,
            "windows": [[first, len(own), 1]],
            "nll": packed(np.rint(np.array(own) * 1000)),
        }
        for method, own in enumerate(nll)
    ]
    document = {
        "name": name,
        "text": "".join(tokens),
        "tokens": len(tokens),
        "of": len(tokens),
        "ends": packed(widths),
        "keys": None if mask is None else packed(mask, "u1"),
        "series": series,
    }
    return {
        "model": "toy",
        "data": "texts",
        "protocol": "prefix",
        "step": 0.001,
        "methods": [*methods],
        "keys": None if keys is None else {"model": "evaluator", "alpha": 2.0, "beta": -2.0, "context": 64, "step": 8},
        "documents": [document],
        "notes": [*notes],
    }


SMALL = token_data(
    ["One", " 🎉", "", "", " e\u0301", "\r\n", "שלום", " end"],
    [[1.0, 2.0, 0.5, 0.25, 4.0, 1.0, 1.0], [0.5, 1.0, 0.5, 0.25, 1.5, 1.0, 3.5]],
    keys={4, 5},
    notes=["A note."],
)


def fact(page, name):
    return page.locator(".tv-fact", has=page.get_by_text(name, exact=True)).locator(".tv-value").inner_text()


def test_text_colours_and_numbers_are_those_of_the_data(show):
    page = show("tokens", SMALL)
    spans = page.locator(".tv-t")
    # CR is kept in the page as it is; tokens that are parts of one character are one piece.
    assert spans.evaluate_all("all => all.map(one => one.textContent)") == [
        "One",
        " 🎉",
        " e\u0301",
        "\r\n",
        "שלום",
        " end",
    ]
    shades = spans.evaluate_all(
        "all => all.map(one => [...one.classList].find(name => /^tv-[ab]\\d/.test(name)) ?? '')"
    )
    # A (yarn) − B (none): not scored, −1.5 (0.5+0.5+0.25… are sums of three parts), …; the scale ends at ±4 nats.
    assert page.locator("select[name=scale]").input_value() == "4"
    assert shades == ["", "tv-a3", "", "tv-a5", "", "tv-b5"]
    assert page.locator(".tv-key").evaluate_all("all => all.map(one => one.textContent)") == [" e\u0301", "\r\n"]
    assert "A note." in page.locator(".tv").inner_text()
    spans.nth(1).hover()
    assert fact(page, "Token") == "“ 🎉”" and fact(page, "In the document").startswith("2 of 8, 3 tokens")
    assert (fact(page, "NLL of A"), fact(page, "NLL of B"), fact(page, POSITION)) == ("2.000", "3.500", "1")
    assert fact(page, "A − B") == "−1.500 (A better)"
    spans.nth(2).click()
    page.locator(".tv-text").press("ArrowRight")
    assert fact(page, "Token") == "“\\r\\n”" and fact(page, "LongPPL") == "key token"


def test_a_single_series_is_coloured_by_its_own_values(show):
    page = show("tokens", token_data(["a", "b", "c"], [[8.0, 0.5]], methods=["none"]))
    assert page.locator("select[name=colour]").input_value() == "nll"
    shades = page.locator(".tv-t").evaluate_all("all => all.map(one => one.className)")
    assert shades == ["tv-t tv-none", "tv-t tv-n8 tv-current", "tv-t tv-n1"]


def test_totals_are_those_of_the_tokens_that_both_have(show):
    text = show("tokens", SMALL).locator(".tv-totals").inner_text()
    mean = (0.5 + 1 + 0 + 0 + 1.5 + 1 + 3.5 - (1 + 2 + 0.5 + 0.25 + 4 + 1 + 1)) / 7
    mean_b = 9.75 / 7
    assert text.startswith("7 tokens scored under both: A − B ")
    a = 0.5 + 1.0 + 0.5 + 0.25 + 1.5 + 1.0 + 3.5
    assert f"{'−' if a / 7 < mean_b else '+'}{abs(a / 7 - mean_b):.4f} nats a token" in text
    assert f"perplexity {np.exp(a / 7):#.4g} and {np.exp(mean_b):#.4g}" in text
    assert "A is better at 42.9%, B at 14.3%" in text
    assert "2 key tokens scored under both: A − B −1.2500 nats" in text and mean < 0


def test_sides_are_chosen_apart_and_lengths_that_are_not_there_are_not_offered(show):
    data = token_data(["a", " b", " c", " d"], [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    data["documents"][0]["series"].append({"method": 0, "length": 32, "windows": [[1, 2, 1]], "same": 0})
    page = show("tokens", data)
    page.locator("select[name=method-A]").select_option("0")
    page.locator("select[name=length-A]").select_option("32")
    page.locator("select[name=method-B]").select_option("1")
    assert "2 tokens scored under both: A − B −0.5000" in page.locator(".tv-totals").inner_text()
    assert page.locator("select[name=length-B] option[value='32']").evaluate("one => one.disabled")
    page.locator("select[name=method-A]").select_option("1")
    assert page.locator("select[name=length-A]").input_value() == "64"
    page.locator(".tv-t").nth(3).hover()
    assert fact(page, POSITION) == "3"


def long_data(tokens=32768):
    """32k tokens as code has them, with a few places where one side wins by far."""
    rng = random.Random(0)
    words = [rng.choice(["the", " model", " reads", "\n", "    ", " é", " text", "("]) for _ in range(tokens)]
    a = [rng.uniform(0.0, 6.0) for _ in range(tokens - 1)]
    b = [abs(value + rng.uniform(-0.4, 0.4)) for value in a]
    for place in (1000, 20000, 30000):
        b[place - 1] = a[place - 1] + 5.0
    return token_data(words, [b, a], length=tokens)


def test_buttons_and_the_strip_go_to_places_and_only_near_text_has_elements(show):
    page = show("tokens", long_data())
    position = lambda: int(fact(page, "In the document").split(" of ")[0].replace(",", ""))  # noqa: E731
    forward = page.get_by_role("button", name="Next of 3 places where A wins")
    found = []
    for _ in range(4):
        forward.click()
        found.append(position())
        current = page.locator(".tv-current")
        box, span = page.locator(".tv-text").bounding_box(), current.bounding_box()
        assert box["y"] <= span["y"] <= box["y"] + box["height"]
    assert found == [1001, 20001, 30001, 1001]
    page.get_by_role("button", name="Previous of 3 places where A wins").click()
    assert position() == 30001
    assert page.get_by_role("button", name="Next of 0 places where B wins").is_disabled()
    page.locator("input[type=number]").fill("0.3")
    assert page.get_by_role("button", name="places where B wins").first.is_enabled()
    strip = page.locator(".tv-strip")
    strip.click(position={"x": strip.bounding_box()["width"] / 2, "y": 5})
    assert abs(position() - 16384) < 40
    strip.press("End")
    assert position() == 32768 and strip.get_attribute("aria-valuenow") == "32768"
    page.locator(".tv-text").press("ArrowLeft")
    assert position() == 32767
    assert page.locator(".tv-t").count() < 6000
    # The text is whole, whatever has elements.
    assert len(page.locator(".tv-text").evaluate("box => box.textContent")) == len(long_data()["documents"][0]["text"])


def test_buttons_and_a_key_go_from_key_token_to_key_token(show):
    texts = ["a", " b", " 🎉", "", " c", " d", " e"]
    page = show("tokens", token_data(texts, [[1.0] * 6, [2.0] * 6], keys={1, 3, 6}))
    assert page.locator(".tv-key").all_inner_texts() == [" b", " 🎉", " e"], "a part of a character counts"
    forward = page.get_by_role("button", name="Next of 3 key tokens")
    back = page.get_by_role("button", name="Previous of 3 key tokens")
    seen = []
    for go in (forward.click, forward.click, forward.click, back.click):
        go()
        seen.append(fact(page, "Token"))
    assert seen == ["“ 🎉”", "“ e”", "“ b”", "“ e”"], "from the first scored token on, and round at the end"
    text = page.locator(".tv-text")
    text.press("k")
    assert fact(page, "Token") == "“ b”"
    text.press("Shift+K")
    assert fact(page, "Token") == "“ e”"
    page.locator("input[type=number]").press("k")
    assert fact(page, "Token") == "“ e”"


def test_without_key_tokens_there_is_nothing_to_go_to(show):
    page = show("tokens", token_data(["a", " b"], [[1.0], [2.0]]))
    assert page.get_by_role("button", name="key tokens").count() == 0
    page.locator(".tv-text").press("k")
    assert fact(page, "Token") == "“ b”"


def test_32k_tokens_are_quickly_there_and_scroll_smoothly(show):
    page = show("tokens", long_data())
    painted = float(page.locator("body").get_attribute("data-painted"))
    frames = page.evaluate(
        """() => new Promise((done) => {
            const box = document.querySelector(".tv-text");
            const times = [];
            const step = (now) => {
                times.push(now);
                box.scrollTop += 120;
                if (times.length <= 60) requestAnimationFrame(step);
                else done(times.slice(1).map((time, place) => time - times[place]));
            };
            requestAnimationFrame(step);
        })"""
    )
    told = f"first paint {painted:.0f} ms, frames of {np.median(frames):.1f} ms, the longest {max(frames):.1f} ms"
    assert painted < 3000, told  # under 1 s alone; machines that run the tests are shared
    assert np.median(frames) < 50, told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_colour(show, scheme):
    page = show("tokens", SMALL, scheme=scheme)
    ratios = page.evaluate(
        """() => {
            const probe = document.createElement("span");
            document.querySelector(".tv-text").append(probe);
            const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            const light = (colours) => {
                context.clearRect(0, 0, 1, 1);
                for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
                const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
                    const part = value / 255;
                    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
                });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const paper = getComputedStyle(document.querySelector(".tv-text")).backgroundColor;
            const ink = light([getComputedStyle(document.querySelector(".tv-text")).color]);
            return ["a8", "b8", "n8"].map((name) => {
                probe.className = `tv-${name}`;
                const back = light([paper, getComputedStyle(probe).backgroundColor]);
                return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
            });
        }"""
    )
    assert min(ratios) > 4.5, ratios


@pytest.mark.parametrize("width", [380, 1600])
def test_nothing_is_wider_than_the_page(show, width):
    data = token_data(
        ["long" * 50, " name"], [[1.0], [2.0]], name="a/very/long/" * 20, methods=["resonance_" * 12, "b"]
    )
    page = show("tokens", data, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_shown_as_text(show):
    data = token_data(
        [HOSTILE, HOSTILE], [[1.0], [2.0]], name=HOSTILE, methods=[HOSTILE, HOSTILE + "2"], notes=[HOSTILE]
    )
    data["keys"] = {"model": HOSTILE, "alpha": HOSTILE, "beta": 1}
    data["documents"][0]["keys"] = packed([3], "u1")
    page = show("tokens", data)
    page.locator(".tv-t").first.click()
    assert fact(page, "Token") == "“" + HOSTILE.replace("\u202e", "[U+202E]").replace("\x00", "[U+0000]") + "”"
    assert page.locator(".tv-t").first.evaluate("one => one.textContent") == HOSTILE
    assert page.locator(".view-note").last.evaluate("one => one.textContent") == HOSTILE
    assert page.locator("select[name=document] option").evaluate("one => one.textContent") == HOSTILE
    assert page.locator(".tv img").count() == 0 and page.locator(".tv script").count() == 0
    assert page.evaluate("window.ran === undefined")


def test_only_notes_where_there_is_nothing_to_show(show):
    page = show("tokens", {**SMALL, "documents": [], "notes": ["Repeat the command with --keep-text."]})
    assert page.locator("#view").inner_text().strip() == "Repeat the command with --keep-text."
