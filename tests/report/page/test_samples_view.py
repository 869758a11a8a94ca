"""The view of samples in a real browser: filters, search and what is shown of each sample."""

from __future__ import annotations

import json

import pytest
from page_views import shower
from test_tokens_view import token_data

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.ran = true</script><img src=x onerror='window.ran = true'>"


@pytest.fixture
def show(opened):
    return shower(opened)


def answer(output, score, metric="accuracy", finish="stop"):
    return {"output": output, "scores": {metric: score}, "finish": finish}


def sample(index, length, answers, *, target="yes", cut=0, depth=None, cluster=None, **prompt):
    return {
        "index": index,
        "length": length,
        "target": target,
        "tokens": length - 8,
        "cut": cut,
        "depth": depth,
        "cluster": cluster,
        "answers": answers,
        **prompt,
    }


def sample_data(
    samples, *, binary=True, lower=False, metric="accuracy", total=None, methods=("none", "yarn"), notes=()
):
    task = {
        "name": "own",
        "methods": [*methods],
        "lengths": sorted({one["length"] for one in samples}),
        "metrics": [{"name": metric, "lower": lower, "binary": binary}],
        "total": len(samples) if total is None else total,
        "samples": samples,
    }
    return {"model": "toy", "notes": [*notes], "tasks": [task]}


RIGHT, WRONG = answer("yes it is", 1.0), answer("no", 0.0)
SAMPLES = [
    sample(0, 512, [RIGHT, RIGHT], depth=0.25),
    sample(0, 1024, [WRONG, RIGHT], cut=20, cluster="book.txt"),
    sample(1, 512, [RIGHT, WRONG], prompt="A needle in\nthe haystack"),
    sample(1, 1024, [WRONG, WRONG]),
    sample(2, 512, [None, RIGHT], target="something else"),
]


def test_its_controls_look_like_those_of_the_view_of_tokens(show):
    looks = """() => ["select", "label", "input", "label:has(select)"].map((name) => {
        const { border, borderRadius, padding, background, color, display, gap, alignItems, flexWrap, maxWidth } =
            getComputedStyle(document.querySelector(`.view ${name}`));
        return { border, borderRadius, padding, background, color, display, gap, alignItems, flexWrap, maxWidth };
    })"""
    samples = show("samples", sample_data(SAMPLES), scheme="dark").evaluate(looks)
    assert show("tokens", token_data(["a", " b"], [[1.0], [2.0]]), scheme="dark").evaluate(looks) == samples


def heads(page):
    return page.locator(".sv-head").evaluate_all(
        "all => all.map(one => [...one.children].slice(0, 2).map(part => part.textContent).join(' at '))"
    )


def test_filters_count_and_show_what_they_say(show):
    page = show("samples", sample_data(SAMPLES, total=12))
    assert page.locator(".sv-count").inner_text() == "5 of 5 samples; 7 more are not in this page"
    expected = {  # A is yarn, B is none
        "a": ["Sample 0 at 1k"],
        "b": ["Sample 1 at 512"],
        "none": ["Sample 1 at 1k"],
        "both": ["Sample 0 at 512"],
        "cut": ["Sample 0 at 1k"],
    }
    for value, found in expected.items():
        page.locator("select[name=Show]").select_option(value)
        assert heads(page) == found, value
        assert page.locator(".sv-count").inner_text().startswith("1 of 5 samples")
    assert page.locator("select[name=Show] option[value=a]").inner_text() == "A right, B wrong"
    page.locator("select[name=Show]").select_option("all")
    page.locator("select[name=Length]").select_option("1024")
    assert heads(page) == ["Sample 0 at 1k", "Sample 1 at 1k"]


def test_a_and_b_may_be_of_two_lengths(show):
    page = show("samples", sample_data(SAMPLES))
    page.get_by_label("Method of A").select_option("0")
    page.get_by_label("Length of A, tokens").select_option("512")
    page.get_by_label("Length of B, tokens").select_option("1024")
    page.locator("select[name=Show]").select_option("a")
    # none is right at 512 and wrong at 1k for both; each is shown at its lengths.
    assert heads(page) == ["Sample 0 at 512", "Sample 0 at 1k", "Sample 1 at 512", "Sample 1 at 1k"]


