"""What PosGen's figures draw: read from the axes, without rendering."""

import dataclasses

import numpy as np
import pytest
from records import full_run, make_cell, make_curves, make_posgen_run

from longeval.report import plots
from longeval.store.curves import Curves
from longeval.studies.posgen.report.cells import collect_posgen
from longeval.studies.posgen.report.figures import loss_figure, position_figure, row_curves
from longeval.studies.posgen.report.tables import build_tables
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot", "recursive"), pe=("none", "resonance"), seeds=2)
OOD = {(task, pe): [0.5, 0.7] for task in SPEC.tasks for pe in SPEC.pe}


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order of their drawing."""
    figures = []
    monkeypatch.setattr(plots, "render", lambda figure: figures.append(figure) or plots.Picture(png=b"", svg=b""))
    return figures


def section_of(path):
    found = collect_posgen([str(path)])
    (table,) = build_tables(found)
    return table, row_curves(table, lambda cell: found.stores[cell].curves(cell))


def panels(figure):
    return [axes for axes in figure.axes if axes.get_subplotspec() is not None]


def method_lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_accuracy_by_position_is_the_mean_over_seeds_in_percent(tmp_path, drawn):
    table, curves = section_of(full_run(tmp_path / "run", SPEC, OOD))
    position_figure(table, curves)
    forced_cot, forced_recursive, free_cot, _ = panels(drawn[0])
    assert (forced_cot.get_title(loc="left"), forced_recursive.get_title(loc="left")) == ("cot", "recursive")
    lines = method_lines(forced_cot)
    assert list(lines) == ["none", "resonance"]
    x, y = lines["none"].get_data()
    assert np.allclose(y[x < 64], 61) and np.allclose(y[x > 64], 60)
    assert (x[0], x[-1]) == (5.5, 253.5), "each point is the mean of four positions"
    x, y = method_lines(free_cot)["none"].get_data()
    assert np.allclose(y[x > 64], 30)


def test_bands_reach_from_the_lowest_to_the_highest_seed(tmp_path, drawn):
    table, curves = section_of(full_run(tmp_path / "run", SPEC, OOD))
    position_figure(table, curves)
    (band, _) = panels(drawn[0])[0].collections
    corners = band.get_paths()[0].vertices
    unseen = corners[corners[:, 0] > 64, 1]
    assert (unseen.min(), unseen.max()) == pytest.approx((50, 70))
    one_seed = SPEC.replaced(seeds=1)
    table, curves = section_of(full_run(tmp_path / "one", one_seed, {key: values[:1] for key, values in OOD.items()}))
    position_figure(table, curves)
    assert not panels(drawn[1])[0].collections


def test_the_training_length_and_guessing_are_marked(tmp_path, drawn):
    spec = SPEC.replaced(length=32, test_length=64, modulus=8)
    table, curves = section_of(full_run(tmp_path / "run", spec, OOD))
    position_figure(table, curves)
    for axes in panels(drawn[0]):
        rest = [line for line in axes.get_lines() if line.get_label().startswith("_")]
        assert any(list(line.get_xdata()) == [32, 32] for line in rest)
        assert any(list(line.get_ydata()) == [12.5, 12.5] for line in rest)
    assert [text.get_text() for text in panels(drawn[0])[0].texts] == ["trained to 32"]


@pytest.mark.parametrize("length", [10, 11, 12, 13])
def test_no_point_mixes_seen_and_unseen_positions(tmp_path, drawn, length):
    spec = SPEC.replaced(length=length, test_length=40, seeds=1)
    cells = [(make_cell(spec, "none", 0, (1.0, 0.0, 0.0)), make_curves(spec, (1.0, 0.0, 0.0)))]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    position_figure(table, curves)
    x, y = method_lines(panels(drawn[0])[0])["none"].get_data()
    assert set(y[x < length]) == {100.0} and set(y[x >= length]) == {0.0}


def test_losses_by_epoch_are_the_stored_ones(tmp_path, drawn):
    table, curves = section_of(full_run(tmp_path / "run", SPEC, OOD))
    loss_figure(table, curves)
    seen, _, unseen, _ = panels(drawn[0])
    assert [list(values) for values in method_lines(seen)["none"].get_data()] == [[1, 2, 3], [2.0, 1.0, 0.5]]
    assert [list(values) for values in method_lines(unseen)["none"].get_data()] == [[1, 2, 3], [2.5, 2.0, 1.5]]
    assert seen.get_yscale() == "linear"
    assert seen.get_ylim()[1] > 1.04 * max(2.5, np.log(17)), "no line on the edge"
    rest = [line for line in seen.get_lines() if line.get_label().startswith("_")]
    assert any(np.allclose(line.get_ydata(), np.log(17)) for line in rest), "guessing has a loss of ln 17"


def test_losses_of_several_decades_have_a_logarithmic_axis(tmp_path, drawn):
    losses = ((2.0, 2.5), (0.02, 2.0), (0.002, 1.5))
    spec = SPEC.replaced(seeds=1, tasks=("cot",))
    cells = [(make_cell(spec, "none", 0, (0.9, 0.5, 0.1)), make_curves(spec, (0.9, 0.5, 0.1), losses=losses))]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    loss_figure(table, curves)
    assert [axes.get_yscale() for axes in panels(drawn[0])] == ["log", "linear"]


def test_epochs_that_only_some_seeds_have_are_left_out(tmp_path, drawn):
    spec = SPEC.replaced(tasks=("cot",), pe=("none",))
    all_epochs = [((1, 2, 3), ((2.0, 2.5), (1.0, 2.0), (0.5, 1.5))), ((2, 3), ((3.0, 4.0), (1.5, 2.5)))]
    cells = [
        (make_cell(spec, "none", seed, (0.9, 0.5, 0.1)), make_curves(spec, (0.9, 0.5, 0.1), epochs, losses))
        for seed, (epochs, losses) in enumerate(all_epochs)
    ]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    loss_figure(table, curves)
    x, y = method_lines(panels(drawn[0])[0])["none"].get_data()
    assert (list(x), list(y)) == ([2, 3], [2.0, 1.0])


def test_a_seed_with_its_end_alone_leaves_the_others_their_curve(tmp_path, drawn):
    spec = SPEC.replaced(tasks=("cot",), pe=("none",))
    all_epochs = [((1, 2, 3), ((2.0, 2.5), (1.0, 2.0), (0.5, 1.5))), ((3,), ((1.5, 2.5),))]
    cells = [
        (make_cell(spec, "none", seed, (0.9, 0.5, 0.1)), make_curves(spec, (0.9, 0.5, 0.1), epochs, losses))
        for seed, (epochs, losses) in enumerate(all_epochs)
    ]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    loss_figure(table, curves)
    x, y = method_lines(panels(drawn[0])[0])["none"].get_data()
    assert (list(x), list(y)) == ([1, 2, 3], [2.0, 1.0, 0.5])


def test_one_epoch_is_a_point_beside_a_curve(tmp_path, drawn):
    spec = SPEC.replaced(tasks=("cot",), seeds=1)
    last_only = make_curves(spec, (0.9, 0.5, 0.1), (3,), ((0.5, 1.5),))
    cells = [
        (make_cell(spec, "none", 0, (0.9, 0.5, 0.1)), make_curves(spec, (0.9, 0.5, 0.1))),
        (make_cell(spec, "resonance", 0, (0.9, 0.5, 0.1)), last_only),
    ]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    loss_figure(table, curves)
    lines = method_lines(panels(drawn[0])[0])
    assert (lines["none"].get_marker(), lines["resonance"].get_marker()) == ("", "o")


def test_a_value_that_is_none_leaves_a_gap(tmp_path, drawn):
    spec = SPEC.replaced(tasks=("cot",), pe=("none",))
    good = make_curves(spec, (0.9, 0.5, 0.1))
    bad = Curves(
        **{
            **{f.name: getattr(good, f.name) for f in dataclasses.fields(good)},
            "valid_loss_ood": (2.5, float("nan"), 1.5),
        }
    )
    cells = [(make_cell(spec, "none", seed, (0.9, 0.5, 0.1)), one) for seed, one in enumerate((good, bad))]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    loss_figure(table, curves)
    _, y = method_lines(panels(drawn[0])[1])["none"].get_data()
    assert np.isnan(y).tolist() == [False, True, False]


def test_without_curves_there_is_no_figure(tmp_path, drawn):
    spec = SPEC.replaced(tasks=("cot",), seeds=1)
    cells = [
        (make_cell(spec, "none", 0, (0.9, 0.5, 0.1)), None),
        (make_cell(spec, "resonance", 0, error="x"), None),
    ]
    table, curves = section_of(make_posgen_run(tmp_path / "run", spec, cells))
    assert curves == []
    assert (position_figure(table, curves), loss_figure(table, curves), drawn) == (None, None, [])


def test_methods_look_as_in_other_figures(tmp_path, drawn):
    table, curves = section_of(full_run(tmp_path / "run", SPEC, OOD))
    position_figure(table, curves)
    lines = method_lines(panels(drawn[0])[0])
    assert lines["none"].get_color() == lines["resonance"].get_color() == "#000000"
    assert (lines["none"].get_linestyle(), lines["resonance"].get_linestyle()) == ("-", "--")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["none", "resonance", "guessing"]
