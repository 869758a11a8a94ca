"""The page in Chromium: charts draw and answer, tables sort and filter, nothing leaves the machine."""

import csv
import io
import re
from pathlib import Path

import pytest
from pages import (
    LENGTHS,
    RESONANCE,
    VALUES,
    hostile_document,
    make_chart,
    make_document,
    make_figure,
    make_line,
    make_map,
    make_panel,
    make_table,
)

from longeval.report.charts import LineStyle
from longeval.report.document import Row, Section, Table, TableCell, View, code
from longeval.report.page.html import page

pytestmark = pytest.mark.browser

PLOT = "#section-2 .plot"


def shown(browser_page, selector=PLOT):
    """Scrolls to a chart and waits until it is drawn."""
    browser_page.locator(selector).first.scroll_into_view_if_needed()
    browser_page.wait_for_selector(f"{selector} .main-svg .xtick text", state="attached")
    return browser_page


def until(browser_page, expression):
    """Waits until an expression of JavaScript is true; the page's policy forbids playwright's own way."""
    for _ in range(50):
        if browser_page.evaluate(expression):
            return
        browser_page.wait_for_timeout(100)
    raise AssertionError(expression)


def column(browser_page, number):
    return browser_page.eval_on_selector_all(
        "#section-2 tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent.trim())"
    )


def traces(browser_page, selector=PLOT):
    return browser_page.locator(f"{selector} .trace").count()


# Charts.


