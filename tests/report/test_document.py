"""Texts of a document, and that a format is one function."""

import dataclasses

from longeval.registry import Registry
from longeval.report import formats
from longeval.report.document import Bullets, Data, Document, Row, Section, Span, Table, TableCell, joined, prose
from longeval.report.formats.latex import latex_report
from longeval.report.formats.markdown import block_text, inline


def document(*blocks, paper=(), data=()):
    section = Section(title="toy", blocks=blocks, paper=paper, data=data)
    return Document(
        title="T", preface="", summary="S", files=(), folder="t_files", notes=(), sections=(section,), records=()
    )


def test_values_are_never_read_as_a_template():
    assert prose("`{}` at {}: `a={}`.", "x`{}`", "{}", 3) == (
        Span("x`{}`", "code"),
        Span(" at "),
        Span("{}"),
        Span(": "),
        Span("a=3", "code"),
        Span("."),
    )
    assert prose("{} and {}", prose("`{}`", "a"), 2) == (Span("a", "code"), Span(" and "), Span("2"))
    assert joined("; ", ["a", prose("`b`")]) == (Span("a"), Span("; "), Span("b", "code"))


def test_markdown_escapes_what_would_be_read_as_markup_and_nothing_else():
    assert inline("p < 0.05 & q > 1, <b> &lt; a_b [c](d)") == r"p < 0.05 & q > 1, \<b> \&lt; a\_b \[c\](d)"
    assert inline("> no quotation") == r"\> no quotation"
    assert block_text(Bullets(items=("a", Bullets(items=("b",)), "c")), "") == "- a\n  - b\n- c"


def test_a_table_reads_alike_in_all_formats():
    cells = (
        TableCell(text=prose("`{}`", "a_b")),
        TableCell(text="1.5e4", interval=("1", "2"), is_strong=True, mark="†"),
    )
    heading = Row(cells=(TableCell(text="task"), TableCell(text="n 3")), is_heading=True)
    table = Table(
        columns=("method", "4k"), rows=(heading, Row(cells=cells)), title="T", caption="C.", notes=("N",), label="x"
    )
    shown = block_text(table, "")
    assert "| `a_b`  | **1.5e4** [1, 2] † |" in shown and "| *task* " in shown
    assert shown.startswith("C.\n\n|") and shown.endswith("\n\n- N")
    latex = latex_report(document(paper=(table,)))
    assert r"\quad a\_b & \textbf{$1.5{\times}10^{4}$}\ci{1}{2}$^\dagger$ \\" in latex
    assert r"\multicolumn{2}{l}{\textit{task}} \\" in latex
    assert r"\caption{T. C.}" in latex and r"\label{tab:x}" in latex and r"\footnotesize N.}" in latex


def test_data_of_one_name_is_one_file():
    one, two = (Data(name="pairs", rows=({"a": value},)) for value in (1, 2))
    section = Section(title="s", blocks=(), data=(one, Data(name="none", rows=())))
    made = dataclasses.replace(document(), sections=(section, dataclasses.replace(section, data=(two,))))
    assert [(data.name, [*data.rows]) for data in made.data] == [("pairs", [{"a": 1}, {"a": 2}])]


def test_a_format_is_one_registered_function(monkeypatch):
    registry = Registry("report format")
    for suffix, own in (*formats.formats().items(), *formats.formats(alone=True).items()):
        registry.register(suffix, own)
    monkeypatch.setattr(formats, "_FORMATS", registry)

    monkeypatch.setattr(formats, "_ALONE", set(formats.formats(alone=True)))

    @formats.register("txt")
    @formats.register("own", alone=True)
    def render(document):
        return f"<title>{document.title}</title>"

    assert [*formats.formats()] == ["md", "csv", "json", "tex", "txt"]
    assert [*formats.formats(alone=True)] == ["html", "own"]
    found = formats.formats() | formats.formats(alone=True)
    assert found["own"](document()) == found["txt"](document()) == "<title>T</title>"
    assert found["md"](document()).startswith("# T\n")
