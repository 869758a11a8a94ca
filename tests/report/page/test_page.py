"""The page as text: what it holds, that nothing in it leads elsewhere, and what its policy allows."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from pages import hostile_document, make_document, make_figure, make_table

from longeval.report.document import Section, View
from longeval.report.page.html import FAILED_TITLE, page
from longeval.report.page.markup import as_json, markdown

PLOTLY_SHA256 = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
"""Of plotly-cartesian.min.js in plotly.js-cartesian-dist-min 4.1.1 of the npm registry."""

MOST_BYTES = 5 * 2**20


class Elements(HTMLParser):
    """All start tags with their attributes, and the texts of scripts and of everything else."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.text += data


def policy_of(elements):
    (policy,) = [found["content"] for tag, found in elements.tags if tag == "meta" and "http-equiv" in found]
    return {part.split()[0]: part.split()[1:] for part in policy.split("; ")}


def test_plotly_is_the_one_that_was_published():
    from importlib import resources

    folder = resources.files("longeval.report.page") / "vendor"
    assert hashlib.sha256((folder / "plotly-cartesian.min.js").read_bytes()).hexdigest() == PLOTLY_SHA256
    note = (folder / "README.md").read_text()
    assert PLOTLY_SHA256 in note and "4.1.1" in note
    assert "MIT" in (folder / "plotly-LICENSE.txt").read_text()


def test_the_policy_allows_the_scripts_of_the_page_and_no_request():
    elements = Elements(page(make_document()))
    policy = policy_of(elements)
    run = [text for attributes, text in elements.scripts if attributes.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert policy["script-src"] == [f"'sha256-{digest}'" for digest in digests]
    assert policy["default-src"] == ["'none'"] and policy["img-src"] == ["data:", "blob:"]
    assert set(policy) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert policy_of(Elements(page(make_document(), version="3")))["connect-src"] == ["'self'"]


def test_it_is_one_file_of_a_bearable_size():
    text = page(make_document())
    assert len(text.encode()) < MOST_BYTES
    elements = Elements(text)
    links = [found[name] for _, found in elements.tags for name in ("src", "href") if name in found]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert not [tag for tag, found in elements.tags for name in found if name.startswith("on")]


def test_it_says_all_that_the_document_says():
    elements = Elements(page(make_document(preface="A *word* first.", notes=("One cell is missing.",))))
    for text in ("Perplexity by context length", "2 cells (1 done, 1 failed)", "One cell is missing.", "A word first."):
        assert text in re.sub(r"\s+", " ", elements.text)
    for text in ("Lower is better.", "† a note", "12.5", "[1.0, 2.0]", "(n 20)", "longeval ppl", "Device: cpu"):
        assert text in elements.text
    headings = [found["id"] for tag, found in elements.tags if tag == "section"]
    assert [found["href"] for tag, found in elements.tags if tag == "a"][1:] == [f"#{name}" for name in headings]


def test_failed_cells_are_listed_with_their_reason():
    text = page(make_document())
    listed = Elements(text[text.index(f"{FAILED_TITLE}</h2>") :]).text
    assert re.search(r"failed\s*toy\s*pi\s*–\s*4k\s*texts\s*out of memory", re.sub(r"\n", " ", listed))
    reasons = [found["title"] for _, found in Elements(text).tags if "data-reason" in found]
    assert reasons == ["out of memory"] * 2, "in the tables' own cells"
    (failed,) = make_document().records
    assert FAILED_TITLE not in page(make_document(older=frozenset({failed.cell})))


def test_each_chart_stands_once_in_its_own_section():
    text = page(make_document(make_table(), make_figure("first"), make_figure("second")))
    for name in ("first", "second"):
        assert text.count(f'data-source="figure-{name}"') == text.count(f'id="figure-{name}"') == 1
        assert text.index(f'data-source="figure-{name}"') > text.index("toy on texts</h2>")


def test_views_have_a_container_and_data():
    views = [
        View(kind=kind, title=f"The {kind}", load=lambda kind=kind: {"kind": kind}) for kind in ("tokens", "samples")
    ]
    elements = Elements(page(make_document(sections=(Section(title="More", blocks=(), views=tuple(views)),))))
    data = {found["id"]: json.loads(text) for found, text in elements.scripts if "id" in found}
    containers = [found for tag, found in elements.tags if found.get("class") == "view"]
    assert [(one["data-kind"], data[one["data-source"]]["kind"]) for one in containers] == [
        ("tokens",) * 2,
        ("samples",) * 2,
    ]


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "a\u2028b\u2029", "&lt;", "\ud800"]
)
def test_json_cannot_end_its_script(text):
    written = str(as_json({"text": text}))
    assert not re.search("[<>&\u2028\u2029\ud800]", written)
    assert json.loads(written) == {"text": text}


HOSTILE = '</script><img src=x onerror=alert(1)>"><svg onload=alert(2)>{{7*7}}\u202eabc'


def test_hostile_text_makes_no_element_and_no_attribute():
    plain, hostile = Elements(page(hostile_document("plain"))), Elements(page(hostile_document(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(found) for _, found in hostile.tags] == [sorted(found) for _, found in plain.tags]
    assert "{{7*7}}" in hostile.text and "49" not in hostile.text
    assert "\u202e" not in hostile.text and "\\u202eabc" in hostile.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a](javascript:alert(1))", None),
        ("[a](JAVASCRIPT:alert(1))", None),
        ("[a](data:text/html,x)", None),
        ("[a](vbscript:x)", None),
        ("[a](file:///etc/passwd)", None),
        ("[a](&#106;avascript:alert(1))", None),
        ("<javascript:alert(1)>", None),
        ("[a](https://example.org/x)", "https://example.org/x"),
        ("[a](other.md)", "other.md"),
    ],
)
def test_links_of_a_preface_are_harmless(text, shown):
    links = [found["href"] for tag, found in Elements(str(markdown(text))).tags if tag == "a"]
    assert links == ([] if shown is None else [shown])


def test_a_preface_brings_no_html_and_no_pictures():
    made = str(markdown("# Title\n\n<b onclick=x>bold</b> ![alt](https://example.org/x.png) **strong**"))
    assert {tag for tag, _ in Elements(made).tags} <= {"h1", "p", "strong", "a"}
    assert "<b" not in made and html.escape("<b onclick=x>") in made