@pytest.mark.parametrize("width", [380, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_draw_and_fit(opened, width, scheme):
    heat_map = make_figure("map", make_chart(make_map(), make_map(), columns=2))
    found = shown(opened(page(make_document(make_table(), make_figure(), heat_map)), width=width, scheme=scheme))
    assert traces(found) == 2
    labels = found.locator(f"{PLOT} .xtick text").all_text_contents()
    assert labels[:3] == ["1k", "2k", "4k"]
    shown(found, '[data-name="map"] .plot')
    assert found.locator('[data-name="map"] .heatmaplayer image').count() == 2
    texts = found.locator('[data-name="map"] .heatmap-label').all_text_contents()
    assert texts[:2] == ["0.50n 4", "1.00n 4"]
    lefts = {round(image.bounding_box()["x"]) for image in found.locator('[data-name="map"] image').all()}
    assert len(lefts) == (1 if width == 380 else 2), "panels stand below one another where there is no room"
    assert found.evaluate("document.documentElement.scrollWidth") == width


def test_the_pointer_shows_value_interval_and_n(opened):
    found = shown(opened(page(make_document(make_figure()))))
    box = found.locator(f"{PLOT} .point").nth(2).bounding_box()
    found.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    found.wait_for_selector(f"{PLOT} .hovertext")
    text = found.locator(f"{PLOT} .hovertext").text_content()
    assert re.fullmatch(r"(resonance_)?yarnLength: 4kPerplexity: 5.25 \[5, 5.5\]n 18", text)


def test_the_legend_hides_lines_by_mouse_and_keyboard(opened):
    chart = make_chart(make_panel(title="a"), make_panel(title="b"), columns=2)
    found = shown(opened(page(make_document(make_figure(chart=chart)))))
    assert traces(found) == 4
    entry = found.locator("#section-2").get_by_role("button", name="resonance_yarn")
    entry.click()
    assert (traces(found), entry.get_attribute("aria-pressed")) == (2, "false")
    entry.focus()
    found.keyboard.press("Enter")
    assert (traces(found), entry.get_attribute("aria-pressed")) == (4, "true")
    entry.dblclick()
    assert traces(found) == 2 and entry.get_attribute("aria-pressed") == "true", "the others are hidden"


def test_an_axis_can_be_logarithmic_where_all_values_are_positive(opened):
    signed = make_figure("signed", make_chart(make_panel(make_line(y=(-1.0, 0.0, 1.0), low=(), high=()))))
    found = shown(opened(page(make_document(make_figure(), signed))))
    kind = f"document.querySelector('{PLOT}')._fullLayout.yaxis.type"
    assert found.evaluate(kind) == "linear"
    found.locator("#section-2").get_by_role("button", name="Log axis").click()
    assert found.evaluate(kind) == "log"
    found.locator("#section-2").get_by_role("button", name="Reset zoom").first.click()
    assert traces(found) > 0 and found.evaluate(kind) == "log"
    shown(found, '[data-name="signed"] .plot')
    assert found.locator('[data-name="signed"]').get_by_role("button", name="Log axis").count() == 0


def test_intervals_that_would_hide_lines_are_shown_on_demand(opened):
    lines = make_line(interval="hover"), make_line("resonance_yarn", RESONANCE, interval="hover")
    both = make_figure(chart=make_chart(make_panel(*lines))), make_figure("bars")
    found = shown(opened(page(make_document(*both))), '[data-name="perplexity"] .plot')
    figure = found.locator('#section-2 [data-name="perplexity"]')
    assert figure.locator(".errorbar path").count() == 0
    figure.get_by_role("button", name="Intervals").click()
    assert figure.locator(".errorbar path").count() > 0
    figure.get_by_role("button", name="Intervals").click()
    assert figure.locator(".errorbar path").count() == 0
    bars = shown(found, '[data-name="bars"] .plot').locator('[data-name="bars"]')
    assert bars.locator(".errorbar path").count() > 0 == bars.get_by_role("button", name="Intervals").count()


@pytest.mark.parametrize(("name", "start"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
def test_a_chart_can_be_saved(opened, tmp_path, name, start):
    found = shown(opened(page(make_document(make_figure())), scheme="dark"))
    with found.expect_download() as waiting:
        found.locator("#section-2").get_by_role("button", name=f"Save the chart as {name}").click()
    assert waiting.value.suggested_filename == f"perplexity.{name.lower()}"
    content = Path(waiting.value.path()).read_bytes()
    assert content.startswith(start) and len(content) > 5_000
    if name == "SVG":
        text = content.decode()
        assert "toy on texts" in text and text.count("legendtext") >= 2, "a file has its title and its legend"
        assert "20, 24, 29" not in text, "and white paper"


def test_dark_paper_has_colours_that_can_be_seen(opened):
    black = LineStyle(colour="#000000", marker="o")
    document = make_document(
        make_figure(chart=make_chart(make_panel(make_line("none", black), make_line("r", RESONANCE))))
    )
    colours = {}
    for scheme in ("light", "dark"):
        found = shown(opened(page(document), scheme=scheme))
        colours[scheme] = found.evaluate(f"document.querySelector('{PLOT}').data.map(trace => trace.line.color)")
    assert colours == {"light": ["#000000", "#D55E00"], "dark": ["#e4e8ec", "#D55E00"]}
    found.emulate_media(color_scheme="light")
    until(found, f"document.querySelector('{PLOT}').data[0].line.color === '#000000'")


def test_all_charts_are_on_paper_in_light_colours(opened):
    black = make_chart(make_panel(make_line("none", LineStyle(colour="#000000"))))
    figures = [make_figure(f"f{number}", black) for number in range(12)]
    found = opened(page(make_document(*figures)), scheme="dark", width=1600)
    drawn = "[...document.querySelectorAll('#section-2 .plot')].filter(plot => plot.data).length"
    assert found.evaluate(drawn) < 12, "charts are drawn where they are seen"
    found.evaluate(
        "addEventListener('beforeprint', () => { printed = document.querySelectorAll('.plot')[11]._fullLayout; })"
    )
    assert len(found.pdf(format="A4")) > 50_000
    assert found.evaluate(drawn) == 12
    assert found.evaluate("[printed.width < 700, printed.font.color, printed.paper_bgcolor]") == [
        True,
        "#1d2329",
        "#ffffff",
    ]
    until(found, "document.querySelector('#section-2 .plot')._fullLayout.font.color === '#e4e8ec'")


def test_the_numbers_of_a_chart_can_be_read_as_a_table(opened):
    found = shown(opened(page(make_document(make_figure()))))
    found.locator("#section-2 summary", has_text="Values").click()
    found.locator("#section-2 .values tr").first.wait_for()
    rows = found.locator("#section-2 .values tr").all_text_contents()
    assert len(rows) == 2 * len(LENGTHS) and rows[0] == "yarnLength: 1kPerplexity: 6 [5.9, 6.2]n 20"


# Tables.


def test_a_table_sorts_by_value(opened):
    found = opened(page(make_document(make_table())))
    header = found.locator("#section-2 thead th").nth(1)
    before = column(found, 0)
    found.locator("#section-2").get_by_role("button", name="4k").click()
    assert column(found, 0)[:6] == ["ntk", "yarn", "pi", "abf", "none", "llama3"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").focus()
    found.keyboard.press("Enter")
    assert column(found, 0)[:6] == ["llama3", "none", "abf", "pi", "yarn", "ntk"], "cells without a number stay last"
    assert header.get_attribute("aria-sort") == "descending"
    header.get_by_role("button").click()
    assert column(found, 0) == before and header.get_attribute("aria-sort") is None


def test_rows_are_sorted_and_filtered_under_their_heading(opened):
    def rows(*values):
        return [Row(cells=(TableCell(text=f"m{value}"), TableCell(text=value))) for value in values]

    groups = [Row(cells=(TableCell(text=name), TableCell(text="")), is_heading=True) for name in ("first", "second")]
    table = make_table(rows=(groups[0], *rows("3", "1", "2", "4k"), groups[1], *rows("30", "10", "20", "40k")))
    found = opened(page(make_document(table)))
    found.locator("#section-2").get_by_role("button", name="4k").click()
    assert column(found, 0) == ["first", "m1", "m2", "m3", "m4k", "second", "m10", "m20", "m30", "m40k"]
    box = found.locator("#section-2").get_by_role("searchbox", name="Filter rows")
    box.fill("m3")
    assert column(found, 0) == ["first", "m3", "second", "m30"]
    box.fill("second 10")
    assert column(found, 0) == ["second", "m10"]
    assert found.locator("#section-2 .count").text_content() == "1 of 8 rows"
    box.fill("")
    assert len(column(found, 0)) == 10


def test_few_rows_have_no_filter(opened):
    table = make_table()
    found = opened(page(make_document(Table(columns=table.columns, rows=table.rows[:4]))))
    found.locator("#section-2").get_by_role("button", name="Copy the table as CSV").wait_for()
    assert found.locator("#section-2").get_by_role("searchbox").count() == 0


def test_failed_cells_can_be_filtered_by_their_reason(opened):
    from records import make_records

    failed = [
        make_records(f"pe{n}", 4096, status="failed", error=("memory", "power", "time")[n % 3])[0] for n in range(12)
    ]
    found = opened(page(make_document(records=tuple(failed))))
    section = found.locator("section", has_text="Cells without a value")
    section.scroll_into_view_if_needed()
    section.get_by_role("searchbox").fill("power")
    assert section.locator("tbody tr:not([hidden])").count() == 4


def test_a_table_is_copied_as_it_is_shown(opened):
    found = opened(page(make_document(make_table())))
    section = found.locator("#section-2")
    section.get_by_role("searchbox").fill("ntk")

    def copied(name):
        section.get_by_role("button", name=f"Copy the table as {name}").click()
        return found.evaluate("navigator.clipboard.readText()")

    markdown = copied("Markdown").splitlines()
    assert markdown == ["| method | 4k |", "| :-- | --: |", "| ntk | −1 [1.0, 2.0] (n 20) † |"]
    section.get_by_role("searchbox").fill("yarn")
    assert copied("Markdown").splitlines()[2] == "| yarn | **5.250** [1.0, 2.0] (n 20) † |"
    latex = copied("LaTeX")
    assert r"yarn & \textbf{5.250}\,{\scriptsize [1.0, 2.0]} (n 20)$^\dagger$ \\" in latex and r"\toprule" in latex
    section.get_by_role("searchbox").fill("")
    rows = [*csv.DictReader(io.StringIO(copied("CSV")))]
    assert {row["method"]: row["4k"] for row in rows[:6]} == VALUES | {"ntk": "-1"}
    assert (rows[0]["4k low"], rows[0]["4k high"], rows[6]["4k"]) == ("1.0", "2.0", "failed")


def test_special_characters_are_escaped_in_copies(opened):
    text = 'a|b_*c* "q", 50% & {x} \\ <i>'
    found = opened(page(make_document(make_table(rows=(Row(cells=(TableCell(text=text), TableCell(text="1"))),)))))

    def copied(name):
        found.locator("#section-2").get_by_role("button", name=f"Copy the table as {name}").click()
        return found.evaluate("navigator.clipboard.readText()")

    from longeval.report.formats.latex import SPECIAL_CHARACTERS
    from longeval.report.formats.markdown import escape_markdown

    assert escape_markdown(text) in copied("Markdown")
    assert "".join(SPECIAL_CHARACTERS.get(character, character) for character in text) in copied("LaTeX")
    assert [*csv.reader(io.StringIO(copied("CSV")))][1] == [text, "1"]


def test_commands_and_specs_can_be_copied(opened):
    found = opened(page(make_document()))
    found.locator(".listing").get_by_role("button", name="Copy").click()
    assert found.evaluate("navigator.clipboard.readText()").strip() == "longeval ppl"


# Views, labels, safety, size.


def test_a_view_is_filled_when_it_is_first_seen(opened):
    view = View(kind="samples", title="Samples", load=lambda: {"name": "one"})
    found = opened(page(make_document(sections=(Section(title="More", blocks=(), views=(view,)),))))
    found.evaluate(
        "() => { longeval.views.samples = (element, data) => { element.textContent += `filled with ${data.name}`; }; }"
    )
    assert found.locator(".view").text_content() == ""
    summary = found.locator("summary", has_text="Samples")
    summary.click()
    until(found, "document.querySelector('.view').textContent === 'filled with one'")
    summary.click()
    summary.click()
    found.wait_for_timeout(200)
    assert found.locator(".view").text_content() == "filled with one", "once"


def test_everything_has_a_name_and_the_keyboard_reaches_it(opened):
    found = shown(opened(page(make_document(make_table(title="Perplexity"), make_figure()))))
    assert found.get_by_role("img", name="Perplexity by length: toy on texts").count() == 1
    assert found.locator("#section-2").get_by_role("region", name="Perplexity").count() == 1
    assert found.get_by_role("navigation", name="Contents").count() == 1
    nameless = found.evaluate(
        """[...document.querySelectorAll('button, input, a, summary')].filter(
            one => !(one.textContent.trim() || one.getAttribute('aria-label'))).length"""
    )
    assert nameless == 0
    reached = set()
    for _ in range(80):
        found.keyboard.press("Tab")
        reached.add(found.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText").strip())
    assert {
        "Skip to the content",
        "Filter rows",
        "Copy the table as CSV",
        "Log axis",
        "failed",
    } <= reached
    assert any(name.endswith("resonance_yarn") for name in reached)


HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<a href='javascript:alert(1)'>x</a><b>b</b>",
    "[a](javascript:alert(1)) {{7*7}} ${7*7} %{x} &lt;img src=x onerror=alert(1)&gt;",
    "\u202e\x00\u2028 $\\href{javascript:alert(1)}{x}$ <!--",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(opened, text):
    from longeval.printable import printable

    found = shown(opened(page(hostile_document(text))), '[data-name="lines"] .plot')
    visible = printable(" ".join(text.split()))
    shown(found, '[data-name="map"] .plot')
    for summary in found.locator("summary").all():
        summary.click()
    found.wait_for_timeout(300)
    assert found.locator("h1").text_content() == printable(text)
    ticks = found.locator('[data-name="lines"] .xtick text').first.text_content()
    assert ticks == visible
    labels = found.locator('[data-name="map"] .heatmap-label').first.text_content()
    assert labels == visible * 2
    assert visible in found.locator('[data-name="lines"] .legend button').first.text_content()
    plot = found.locator('[data-name="lines"] .plot').first
    plot.scroll_into_view_if_needed()
    found.wait_for_timeout(300)  # sections above are laid out as they come near
    point = plot.locator(".point").nth(2).bounding_box()
    found.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    found.wait_for_selector(".hovertext")
    assert visible in plot.locator(".hovertext").text_content()
    assert found.locator("img, a[href*=script], svg[onload], .plot a").count() == 0
    assert found.evaluate("[...document.querySelectorAll('a')].every(a => /^(#|https?:)/.test(a.getAttribute('href')))")


def large_document(num_sections=50, num_rows=20, num_columns=10):
    """10,000 cells: tables with intervals, and a chart of each."""
    sections = []
    for place in range(num_sections):
        cells = [
            [TableCell(text=f"{6 + row / 7 + n / 9:.4g}", interval=("5.901", "6.202")) for n in range(num_columns)]
            for row in range(num_rows)
        ]
        rows = [Row(cells=(TableCell(text=code(f"method_{row}")), *values)) for row, values in enumerate(cells)]
        x = tuple(256.0 * 2**n for n in range(num_columns))
        intervals = {"low": (5.9,) * num_columns, "high": (9.0,) * num_columns, "notes": ("n 20",) * num_columns}
        lines = [
            make_line(f"method_{row}", x=x, y=tuple(6 + row / 7 + n / 9 for n in range(num_columns)), **intervals)
            for row in range(num_rows)
        ]
        columns = ("method", *(f"{2**n}k" for n in range(num_columns)))
        table = Table(columns=columns, rows=tuple(rows), caption="Perplexity.")
        figure = make_figure(f"f{place}", make_chart(make_panel(*lines)))
        sections.append(Section(title=f"toy on data {place}", blocks=(table, figure)))
    return make_document(sections=tuple(sections))


def test_charts_of_a_page_of_10_000_cells_are_drawn_when_they_are_seen(opened):
    """How long it takes to open is measured by `python -m bench.store`."""
    text = page(large_document())
    assert text.count("<td class=num") >= 10_000
    found = shown(opened(text), "#section-2 .plot")
    assert found.locator(".plot .main-svg").count() < found.locator(".plot").count()
    found.evaluate("document.querySelector('#section-50').scrollIntoView({behavior: 'instant'})")
    shown(found, "#section-50 .plot")
