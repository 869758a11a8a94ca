"""A chart as Plotly's figure: values, intervals, looks, axes, marks, heat maps, and that texts are only text."""

import json
import math

import pytest
from pages import LENGTHS, make_chart, make_line, make_map, make_panel

from longeval.report.charts import Axis, LineStyle, Mark
from longeval.report.page.plotly import escaped, number_text, plotly_figure


def test_a_line_has_its_values_intervals_and_look():
    yarn, resonance = plotly_figure(make_chart())["data"]
    assert (yarn["x"], yarn["y"]) == (list(LENGTHS), [6.0, 5.5, 5.25])
    assert yarn["error_y"]["array"] == pytest.approx([0.2, 0.1, 0.25])
    assert yarn["error_y"]["arrayminus"] == pytest.approx([0.1, 0.1, 0.25])
    assert yarn["line"] == {"color": "#D55E00", "dash": "solid", "width": pytest.approx(16 / 3)}
    assert (yarn["opacity"], yarn["zorder"], resonance["zorder"]) == (0.4, 0, 1)
    assert resonance["line"]["dash"] == "dash" and resonance["line"]["color"] == yarn["line"]["color"]
    assert (yarn["marker"]["color"], resonance["marker"]["color"]) == ("#D55E00", "#ffffff")
    assert resonance["marker"]["symbol"] == "cross" and resonance["marker"]["line"]["color"] == "#D55E00"


def test_the_pointer_shows_line_place_value_interval_and_notes():
    yarn, _ = plotly_figure(make_chart())["data"]
    assert yarn["hovertext"][0] == "<b>yarn</b><br>Length: 1k<br>Perplexity: 6 [5.9, 6.2]<br>n 20"
    bare = make_line(low=(), high=(), notes=(), x=(1500.0, 2048.0, 4096.0), y=(None, 5.5, 5.25))
    (trace,) = plotly_figure(make_chart(make_panel(bare)))["data"]
    assert trace["hovertext"][:2] == ["<b>yarn</b><br>Length: 1,500", "<b>yarn</b><br>Length: 2k<br>Perplexity: 5.5"]
    assert "error_y" not in trace


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (8192.0, "8,192"), (271.25, "271.2"), (-0.5, "-0.5"), (105700.5, "1.057e+05")],
)
def test_numbers_have_four_digits(value, text):
    assert number_text(value) == text


def test_points_that_json_cannot_hold_are_left_out():
    line = make_line(y=(math.inf, math.nan, 5.25), low=(math.nan, None, 5.0))
    found = plotly_figure(make_chart(make_panel(line)))
    json.dumps(found, allow_nan=False)
    (trace,) = found["data"]
    assert trace["y"] == [None, None, 5.25]
    assert trace["error_y"]["arrayminus"] == [None, None, 0.25]


def test_a_band_goes_around_each_run_of_points():
    line = make_line(
        x=(1.0, 2.0, 3.0, 4.0),
        y=(1.0,) * 4,
        low=(0.0, 0.1, None, 0.3),
        high=(2.0, 2.1, 2.2, 2.3),
        notes=(),
        interval="band",
    )
    band, trace = plotly_figure(make_chart(make_panel(line)))["data"]
    assert band["x"] == [1.0, 2.0, 2.0, 1.0, None, 4.0, 4.0]
    assert band["y"] == [0.0, 0.1, 2.1, 2.0, None, 0.3, 2.3]
    assert (band["fill"], band["fillcolor"], band["showlegend"]) == ("toself", "#D55E00", False)
    assert band["legendgroup"] == trace["legendgroup"] and trace["showlegend"] and "error_y" not in trace
    hover = make_line(interval="hover")
    (trace,) = plotly_figure(make_chart(make_panel(hover)))["data"]
    assert trace["error_y"]["visible"] is False and "[5.9, 6.2]" in trace["hovertext"][0]