def test_scores_that_are_no_ones_or_zeros_are_compared(show):
    samples = [
        sample(n, 64, [answer("x", a, "wer"), answer("x", b, "wer")])
        for n, (a, b) in enumerate([(0.5, 0.2), (0.1, 0.9)])
    ]
    for lower, found in ((True, "Sample 0 at 64"), (False, "Sample 1 at 64")):
        page = show("samples", sample_data(samples, binary=False, lower=lower, metric="wer"))
        page.locator("select[name=Show]").select_option("a")
        assert page.locator("select[name=Show] option[value=a]").inner_text() == "A scores better than B"
        assert heads(page) == [found]
        assert page.locator(".sv-score").first.inner_text() == {True: "0.500", False: "0.100"}[lower]


def test_search_finds_prompts_answers_targets_and_documents(show):
    page = show("samples", sample_data(SAMPLES))
    for text, found in (
        ("NEEDLE in", ["Sample 1 at 512"]),
        ("book.", ["Sample 0 at 1k"]),
        ("else", ["Sample 2 at 512"]),
    ):
        page.locator(".sv-search").fill(text)
        page.wait_for_timeout(300)  # it searches a moment after the last letter
        assert heads(page) == found
    assert page.locator(".sv-mark").all_inner_texts() == ["else"]
    page.locator(".sv-search").fill("nowhere")
    page.wait_for_timeout(300)
    assert page.locator(".sv-count").inner_text() == "0 of 5 samples"


def test_what_is_shown_of_a_sample(show):
    page = show("samples", sample_data(SAMPLES))
    texts = page.locator(".sv-card").all_inner_texts()
    assert "504 tokens" in texts[0] and "depth 25%" in texts[0] and "✓ right" in texts[0] and "yes it is" in texts[0]
    assert "20 tokens cut" in texts[1] and "book.txt" in texts[1] and "✗ wrong" in texts[1]
    assert "no answer is stored" in texts[4] and "something else" in texts[4]
    details = page.locator("details")
    assert details.count() == 1
    details.locator("summary").click()
    assert details.locator("pre").evaluate("one => one.textContent") == "A needle in\nthe haystack"


def test_choices_say_which_one_was_chosen(show):
    prompt = [["Is it?", [" yes", " no"]]]
    output = [[-3.5, False], [-1.25, True]]
    samples = [
        sample(0, 64, [answer(output, 1.0), answer([[None, False], [-2.0, False]], 0.0)], prompt=prompt),
        sample(1, 64, [answer(output, 1.0), answer([[-7.0, False]], 0.0)]),
    ]
    page = show("samples", sample_data(samples))
    first, second = page.locator(".sv-card").all_inner_texts()
    assert "choice 2 of 2 “ no”, log-likelihood -1.250" in first and "log-likelihood -2.000" in first
    assert "choice 2 of 2, log-likelihood -1.250" in second and "log-likelihood -7.000" in second
    page.locator("summary").click()
    assert page.locator("pre").evaluate("one => one.textContent") == "Is it?\n(1)  yes\n(2)  no"


def test_many_samples_are_added_as_they_are_asked_for(show):
    page = show("samples", sample_data([sample(n, 64, [RIGHT, WRONG]) for n in range(60)]))
    assert page.locator(".sv-card").count() == 25
    more = page.locator(".sv-more")
    assert more.inner_text() == "Show 25 more of 35"
    more.click()
    more.click()
    assert page.locator(".sv-card").count() == 60 and not more.is_visible()


@pytest.mark.parametrize("width", [380, 1600])
def test_hostile_text_is_shown_as_text_within_the_page(show, width):
    long = HOSTILE * 20
    samples = [
        sample(
            0, 64, [answer(long, 1.0, HOSTILE), answer(long, 0.0, HOSTILE)], target=long, cluster=long, prompt=HOSTILE
        )
    ]
    data = sample_data(samples, metric=HOSTILE, methods=[HOSTILE, long], notes=[long])
    data["tasks"][0]["name"] = long
    page = show("samples", data, width=width)
    page.locator("summary").click()
    assert page.locator("pre").evaluate("one => one.textContent") == HOSTILE
    assert page.locator(".sv-answer .sv-text").first.evaluate("one => one.textContent") == long
    assert page.locator(".sv img").count() == 0 and page.locator(".sv script").count() == 0
    assert page.evaluate("window.ran === undefined")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("output", [None, 3, {"a": 1}, [], [["a", 1]], [None]])
def test_an_answer_of_any_form_is_shown(show, output):
    page = show("samples", sample_data([sample(0, 512, [answer(output, 1.0), RIGHT], prompt=[["context", 3]])]))
    text = page.locator(".sv-card").inner_text()
    assert json.dumps(output, separators=(",", ":")) in text and "yes it is" in text
