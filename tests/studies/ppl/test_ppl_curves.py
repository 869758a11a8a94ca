import numpy as np
import pytest
from matplotlib.figure import Figure
from records import make_nll, make_records

from longeval.looks import LOOKS, shade
from longeval.report import plots
from longeval.report.tables import build_grids
from longeval.stats.bootstrap import by_position, position_edges
from longeval.studies.ppl.curves import length_curve, position_curve


def grid_of(means, **changes):
    """Grid from {(pe, length): mean NLL or None for a failed cell}."""
    records = []
    for (pe, length), mean in means.items():
        nll = None if mean is None else make_nll([[mean] * 4] * 10)
        failed = {"status": "failed", "error": "x"} if mean is None else {}
        records += make_records(pe, length, nll, params={"native_length": 4096}, **failed, **changes)
    return build_grids(records)[0]


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved."""
    figures: list[Figure] = []
    save = plots.render
    monkeypatch.setattr(plots, "render", lambda figure: figures.append(figure) or save(figure))
    return figures


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_length_curve_shows_values_native_length_and_pairs(drawn):
    grid = grid_of({("none", 2048): 2.0, ("none", 8192): 2.5, ("resonance", 2048): 2.0, ("resonance", 8192): 2.4})
    assert length_curve(grid).png.startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    lines = lines_of(axes)
    assert lines["none"].get_ydata() == pytest.approx(np.exp([2.0, 2.5]), rel=1e-6)
    assert lines["none"].get_color() == lines["resonance"].get_color()
    assert (lines["none"].get_linestyle(), lines["resonance"].get_linestyle()) == ("-", "--")
    assert lines["none"].get_linewidth() > lines["resonance"].get_linewidth()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2k", "8k"]
    assert " native 4k" in [text.get_text() for text in axes.texts]
    assert axes.get_yscale() == "linear"


def test_wide_ranges_are_logarithmic(drawn):
    length_curve(grid_of({("none", 2048): 2.0, ("none", 8192): 7.0}))
    assert drawn[0].axes[0].get_yscale() == "log"


def test_a_failed_cell_breaks_the_line(drawn):
    length_curve(grid_of({("none", 2048): 2.0, ("none", 4096): None, ("none", 8192): 2.5}))
    assert np.isnan(lines_of(drawn[0].axes[0])["none"].get_ydata()).tolist() == [False, True, False]


def test_one_length_makes_no_curve():
    assert length_curve(grid_of({("none", 2048): 2.0, ("none", 4096): None})) is None


def test_every_known_method_has_its_own_look():
    colors, markers = zip(*LOOKS.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(LOOKS)


def records_of_factors(pe, factors, mean=2.0):
    nll = make_nll([[mean] * 4] * 10)
    return [r for factor in factors for length in (64, 128) for r in make_records(pe, length, nll, factor=factor)]


def looks_of(line):
    return line.get_color(), line.get_marker()


def test_factors_of_a_method_differ_and_pairs_are_alike(drawn):
    records = [*records_of_factors("yarn", (2.0, 4.0, 8.0)), *records_of_factors("resonance_yarn", (2.0, 4.0, 8.0))]
    length_curve(build_grids([*records, *records_of_factors("pi", (2.0,))])[0])
    lines = lines_of(drawn[0].axes[0])
    assert list(lines) == [*(f"{pe} s={s}" for s in (2, 4, 8) for pe in ("yarn", "resonance_yarn")), "pi"]
    for kind in (0, 1):
        assert len({looks_of(lines[f"yarn s={s}"])[kind] for s in (2, 4, 8)}) == 3
    for s in (2, 4, 8):
        base, rounded = lines[f"yarn s={s}"], lines[f"resonance_yarn s={s}"]
        assert looks_of(base) == looks_of(rounded)
        assert (base.get_linestyle(), rounded.get_linestyle(), base.get_alpha()) == ("-", "--", 0.4)
    assert looks_of(lines["yarn s=4"])[0] == LOOKS["yarn"].colour, "the middle one"
    assert looks_of(lines["pi"]) == LOOKS["pi"]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == list(lines)


def test_parameters_of_a_method_differ(drawn):
    nll = make_nll([[2.0] * 4] * 10)
    settings = [{"method": {"beta_fast": float(beta)}} for beta in (16, 32)]
    records = [r for method in settings for n in (64, 128) for r in make_records("yarn", n, nll, params=method)]
    length_curve(build_grids(records)[0])
    first, second = map(looks_of, lines_of(drawn[0].axes[0]).values())
    assert first[0] != second[0] and first[1] != second[1]


@pytest.mark.parametrize("pe", LOOKS)
def test_shades_go_from_light_to_dark(pe):
    for number in (1, 2, 3, 5):
        shades = [shade(LOOKS[pe].colour, place, number) for place in range(number)]
        levels = [sum(int(colour[start : start + 2], 16) for start in (1, 3, 5)) for colour in shades]
        assert levels == sorted(levels, reverse=True)
        if pe != "none":  # nothing is darker than black
            assert len(set(shades)) == number


@pytest.mark.parametrize(("low", "high"), [(7.3891, 7.3893), (7.0, 7.0), (1.0e6, 1.001e6), (123456.0, 123999.0)])
def test_nearly_flat_curves_look_flat_and_ticks_are_whole_numbers(drawn, low, high):
    length_curve(grid_of({("none", 2048): np.log(low), ("none", 8192): np.log(high)}))
    drawn[0].canvas.draw()
    axis = drawn[0].axes[0].yaxis
    assert axis.get_offset_text().get_text() == ""
    ticks = [label.get_text() for label in axis.get_ticklabels()]
    assert len(set(ticks)) == len(ticks) > 2
    bottom, top = drawn[0].axes[0].get_ylim()
    assert all(bottom * 0.98 < float(tick) < top * 1.02 for tick in ticks)
    assert bottom < low <= high < top and top - bottom > 0.01 * high


def test_no_panel_writes_its_ticks_as_an_offset():
    figure = plots.new_figure()
    axes = plots.plain_axes(figure.add_subplot())
    axes.plot([1, 2], [1000.001, 1000.002])
    figure.canvas.draw()
    assert axes.yaxis.get_offset_text().get_text() == ""


def test_long_names_are_wrapped_and_nothing_is_cut(drawn):
    name = "/home/somebody/" + "a_model_with_a_very_long_name-" * 6
    length_curve(grid_of({("none", 2048): 2.0, ("a_method_" + "x" * 80, 8192): 2.5, ("yarn", 8192): 2.1}, model=name))
    figure = drawn[0]
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


def test_position_curve(drawn):
    grid = grid_of({("none", 8192): 2.0})
    nll = make_nll([np.where(np.arange(1, 8192) < 4096, 1.0, 3.0)])
    curve = by_position(nll, position_edges(8192, bins=8, spacing="linear"))
    position_curve(grid, 8192, [(grid.rows[0], curve)])
    y = lines_of(drawn[0].axes[0])["none"].get_ydata()
    assert y[0] == pytest.approx(np.e)
    assert y[-1] == pytest.approx(np.exp(3))
