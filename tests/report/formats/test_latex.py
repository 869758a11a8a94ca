"""LaTeX of a report: what it says without LaTeX, and how it comes out where there is one."""

import os
import re
import shutil
import subprocess

import pytest
from records import make_nll, make_records, make_samples, make_task_records, make_task_run, write_report

from longeval.report.document import Document, Row, Section, Table, TableCell, symbol
from longeval.report.formats.latex import escape_latex, latex_report

PAPER = r"""\documentclass%s{article}
\usepackage{booktabs,graphicx}
%s
\begin{document}
\input{%s}
\end{document}
"""


def document(*tables):
    section = Section(title="Section", blocks=(), paper=tables)
    fixed = {"title": "T", "preface": "", "summary": "", "files": (), "notes": (), "records": ()}
    return Document(**fixed, folder="t_files", sections=(section,))


def table(num_rows=3, num_lengths=3, *, label="method", headings=(), **changes):
    """A table of intervals; a heading stands before each row in `headings`."""
    rows = []
    for number in range(num_rows):
        if number in headings:
            rows.append(Row(cells=(TableCell(text=f"task {number}"),), is_heading=True))
        values = [TableCell(text=f"{number}.{place:02d}", interval=("1.001", "9.999")) for place in range(num_lengths)]
        rows.append(Row(cells=(TableCell(text=f"{label}{number}"), TableCell(text="2"), *values)))
    columns = ("method", symbol("s"), *(f"{2**place}k" for place in range(num_lengths)))
    return Table(columns=columns, rows=tuple(rows), **{"title": "A table", "label": "one"} | changes)


def typeset(folder, name="report.tex", *, options="", preamble=""):
    """Runs pdflatex; returns its log with long lines whole."""
    if shutil.which("pdflatex") is None or shutil.which("pdftotext") is None:
        pytest.skip("needs pdflatex and pdftotext")
    (folder / "paper.tex").write_text(PAPER % (options, preamble, name))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    subprocess.run(command, cwd=folder, env=os.environ | {"max_print_line": "10000"}, stdout=subprocess.DEVNULL)
    return (folder / "paper.log").read_text(encoding="utf-8", errors="replace")


def faults(log):
    """Errors, lines that are wider than the page by more than a point, and what is too high for it."""
    wide = [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log)]
    errors = re.findall(r"^!.*|.*Float too large.*|Missing character.*|.*File .* not found.*", log, re.MULTILINE)
    return [*errors, *(points for points in wide if points > 1)]


def bodies(text):
    """The rows of each tabular of a report."""
    found = re.findall(r"\\midrule\n(.*?)    \\bottomrule", text, re.DOTALL)
    return [[line.strip().removesuffix(r" \\") for line in body.splitlines()] for body in found]


def test_a_small_table_is_one_with_intervals_beside():
    text = latex_report(document(table()))
    assert bodies(text) == [
        [f"method{n} & 2 & " + " & ".join(f"{n}.{p:02d}\\ci{{1.001}}{{9.999}}" for p in range(3)) for n in range(3)]
    ]


def test_a_wide_table_has_intervals_below_and_each_column_once():
    text = latex_report(document(table(num_lengths=14)))
    headers = re.findall(r"\\toprule\n    (.*) \\\\", text)
    assert len(headers) > 1 and all(header.startswith("Method & $s$ & ") for header in headers)
    assert [name for header in headers for name in header.split(" & ")[2:]] == [f"{2**place}k" for place in range(14)]
    assert "\\ciunder{0.00}{1.001}{9.999}" in text and r"\ci{1" not in text
    assert re.findall(r"\\label{(.*)}", text) == ["tab:one", *(f"tab:one-{n}" for n in range(2, len(headers) + 1))]


def test_a_long_table_goes_on_under_its_heading():
    parts = bodies(latex_report(document(table(num_rows=70, headings=(0, 30, 60)))))
    assert len(parts) > 1 and max(map(len, parts)) < 38
    headings = [rf"\multicolumn{{5}}{{l}}{{\textit{{task {number}}}}}" for number in (0, 30, 60)]
    assert all(part[0] in headings and part[-1] not in headings for part in parts)
    names = [row.split(" & ")[0] for part in parts for row in part if row not in headings]
    assert names == [rf"\quad method{number}" for number in range(70)]


