"""Still pictures of charts: what is drawn where, and that nothing is cut, read as a formula or different each time."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from longeval.report.charts import Axis, Chart, HeatMap, Line, LineStyle, Mark, Panel
from longeval.report.plots import draw, make_figure

LENGTHS = Axis(title="Context length (tokens)", scale="log", span=(60, 270), ticks=((64, "64"), (256, "256")))
SCORES = Axis(title="Score")
BASE = LineStyle(colour="#D55E00", width=4.0, marker="P", marker_size=9.0, opacity=0.4)
RESONANCE = LineStyle(colour="#D55E00", dash="dashed", width=1.4, marker="P", is_hollow=True, is_above=True)
LINE = Line(label="yarn", style=BASE, x=(64, 128, 256), y=(0.9, None, 0.2), low=(0.8, None, 0.1), high=(1.0, None, 0.3))
PANEL = Panel(
    x=LENGTHS, y=SCORES, lines=(LINE, replace(LINE, label="resonance_yarn", style=RESONANCE, low=(), high=()))
)
CHART = Chart(title="toy on texts", panels=(PANEL,))


def only_panel(*lines, **changes):
    return make_figure(replace(CHART, panels=(replace(PANEL, lines=lines, **changes),))).axes[0]


def test_a_line_looks_as_its_style_says():
    axes = make_figure(CHART).axes[0]
    base, resonance = axes.get_lines()
    assert base.get_ydata()[[0, 2]].tolist() == [0.9, 0.2] and base.get_ydata()[1] != base.get_ydata()[1]
    assert (base.get_color(), base.get_linestyle(), base.get_linewidth(), base.get_alpha()) == ("#D55E00", "-", 4, 0.4)
    assert (resonance.get_linestyle(), resonance.get_markerfacecolor(), resonance.get_alpha()) == ("--", "white", 1)
    assert (base.get_marker(), base.get_markersize()) == ("P", 9)
    assert resonance.get_zorder() > base.get_zorder()
    assert (axes.get_xscale(), axes.get_xlim(), axes.get_yscale()) == ("log", (60, 270), "linear")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["64", "256"]


def test_intervals_are_bars_or_a_band_or_are_not_drawn():
    (bars,) = only_panel(LINE).collections
    ends = [segment.tolist() for segment in bars.get_segments() if len(segment)]
    assert ends == [[[64, 0.8], [64, 1.0]], [[256, 0.1], [256, 0.3]]]
    whole = replace(LINE, y=(0.9, 0.5, 0.2), low=(0.8, 0.4, 0.1), high=(1.0, 0.6, 0.3), interval="band")
    (band,) = only_panel(whole).collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (0.1, 1.0)
    assert not only_panel(replace(LINE, interval="hover")).collections


def test_marks_stand_with_their_labels_or_in_the_legend():
    marks = (
        Mark(axis="x", at=128, label="native 128"),
        Mark(axis="y", at=0.25, label="guess"),
        Mark(axis="y", at=0.5, label="half", in_legend=True),
    )
    figure = make_figure(replace(CHART, panels=(replace(PANEL, marks=marks),)))
    (axes,) = figure.axes
    ends = [line.get_xydata().tolist() for line in axes.get_lines()[2:]]
    assert ends == [[[128, 0], [128, 1]], [[0, 0.25], [1, 0.25]], [[0, 0.5], [1, 0.5]]]
    assert [text.get_text() for text in axes.texts] == ["native 128", "guess"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["yarn", "resonance_yarn", "half"]


def test_panels_that_share_axes_name_them_once():
    panels = tuple(replace(PANEL, title=f"task {number}") for number in range(3))
    shared = make_figure(Chart(title="x", panels=panels, columns=2, share_x=True, share_y="all")).axes
    assert [axes.get_title(loc="left") for axes in shared[:3]] == ["task 0", "task 1", "task 2"]
    assert [bool(axes.get_ylabel()) for axes in shared[:3]] == [True, False, True]
    assert [bool(axes.get_xlabel()) for axes in shared[:3]] == [False, True, True], "the last of each column"
    assert [axes.get_visible() for axes in shared] == [True, True, True, False]
    apart = make_figure(Chart(title="x", panels=panels, columns=2)).axes
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in apart[:3])


def test_a_heat_map_has_a_number_in_each_field_and_a_scale():
    heat_map = HeatMap(
        columns=("64", "128"),
        rows=("0%", "100%"),
        values=((1.0, None), (0.25, 0.0)),
        texts=(("1.00", ""), ("0.25", "0.00")),
        notes=(("n 4", ""), ("n 8", "n 1")),
        low=0.0,
        high=1.0,
        quantity="Mean accuracy",
    )
    panel = Panel(title="none", x=replace(LENGTHS, ticks=()), y=Axis(title="Depth"), heat_map=heat_map)
    axes, scale = make_figure(replace(CHART, panels=(panel,), panel_width=1.5, panel_height=1.5)).axes
    shown = {(round(text.get_position()[0]), round(text.get_position()[1]), text.get_text()) for text in axes.texts}
    expected = {(0, 0, "1.00"), (0, 0, "n 4"), (0, 1, "0.25"), (0, 1, "n 8"), (1, 1, "0.00"), (1, 1, "n 1")}
    assert shown == expected, "what is not known stays empty"
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert (colours["1.00"], colours["0.00"]) == ("black", "white"), "on yellow and on dark blue"
    (image,) = axes.images
    assert image.get_clim() == (0.0, 1.0) and image.get_array().tolist() == [[1.0, None], [0.25, 0.0]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0%", "100%"]
    assert scale.get_ylabel() == "Mean accuracy"


@pytest.mark.parametrize("values", [(1000.001, 1000.002), (1.0e6, 1.012e6), (123456.0, 123999.0)])
def test_ticks_are_whole_numbers_and_not_offsets(values):
    axes = only_panel(Line(label="none", style=BASE, x=(64, 256), y=values))
    axes.figure.draw_without_rendering()
    assert axes.yaxis.get_offset_text().get_text() == ""
    ticks = [label.get_text() for label in axes.yaxis.get_ticklabels()]
    assert len(set(ticks)) == len(ticks) > 2
    bottom, top = axes.get_ylim()
    assert all(bottom * 0.98 < float(tick) < top * 1.02 for tick in ticks)


def test_steps_and_epochs_are_whole():
    axes = only_panel(Line(label="none", style=BASE, x=(1, 3), y=(1, 2)), x=Axis(title="Epoch", is_whole=True))
    assert all(float(at).is_integer() for at in axes.get_xticks())


def test_pictures_have_the_size_of_their_panels_and_equal_charts_equal_bytes():
    chart = replace(CHART, panels=(PANEL,) * 4, columns=2, panel_width=3.0, panel_height=2.0)
    picture = draw(chart)
    assert Image.open(io.BytesIO(picture.png)).size == (6.0 * 160, 5.0 * 160)
    assert picture.svg.startswith(b"<?xml") and picture.pdf.startswith(b"%PDF")
    assert draw(chart) == picture
    assert b"/CIDFontType2" in picture.pdf and b"/Type3" not in picture.pdf, "journals refuse Type 3 fonts"


def test_texts_are_no_formulas():
    name = r"$\frac{$ a_b^c"  # as a formula it would be an error
    (panel,) = (replace(PANEL, title=name, lines=(replace(LINE, label=name),)),)
    svg = draw(replace(CHART, title=name, panels=(panel,))).svg.decode()
    assert svg.count(f"<!-- {name} -->") == 3


def test_long_names_are_wrapped_and_nothing_is_cut():
    name = "/home/somebody/" + "a_model_with_a_very_long_name-" * 6
    lines = [replace(LINE, label=label) for label in ("none", "a_method_" + "x" * 80, "yarn")]
    figure = make_figure(replace(CHART, title=name, panels=(replace(PANEL, lines=tuple(lines)),)))
    figure.draw_without_rendering()
    title = figure.get_suptitle()
    assert "\n" in title and name[:120] in title.replace("\n", "")
    boxes = [
        figure.axes[0].get_tightbbox(),
        figure.legends[0].get_window_extent(),
        figure._suptitle.get_window_extent(),
    ]
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:index])
    assert figure.axes[0].get_position().width > 0.7
