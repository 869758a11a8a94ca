"""Documents and charts for tests of the page, made by hand."""

import dataclasses

from records import make_records

from longeval.report.charts import Axis, Chart, HeatMap, Line, LineStyle, Mark, Panel
from longeval.report.document import (
    Bullets,
    Document,
    Figure,
    Heading,
    Listing,
    Note,
    Paragraph,
    Row,
    Section,
    Table,
    TableCell,
    View,
    code,
    prose,
)

LENGTHS = (1024.0, 2048.0, 4096.0)
YARN = LineStyle(colour="#D55E00", marker="P", opacity=0.4, width=4.0)
RESONANCE = LineStyle(colour="#D55E00", dash="dashed", marker="P", is_hollow=True, is_above=True)


def make_line(label="yarn", style=YARN, **changes):
    fields = {
        "x": LENGTHS,
        "y": (6.0, 5.5, 5.25),
        "low": (5.9, 5.4, 5.0),
        "high": (6.2, 5.6, 5.5),
        "notes": ("n 20", "n 19", "n 18"),
    }
    return Line(label=label, style=style, **fields | changes)


def make_panel(*lines, **changes):
    fields = {
        "x": Axis(title="Length", scale="log", ticks=((1024.0, "1k"), (2048.0, "2k"), (4096.0, "4k"))),
        "y": Axis(title="Perplexity"),
    }
    return Panel(lines=lines or (make_line(), make_line("resonance_yarn", RESONANCE)), **fields | changes)


def make_chart(*panels, **changes):
    return Chart(title=changes.pop("title", "toy on texts"), panels=panels or (make_panel(),), **changes)


def make_map(**changes):
    fields = {
        "columns": ("1k", "2k"),
        "rows": ("0%", "100%"),
        "values": ((0.5, 1.0), (0.0, None)),
        "texts": (("0.50", "1.00"), ("0.00", "")),
        "notes": (("n 4", "n 4"), ("n 4", "")),
        "low": 0.0,
        "high": 1.0,
        "quantity": "Mean accuracy",
    }
    return Panel(x=Axis(title="Length"), y=Axis(title="Depth"), title="yarn", heat_map=HeatMap(**fields | changes))


def make_figure(name="perplexity", chart=None, description="Perplexity by length"):
    return Figure(name=name, description=description, chart=chart or make_chart())


VALUES = {"none": "12.5", "pi": "6.05", "yarn": "5.250", "llama3": "1.057e5", "ntk": "−1", "abf": "10"}


def make_table(**changes):
    """Methods with values that sort in another order as text than as numbers."""
    rows = [
        Row(
            cells=(
                TableCell(text=code(name)),
                TableCell(text=value, interval=("1.0", "2.0"), note="(n 20)", mark="†", is_strong=name == "yarn"),
            )
        )
        for name, value in VALUES.items()
    ]
    failed = TableCell(text="failed", is_failure=True, reason="out of memory")
    rows.append(Row(cells=(TableCell(text=code("longrope")), failed)))
    rows += [Row(cells=(TableCell(text=code(f"own_{number}")), TableCell(text="–"))) for number in range(3)]
    fields = {"columns": ("method", "4k"), "rows": tuple(rows), "caption": "Lower is better.", "notes": ("† a note",)}
    return Table(**fields | changes)


def make_document(*blocks, sections=(), **changes):
    """A document with an opening table, a section of these blocks, and the two that every report ends with."""
    opening = Section(title="Effective length", blocks=(make_table(title="Effective"),))
    own = Section(title="toy on texts", blocks=blocks or (make_table(), make_figure()))
    last = (
        Section(title="How to repeat it", blocks=(Listing(language="sh", lines=("longeval ppl",)),)),
        Section(title="Provenance", blocks=(Bullets(items=("Device: cpu",)),)),
    )
    fields = {
        "title": "Perplexity by context length",
        "preface": "",
        "summary": "2 cells (1 done, 1 failed)",
        "files": (),
        "folder": "",
        "notes": (),
        "sections": (opening, own, *sections, *last),
        "records": tuple(make_records("pi", 4096, status="failed", error="out of memory")),
    }
    return Document(**fields | changes)


def hostile_document(text):
    """A document with `text` in every field that a string from outside can come into."""
    axis = Axis(title=text, ticks=((1024.0, text), (2048.0, f"{text} 2")))
    mark = Mark(axis="y", at=5.5, label=text)
    lines = (make_line(text, notes=(text,) * 3), make_line(f"{text} 2", RESONANCE, notes=(text,) * 3))
    panel = make_panel(
        *lines, x=axis, y=Axis(title=text), title=text, marks=(mark, Mark(axis="x", at=2048.0, label=text))
    )
    texts = ((text, text), (text, ""))
    heat_map = make_map(columns=(text, text), rows=(text, text), texts=texts, notes=texts, quantity=text)
    cells = (
        TableCell(text=prose("{} `{}`", text, text), reason=text, note=text, mark=text, is_failure=True),
        TableCell(text=text, interval=(text, text), is_strong=True),
    )
    rows = (Row(cells=(TableCell(text=text), TableCell(text=text)), is_heading=True), *[Row(cells=cells)] * 12)
    table = Table(columns=(text, text), rows=rows, title=text, caption=text, notes=(text,))
    blocks = (
        Heading(text=text),
        Paragraph(text=text),
        Note(text=code(text)),
        Bullets(items=(text, Bullets(items=(text,)))),
        Listing(language="yaml", lines=(text, text)),
        table,
        make_figure("lines", make_chart(panel, title=text), text),
        make_figure("map", make_chart(dataclasses.replace(heat_map, title=text), title=text), text),
    )
    tokens = {"model": text, "data": text, "protocol": text, "step": 0.001, "methods": [text], "keys": None}
    view = View(kind="tokens", title=text, load=lambda: tokens | {"documents": [], "notes": [text]})
    failed = make_records(text, 4096, status="failed", error=text, model=text, data=text)
    section = Section(title=text, blocks=blocks, views=(view,))
    parts = {"title": text, "preface": text, "summary": text, "notes": (text,), "records": tuple(failed)}
    return make_document(*blocks, sections=(section,), **parts)