def test_parts_repeat_the_columns_that_tell_rows_apart():
    rows = [Row(cells=tuple(TableCell(text=text) for text in ("a method", n, *["0.123456789012"] * 12))) for n in "123"]
    text = latex_report(document(Table(columns=("method", "n", *map(str, range(12))), rows=tuple(rows), label="x")))
    parts = bodies(text)
    assert len(parts) > 1 and all([row.split(" & ")[1] for row in part] == ["1", "2", "3"] for part in parts)


def test_escaped_text():
    assert escape_latex("50% of $x_1 & #2 {a}~b^c\\") == (
        r"50\% of \$x\_1 \& \#2 \{a\}\textasciitilde{}b\textasciicircum{}c\textbackslash{}"
    )
    assert escape_latex("Größe, naïve Š") == "Größe, naïve Š"
    assert escape_latex("中 ą λ\u0301 😀") == "[U+4E2D] [U+0105] [U+03BB][U+0301] [U+1F600]"
    assert escape_latex("a" * 20) == "a" * 20
    assert escape_latex("a" * 25).replace(r"\allowbreak{}", " ") == f"{'a' * 10} {'a' * 10} {'a' * 5}"
    assert escape_latex("/home/user/models/name").replace(r"\allowbreak{}", " ") == "/ home/ user/ models/ name"


HOSTILE = (
    "/home/somebody/models/" + "x" * 150,
    r"\input{/etc/passwd} $\frac{ % # & _ ^ ~ \end{table} \\ ^^M",
    "中文 модель 😀 Größe ﬁ « » ¿ ð ą \u202e \x00 ``''--",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_holds_every_text(tmp_path, text):
    shown = table(num_rows=40, num_lengths=12, label=f"{text} ", headings=(0, 9), title=text, caption=text)
    heading = Row(cells=(TableCell(text=f"{text} {text}"),), is_heading=True)
    tables = [
        Table(
            columns=shown.columns, rows=(heading, *shown.rows), title=text, caption=text, label="a", notes=(text,) * 3
        ),
        Table(columns=shown.columns, rows=shown.rows[1:4], title=text, label="b", notes=(f"{text} " * 50,)),
    ]
    (tmp_path / "report.tex").write_text(latex_report(document(*tables)))
    assert faults(typeset(tmp_path)) == []


@pytest.mark.parametrize("options", ["", "[twocolumn]", "[12pt,a4paper]"])
def test_many_and_large_tables_fit_on_pages(tmp_path, options):
    tables = [table(num_rows=rows, num_lengths=lengths) for rows, lengths in ((3, 5), (30, 9), (30, 20), (80, 4))]
    tables += [table(num_rows=1, title=f"Table {number}") for number in range(60)]
    (tmp_path / "report.tex").write_text(latex_report(document(*tables)))
    log = typeset(tmp_path, options=options)
    assert faults(log) == [] and "Output written" in log


def test_a_line_in_the_preamble_hides_intervals(tmp_path):
    (tmp_path / "report.tex").write_text(latex_report(document(table(num_lengths=8), table())))
    assert faults(typeset(tmp_path, preamble=r"\newcommand{\ci}[2]{}")) == []
    shown = subprocess.run(["pdftotext", "paper.pdf", "-"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "0.07" in shown.stdout and "9.999" not in shown.stdout


def test_a_whole_report_with_figures_is_typeset(tmp_path):
    cells = []
    for pe in ("none", "yarn", "resonance_yarn"):
        for length in (32, 64):
            nll = make_nll([[2.0] * (length - 1)] * 12)
            cells.append((make_records(pe, length, nll), nll, None))
            samples = make_samples([1, 0, 1, 1], depths=[0.0, 0.5, 0.0, 0.5])
            cells.append((make_task_records(pe, length, "passkey", samples), samples))
    cells.append((make_records("pi", 32, status="failed", error=HOSTILE[1], factor=2.0), None, None))
    run = make_task_run(tmp_path / "run", cells)
    written = write_report([run], out=str(tmp_path / "my report_1 %#~.md"))
    figures = [path for path in written.files if path.endswith(".pdf")]
    assert len(figures) == 4
    (tmp_path / "copy.tex").write_bytes((tmp_path / "my report_1 %#~.tex").read_bytes())
    log = typeset(tmp_path, "copy.tex")
    assert faults(log) == []
    for path in figures:
        assert f"{os.path.basename(path)}>" in log