def test_axes_have_scale_span_and_ticks():
    axis = Axis(title="Epoch", is_whole=True, span=(0.0, 8.0))
    layout = plotly_figure(make_chart(make_panel(y=axis)))["layout"]
    assert layout["xaxis"]["type"] == "log" and layout["xaxis"]["ticktext"] == ["1k", "2k", "4k"]
    assert layout["yaxis"]["range"] == [0.0, 8.0] and layout["yaxis"]["dtick"] == 1
    log = Axis(title="Perplexity", scale="log", span=(1.0, 1000.0))
    assert plotly_figure(make_chart(make_panel(y=log)))["layout"]["yaxis"]["range"] == pytest.approx([0.0, 3.0])


def test_panels_share_axes_and_entries_of_the_legend():
    chart = make_chart(*[make_panel(title=str(number)) for number in range(4)], columns=2, share_x=True, share_y="row")
    found = plotly_figure(chart)
    layout, data = found["layout"], found["data"]
    assert found["columns"] == 2
    assert [layout[f"xaxis{n}"].get("matches") for n in ("", 2, 3, 4)] == [None, "x", "x", "x"]
    assert [layout[f"yaxis{n}"].get("matches") for n in ("", 2, 3, 4)] == [None, "y", None, "y3"]
    assert [(layout[f"xaxis{n}"]["anchor"], layout[f"yaxis{n}"]["anchor"]) for n in ("", 4)] == [
        ("y", "x"),
        ("y4", "x4"),
    ]
    assert [trace["showlegend"] for trace in data] == [True, True] + [False] * 6
    assert [trace["yaxis"] for trace in data[::2]] == ["y", "y2", "y3", "y4"]


def test_marks_are_lines_with_labels():
    marks = (Mark(axis="x", at=2048.0, label="native 2k"), Mark(axis="y", at=0.25, label="guessing"))
    layout = plotly_figure(make_chart(make_panel(marks=marks)))["layout"]
    native, guessing = layout["shapes"]
    assert (native["x0"], native["x1"], native["xref"], native["yref"]) == (2048.0, 2048.0, "x", "y domain")
    assert (guessing["y0"], guessing["xref"], guessing["label"]["text"]) == (0.25, "x domain", "guessing")
    (label,) = layout["annotations"]
    assert (label["text"], label["x"]) == ("native 2k", pytest.approx(math.log10(2048)))


def test_a_heat_map_has_values_numbers_and_a_scale():
    found = plotly_figure(make_chart(make_map(), make_map()))
    first, second = found["data"]
    assert first["z"] == [[0.5, 1.0], [0.0, None]]
    assert first["text"] == [["0.50<br>n 4", "1.00<br>n 4"], ["0.00<br>n 4", ""]]
    assert first["hovertext"][0][1] == "Length: 2k<br>Depth: 0%<br>Mean accuracy: 1.00<br>n 4"
    layout = found["layout"]
    assert layout["xaxis"]["ticktext"] == ["1k", "2k"] and layout["yaxis2"]["autorange"] == "reversed"
    assert first["coloraxis"] == second["coloraxis"] == "coloraxis" and "coloraxis2" not in layout
    assert (layout["coloraxis"]["cmin"], layout["coloraxis"]["cmax"]) == (0.0, 1.0)
    other = plotly_figure(make_chart(make_map(), make_map(high=5.0)))
    assert other["data"][1]["coloraxis"] == "coloraxis2" and not other["layout"]["coloraxis2"]["showscale"]


def test_every_marker_of_a_method_has_a_symbol():
    from longeval.looks import LOOKS

    styles = [LineStyle(colour=look.colour, marker=look.marker) for look in LOOKS.values()]
    lines = [make_line(str(number), style) for number, style in enumerate(styles)]
    symbols = [trace["marker"]["symbol"] for trace in plotly_figure(make_chart(make_panel(*lines)))["data"]]
    assert len(set(symbols)) == len(LOOKS)


def test_texts_are_no_markup():
    assert escaped('<b>&amp;"\n\u202ex') == '&lt;b&gt;&amp;amp;" \\u202ex'
    text = '<a href="javascript:alert(1)">x</a>'
    panel = make_panel(make_line(text, notes=(text,) * 3), title=text, marks=(Mark(axis="y", at=1.0, label=text),))
    found = json.dumps(plotly_figure(make_chart(panel, make_map(rows=(text, text)), title=text)))
    assert "<a" not in found and found.count("&lt;a href") > 10
