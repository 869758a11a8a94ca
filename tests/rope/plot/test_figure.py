"""The page of plots: every panel shows the numbers it was given, and its headline says no more than they do."""

import re

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from plot_panels import SMALL, description, headline, panels

from longeval.errors import LongEvalError
from longeval.rope.analysis.description import describe
from longeval.rope.base import METHODS, Geometry
from longeval.rope.build import method_names
from longeval.rope.plot.figure import draw, make_figure, plot_format

ONE_FEATURE = Geometry(head_dim=2, theta=1e4, native_length=1)


def curves(axes):
    """{label: (x, y)} of what has a name."""
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    return {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in lines.items()}


def levels(axes):
    """Heights and places of lines across the axes, and the texts beside them."""
    across = [line.get_ydata()[0] for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]
    along = [line.get_xdata()[0] for line in axes.get_lines() if list(line.get_ydata()) == [0, 1]]
    return across, along, [text.get_text() for text in axes.texts]


def test_panels_by_feature_show_their_keys():
    plain, stretched = description("none"), description("yarn", scale=1.1)
    shown = panels(plain, stretched)
    for number, key in ((1, "wavelengths"), (2, "interpolation"), (3, "feature_gaps")):
        expected = {item["name"]: ([0, 1, 2, 3], item[key]) for item in (plain, stretched)}
        assert curves(shown[number]) == expected
    assert [shown[number].get_yscale() for number in (1, 2, 3)] == ["log", "log", "symlog"]


def test_lengths_and_factor_are_marked():
    shown = panels(description("none"), description("resonance_yarn", scale=1.1))
    assert levels(shown[1]) == ([64, 256], [], ["native 64", "target 256"])
    assert levels(shown[2])[0] == [1, 4.0]
    assert levels(shown[5]) == ([0], [64, 256], ["native 64", "target 256"])
    (shade,) = shown[1].patches
    assert (shade.get_y(), shade.get_y() + shade.get_height()) == (shown[1].get_ylim()[0], 64)
    assert "2 of 4" in headline(shown[1])


def test_without_stretching_there_is_no_target():
    shown = panels(description("none", factor=1.0, interpolation=[1.0] * 4))
    assert levels(shown[1]) == ([64], [], ["native 64"])
    assert levels(shown[2])[0] == [1]
    assert levels(shown[5]) == ([0], [64], ["native 64"])
    assert "factor s" not in headline(shown[2])


def test_pre_critical_features_of_every_method_are_shaded_before_rounding():
    # 64.4 tokens are not pre-critical, though they are rounded to 64; nor is 90.7.
    items = [
        description("resonance", wavelengths=[6, 64, 20, 30], rounding_errors=[0.0, 64 / 64.4 - 1, 0.0, 0.0]),
        description("none", wavelengths=[6.4, 20.3, 90.7, 7.0]),
    ]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in panels(*items)[3].patches]
    assert spans == [(-0.5, 0.5), (2.5, 3.5)]


NOT_CRITICAL = {"scale": 50.0, "feature_gap": 0.0}
UNSTRETCHED = {"factor": 1.0, "feature_gaps": [0.0] * 4, "feature_gap": 0.0}


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([description("none")], "Past 64, .* by up to 0.034."),
        ([description("none"), description("pi", scale=2.0), description("resonance")], "0.068, by exactly 0 if "),
        ([description("resonance", feature_gap=3e-8)], "by up to 3e-8 if rounded."),
        # Nothing is pre-critical in the rounded method, so its 0 says nothing.
        ([description("none"), description("resonance_pi", **NOT_CRITICAL)], "by up to 0.034."),
        ([description("pi", scale=50.0)], "No feature is pre-critical"),
        ([description("none", **UNSTRETCHED)], "No gaps: the target is the native length"),
    ],
)
def test_gap_headline_says_what_the_numbers_say(items, said):
    assert re.search(f"^3. .*{said}" + ("$" if said[-1] == "." else ""), headline(panels(*items)[3]))


def test_an_exact_zero_has_its_place():
    item = description("resonance")
    item["precision"] = [point | {"longeval": 0.0} for point in item["precision"]]
    for number, items, ticks in (
        (3, [description("none"), item], [0, 1e-2, 1e-1, 1]),
        (6, [item], [0, 1e-3, 1e-2, 1e-1, 1]),
    ):
        axes = panels(*items)[number]
        assert (axes.get_yscale(), list(axes.get_yticks())) == ("symlog", pytest.approx(ticks))
        heights = [axes.transData.transform((0, gap))[1] for gap in (axes.get_ylim()[0], *ticks)]
        assert heights == sorted(set(heights))


def test_decay_shows_every_distance_but_zero():
    lines = panels(description("none"), description("yarn", scale=0.9))[5].get_lines()
    for line, second in zip(lines[:2], (0.9, 0.9 * 0.9), strict=True):
        assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 5, 40, 255], [second, 0.5, 0.2, -0.3])


