"""What PosGen's figures draw: read from the axes, without rendering."""

import dataclasses

import numpy as np
import pytest
from records import collect_posgen, full_run, make_cell, make_curves, make_posgen_run

from longeval.report import plots
from longeval.studies.posgen.report.figures import loss_figure, position_figure, row_curves
from longeval.studies.posgen.report.tables import build_tables
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot", "recursive"), pe=("none", "resonance"), seeds=2)
OOD = {(task, pe): [0.5, 0.7] for task in SPEC.tasks for pe in SPEC.pe}
COT = SPEC.replaced(tasks=("cot",))
VALUES = (0.9, 0.5, 0.1)
THREE_EPOCHS = make_curves(COT, VALUES)


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order of their drawing."""
    figures = []
    monkeypatch.setattr(
        plots, "render", lambda figure: figures.append(figure) or plots.Picture(png=b"", svg=b"", pdf=b"")
    )
    return figures


@pytest.fixture
def panels_of(tmp_path, drawn):
    """The panels of the figure of a run with all cells of SPEC, or some changes to it."""

    def draw(figure, **changes):
        figure(*section_of(full_run(tmp_path / "run", SPEC.replaced(**changes), OOD)))
        return panels(drawn[-1])

    return draw


@pytest.fixture
def losses_of(tmp_path, drawn):
    """The panels of the loss figure of a run: curves by (method, seed)."""

    def draw(curves):
        cells = [(make_cell(COT, pe, seed, VALUES), one) for (pe, seed), one in curves.items()]
        loss_figure(*section_of(make_posgen_run(tmp_path / "run", COT, cells)))
        return panels(drawn[-1])

    return draw


def section_of(path):
    found = collect_posgen([str(path)])
    (table,) = build_tables(found)
    return table, row_curves(table, lambda cell: found.stores[cell].curves(cell))


def panels(figure):
    return [axes for axes in figure.axes if axes.get_subplotspec() is not None]


def method_lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def points(axes, method="none"):
    return [list(values) for values in method_lines(axes)[method].get_data()]


def marks(axes):
    return [line for line in axes.get_lines() if line.get_label().startswith("_")]


def test_accuracy_by_position_is_the_mean_over_seeds_in_percent(panels_of):
    forced_cot, forced_recursive, free_cot, _ = panels_of(position_figure)
    assert (forced_cot.get_title(loc="left"), forced_recursive.get_title(loc="left")) == ("cot", "recursive")
    lines = method_lines(forced_cot)
    assert list(lines) == ["none", "resonance"]
    x, y = lines["none"].get_data()
    assert np.allclose(y[x < 64], 61) and np.allclose(y[x > 64], 60)
    assert (x[0], x[-1]) == (5.5, 253.5), "each point is the mean of four positions"
    x, y = method_lines(free_cot)["none"].get_data()
    assert np.allclose(y[x > 64], 30)
    assert lines["none"].get_color() == lines["resonance"].get_color() == "#000000"
    assert (lines["none"].get_linestyle(), lines["resonance"].get_linestyle()) == ("-", "--")


def test_bands_reach_from_the_lowest_to_the_highest_seed(panels_of, tmp_path, drawn):
    (band, _) = panels_of(position_figure)[0].collections
    corners = band.get_paths()[0].vertices
    unseen = corners[corners[:, 0] > 64, 1]
    assert (unseen.min(), unseen.max()) == pytest.approx((50, 70))
    one_seed = full_run(tmp_path / "one", SPEC.replaced(seeds=1), {key: values[:1] for key, values in OOD.items()})
    position_figure(*section_of(one_seed))
    assert not panels(drawn[1])[0].collections


def test_the_training_length_and_guessing_are_marked(panels_of):
    for axes in panels_of(position_figure, length=32, test_length=64, modulus=8):
        assert any(list(line.get_xdata()) == [32, 32] for line in marks(axes))
        assert any(list(line.get_ydata()) == [12.5, 12.5] for line in marks(axes))


@pytest.mark.parametrize("length", [10, 11, 12, 13])
def test_no_point_mixes_seen_and_unseen_positions(tmp_path, drawn, length):
    spec = SPEC.replaced(length=length, test_length=40, seeds=1)
    cells = [(make_cell(spec, "none", 0, (1.0, 0.0, 0.0)), make_curves(spec, (1.0, 0.0, 0.0)))]
    position_figure(*section_of(make_posgen_run(tmp_path / "run", spec, cells)))
    x, y = method_lines(panels(drawn[0])[0])["none"].get_data()
    assert set(y[x < length]) == {100.0} and set(y[x >= length]) == {0.0}


def test_losses_by_epoch_are_the_stored_ones(panels_of):
    seen, _, unseen, _ = panels_of(loss_figure)
    assert points(seen) == [[1, 2, 3], [2.0, 1.0, 0.5]]
    assert points(unseen) == [[1, 2, 3], [2.5, 2.0, 1.5]]
    assert seen.get_yscale() == "linear"
    assert seen.get_ylim()[1] > 1.04 * max(2.5, np.log(17)), "no line on the edge"
    assert any(np.allclose(line.get_ydata(), np.log(17)) for line in marks(seen)), "guessing has a loss of ln 17"


def test_losses_of_several_decades_have_a_logarithmic_axis(losses_of):
    steep = make_curves(COT, VALUES, losses=((2.0, 2.5), (0.02, 2.0), (0.002, 1.5)))
    assert [axes.get_yscale() for axes in losses_of({("none", 0): steep})] == ["log", "linear"]


@pytest.mark.parametrize(
    ("epochs", "losses", "expected"),
    [
        pytest.param((2, 3), ((3.0, 4.0), (1.5, 2.5)), [[2, 3], [2.0, 1.0]], id="epochs that only some have"),
        pytest.param((3,), ((1.5, 2.5),), [[1, 2, 3], [2.0, 1.0, 0.5]], id="a seed with its end alone"),
    ],
)
def test_seeds_with_other_epochs_are_drawn_where_they_agree_or_not_at_all(losses_of, epochs, losses, expected):
    other = make_curves(COT, VALUES, epochs, losses)
    assert points(losses_of({("none", 0): THREE_EPOCHS, ("none", 1): other})[0]) == expected


def test_one_epoch_is_a_point_beside_a_curve(losses_of):
    last_only = make_curves(COT, VALUES, (3,), ((0.5, 1.5),))
    lines = method_lines(losses_of({("none", 0): THREE_EPOCHS, ("resonance", 0): last_only})[0])
    assert (lines["none"].get_marker(), lines["resonance"].get_marker()) == ("", "o")


def test_a_value_that_is_none_leaves_a_gap(losses_of):
    bad = dataclasses.replace(THREE_EPOCHS, valid_loss_ood=(2.5, float("nan"), 1.5))
    _, losses = points(losses_of({("none", 0): THREE_EPOCHS, ("none", 1): bad})[1])
    assert np.isnan(losses).tolist() == [False, True, False]


def test_without_curves_there_is_no_figure(tmp_path, drawn):
    table, curves = section_of(make_posgen_run(tmp_path / "run", COT, [(make_cell(COT, "none", 0, VALUES), None)]))
    assert curves == []
    assert (position_figure(table, curves), loss_figure(table, curves), drawn) == (None, None, [])
