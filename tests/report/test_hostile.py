"""Text from outside (records, spec files, document names) can't break out of a report, whatever it holds."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from markdown_it import MarkdownIt
from records import make_nll, make_records, make_samples, make_task_records, make_task_run, write_report

from longeval.report.formats.latex import escape_latex
from longeval.report.formats.markdown import code, code_block, escape_markdown
from longeval.store.folder import Store
from longeval.store.records import record_from_json

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "a\n\n# heading\n```\n<b>",
    "x|y`z` [l](javascript:1) ![i](u)",
    "\x1b[31m\x9b2J\u202e\x00\x07$\\frac{$ &lt; ~~\r\n---\r",
)
MARKS = ("onerror", "heading", "javascript", "frac")
HTML = {"html_inline", "html_block"}


def poisoned(record, text):
    """The record with `text` in each field whose text means nothing to the program, parameters included."""
    plain = record.to_json()
    for key in ("model", "data", "task", "dtype", "error"):
        if plain[key] is not None:
            plain[key] = f"{plain[key]} {text}"
    for key, value in plain["params"].items():
        if isinstance(value, str):
            plain["params"][key] = f"{value} {text}"
    for key, value in plain["provenance"].items():
        if isinstance(value, str) and key != "date":
            plain["provenance"][key] = f"{value} {text}"
    plain["provenance"]["versions"] = {f"package {text}": f"1 {text}"}
    return record_from_json(plain)


def poison(folder, text):
    """Rewrites the records of a run folder."""
    store = Store(str(folder))
    for cell in list(store.cells()):
        store.save([poisoned(record, text) for record in cell.records])


def check_markdown(text, allowed_links=r"(?!javascript)[\w.%/-]*"):
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    headings = []
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        assert token.type not in HTML
        if token.type == "heading_open":
            headings.append(after.content)
        if token.type == "fence":
            assert token.info in ("sh", "yaml")
        for inner in token.children or ():
            assert inner.type not in HTML
            for link in (inner.attrs.get("href"), inner.attrs.get("src")):
                assert link is None or re.fullmatch(allowed_links, link), link
    return headings


@pytest.mark.parametrize("text", HOSTILE)
def test_a_report_shows_hostile_text_as_text(tmp_path, text):
    perplexity = make_nll([[2.0] * 63] * 3, names=(f"doc {text}", "b", "c"))
    cells = [(make_records(pe, length, perplexity), perplexity, None) for pe in ("none", "yarn") for length in (32, 64)]
    samples = make_samples([1, 0, 1, 1], depths=[0.0, 0.5, 0.0, 0.5])
    asked = [(pe, length) for pe in ("yarn", "resonance_yarn") for length in (32, 64)]
    cells += [(make_task_records(*one, "passkey", samples), None, samples) for one in asked]
    cells.append((make_records("pi", 32, status="failed", error="broken", factor=2.0), None, None))
    run = make_task_run(tmp_path / "run", cells)
    plain = write_report([run], out=str(tmp_path / "plain" / "report.md"))
    poison(tmp_path / "run", text)
    written = write_report([run], out=str(tmp_path / "report.md"), published=True, command=f"longeval report {text}")
    headings = check_markdown((tmp_path / "report.md").read_text())
    assert len(headings) >= len(check_markdown((tmp_path / "plain" / "report.md").read_text()))
    own = (
        "passkey",
        "Perplexity",
        "Effective",
        "How",
        "What",
        "Bits",
        "Resonance",
        "Tasks",
        "Provenance",
        "Published",
        "texts",
    )
    assert [heading for heading in headings if not heading.startswith(own) and "toy" not in heading] == []
    svgs = [path for path in written.files if path.endswith(".svg")]
    assert svgs and len(written.files) == len(plain.files)
    for path in svgs:
        content = Path(path).read_text(encoding="utf-8")
        ElementTree.fromstring(content)
        assert "onerror=alert" not in re.sub("<!--.*?-->", "", content, flags=re.DOTALL)
    for path in written.files:
        if path.endswith((".csv", ".tex")):
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", Path(path).read_text()), path
    assert "\n\n#" not in (tmp_path / "report.tex").read_text()
    records = json.loads((tmp_path / "report.json").read_text())
    assert all(text in record["model"] for record in records)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_reads_as_itself(text):
    shown = MarkdownIt("gfm-like", {"linkify": False}).parse(f"| {escape_markdown(text)} | {code(text)} |\n|---|---|\n")
    cells = [token for token in shown if token.type == "inline"]
    assert len(cells) == 2
    for cell in cells:
        assert {inner.type for inner in cell.children} <= {"text", "text_special", "code_inline"}
        seen = "".join(inner.content for inner in cell.children)
        assert [mark for mark in MARKS if mark in seen] == [mark for mark in MARKS if mark in text]


def test_a_block_of_code_ends_where_it_should():
    block = "\n".join(code_block("sh", ["a\n```\n<b>", "````"]))
    (token,) = MarkdownIt().parse(block)
    assert token.type == "fence"
    assert token.content == "a\n```\n<b>\n````\n"


def test_latex_has_no_line_breaks_of_the_data():
    assert escape_latex("a\n\nb\x1b_") == "a b\\textbackslash{}x1b\\_"


def test_settings_of_figures_that_lie_in_the_current_folder_are_not_heeded(tmp_path, monkeypatch):
    nll = make_nll([[2.0] * 63] * 3)
    run = make_task_run(tmp_path / "run", [(make_records("none", n, nll), nll, None) for n in (32, 64)])
    figures = []
    for usetex in (False, True):
        with mpl.rc_context({"text.usetex": usetex, "font.size": 30.0 if usetex else 10.0}):
            written = write_report([run], out=str(tmp_path / "report.md"))
        figures.append([Path(path).read_bytes() for path in written.files if path.endswith((".svg", ".png", ".pdf"))])
    assert figures[0] and figures[0] == figures[1]