def test_precision_shows_each_way_at_each_position():
    axes = panels(description("none"), description("resonance", scale=2.0))[6]
    shown = curves(axes)
    assert {name: y for name, (_, y) in shown.items()} == {
        "none float32_product": [0.003, 0.043],
        "none bfloat16_inv_freq": [1.8, 1.9],
        "none longeval": [2.5e-8, 2.9e-8],
        "resonance float32_product": [0.006, 0.086],
        "resonance bfloat16_inv_freq": [1.8, 1.9],
        "resonance longeval": [2.5e-8, 2.9e-8],
    }
    named = {place: label.get_text() for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    assert all([named[place] for place in x] == ["128k", "1m"] for x, _ in shown.values())
    for text, way in (("float32 product", "float32_product"), ("longeval", "longeval")):
        (place,) = (item.get_position()[0] for item in axes.texts if item.get_text() == text)
        assert place == pytest.approx(sum(shown[f"none {way}"][0]) / 2)
    assert axes.get_yscale() == "log"
    assert re.search(r"position 1m, .* 0\.086, longeval by 2\.9e-8", headline(axes))


@pytest.mark.parametrize(
    "items",
    [
        [description("none"), description("resonance_yarn", scale=1.1)],
        [description("abf", interpolation=[0.5, 0.7, 30.0, 900.0], feature_gaps=[1e-7, 2e-5, 2.0, 1.0])],
        [description("none", interpolation=[0.97, 1.0, 1.0, 1.01], factor=1.0, feature_gaps=[0.0] * 4)],
        [description("pi", wavelengths=[2e5, 3e5, 4e6, 5e7], interpolation=[1.02, 1.0, 1.0, 1.0], factor=1.02)],
    ],
)
def test_nothing_is_out_of_view(items):
    shown = panels(*items)
    for number in (1, 2, 3, 5, 6):
        (left, right), (bottom, top) = shown[number].get_xlim(), shown[number].get_ylim()
        for line in shown[number].get_lines():
            assert all(left <= x <= right for x in line.get_xdata()) or list(line.get_xdata()) == [0, 1]
            assert all(bottom <= y <= top for y in line.get_ydata()) or list(line.get_ydata()) == [0, 1]
    bottom, top = shown[2].get_ylim()
    assert sum(bottom <= tick <= top for tick in shown[2].get_yticks()) > 2


def test_one_feature_is_a_dot():
    geometry = Geometry(head_dim=2, theta=1e4, native_length=64)
    shown = panels(*(describe(name, geometry) for name in ("none", "resonance")))
    for number in (1, 2, 3):
        assert all(line.get_markersize() > 0 and line.get_marker() == "o" for line in shown[number].get_lines()[:2])


def test_a_method_and_its_resonance_form_share_colour_and_marker():
    figure = make_figure([description(name) for name in ("yarn", "resonance_yarn", "resonance", "mine")])
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    base, rounded, other, unknown = (lines[name] for name in ("yarn", "resonance_yarn", "resonance", "mine"))
    assert base.get_color() == rounded.get_color() and base.get_marker() == rounded.get_marker()
    assert len({line.get_color() for line in (rounded, other, unknown)}) == 3
    assert base.get_linestyle() == "-" and rounded.get_linestyle() == "--"
    assert base.get_markersize() == 0 < rounded.get_markersize()
    # The pale line is wide enough to be seen on both sides of the dashes on it.
    assert base.get_linewidth() > 2 * rounded.get_linewidth() and base.get_alpha() < 1 == rounded.get_alpha()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["yarn", "resonance_yarn", "resonance", "mine"]


def test_every_method_has_its_own_look():
    lines = make_figure([description(name) for name in METHODS]).axes[0].get_lines()[: len(METHODS)]
    assert [line.get_label() for line in lines] == list(METHODS)
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == len(METHODS)


def test_title_is_the_geometry():
    (legend,) = make_figure([description("dynamic_ntk", length=100)]).legends
    assert legend.get_title().get_text().endswith("head_dim 8, base 10000, native 64, target 256 (s = 4), n = 100")


def every_method():
    return [describe(name, SMALL) for name in method_names() if "longrope" not in name]


def long_names():
    tail = "_with_a_name_that_is_longer_than_any_panel_could_ever_take_in_one_line"
    return [description(name + tail, scale=1.0123456) for name in ("resonance", "none")] + [description("yarn")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [every_method, long_names, lambda: [describe("resonance", ONE_FEATURE)]])
def test_nothing_overlaps_or_is_cut(make):
    figure = make_figure(make())
    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_window_extent()]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])
    for box in boxes + [text.get_window_extent() for axes in figure.axes for text in axes.texts]:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    for axes in figure.axes:
        titles = [child for child in axes.get_children() if child in figure.findobj(Text) and child not in axes.texts]
        assert not any(a.get_window_extent().overlaps(b.get_window_extent()) for a in titles for b in axes.texts)
    # Nothing was squeezed to make room.
    assert min(axes.get_position().width for axes in figure.axes) > 0.4


def test_svg_has_text_and_is_the_same_each_time_whatever_the_users_settings_are():
    descriptions = [description("none"), description("resonance")]
    svg = draw(descriptions, "svg")
    assert {"none", "resonance", "native 64", "target 256"} <= set(re.findall(r">([^<>]+)</text>", svg.decode()))
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert draw(descriptions, "svg") == svg
        assert mpl.rcParams["font.size"] == 30
    assert b"dc:date" not in svg


def test_png_has_150_dots_an_inch():
    png = draw([description("none")], "png")
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == tuple(int(150 * side) for side in make_figure([description("none")]).get_size_inches())


def test_pdf_is_the_same_each_time_and_has_no_type_3_fonts():
    pdf = draw([description("none")], "pdf")
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"CreationDate" not in pdf
    assert draw([description("none")], "pdf") == pdf


def test_suffixes():
    assert [plot_format(name) for name in ("a.b/c.PNG", "c.svg", "c.pdf")] == ["png", "svg", "pdf"]
    with pytest.raises(LongEvalError, match=r"--plot c\.jpg"):
        plot_format("c.jpg")
