import numpy as np
import pytest
from matplotlib.figure import Figure
from records import make_nll, make_records

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
    colors, markers = zip(*plots._STYLES.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(plots._STYLES)


def test_position_curve(drawn):
    grid = grid_of({("none", 8192): 2.0})
    nll = make_nll([np.where(np.arange(1, 8192) < 4096, 1.0, 3.0)])
    curve = by_position(nll, position_edges(8192, bins=8, spacing="linear"))
    position_curve(grid, 8192, [(grid.rows[0], curve)])
    y = lines_of(drawn[0].axes[0])["none"].get_ydata()
    assert y[0] == pytest.approx(np.e)
    assert y[-1] == pytest.approx(np.exp(3))
