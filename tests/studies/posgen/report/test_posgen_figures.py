"""What PosGen's figures show."""

import dataclasses

import numpy as np
import pytest
from records import collect_posgen, full_run, make_cell, make_curves, make_posgen_run

from longeval.report.charts import Mark
from longeval.studies.posgen.report.figures import loss_figure, position_figure, row_curves
from longeval.studies.posgen.report.tables import build_tables
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot", "recursive"), pe=("none", "resonance"), seeds=2)
OOD = {(task, pe): [0.5, 0.7] for task in SPEC.tasks for pe in SPEC.pe}
COT = SPEC.replaced(tasks=("cot",))
VALUES = (0.9, 0.5, 0.1)
THREE_EPOCHS = make_curves(COT, VALUES)


@pytest.fixture
def panels_of(tmp_path):
    """The panels of the figure of a run with all cells of SPEC, or some changes to it."""

    def make(figure, **changes):
        return figure(*section_of(full_run(tmp_path / "run", SPEC.replaced(**changes), OOD))).panels

    return make


@pytest.fixture
def losses_of(tmp_path):
    """The panels of the loss figure of a run: curves by (method, seed)."""

    def make(curves):
        cells = [(make_cell(COT, pe, seed, VALUES), one) for (pe, seed), one in curves.items()]
        return loss_figure(*section_of(make_posgen_run(tmp_path / "run", COT, cells))).panels

    return make


def section_of(path):
    found = collect_posgen([str(path)])
    (table,) = build_tables(found)
    return table, row_curves(table, lambda cell: found.stores[cell].curves(cell))


def line_of(panel, method="none"):
    return next(line for line in panel.lines if line.label == method)


def points(panel, method="none"):
    line = line_of(panel, method)
    return [list(line.x), list(line.y)]


def unseen(line, values):
    return [value for x, value in zip(line.x, values, strict=True) if x > 64]


def test_accuracy_by_position_is_the_mean_over_seeds_in_percent(panels_of):
    panels = panels_of(position_figure)
    assert [panel.title for panel in panels] == ["cot", "recursive", "", ""]
    titles = [panel.y.title for panel in panels]
    assert titles == ["Accuracy (%),\nteacher-forced"] * 2 + ["Accuracy (%),\nfree-running"] * 2
    forced, _, free, _ = panels
    assert [line.label for line in forced.lines] == ["none", "resonance"]
    line = line_of(forced)
    assert {round(y, 6) for x, y in zip(line.x, line.y, strict=True) if x < 64} == {61}
    assert {round(y, 6) for y in unseen(line, line.y)} == {60}
    assert (line.x[0], line.x[-1]) == (5.5, 253.5), "each point is the mean of four positions"
    assert {round(y, 6) for y in unseen(line_of(free), line_of(free).y)} == {30}
    assert {line.style.colour for line in forced.lines} == {"#000000"}
    assert [line.style.dash for line in forced.lines] == ["solid", "dashed"]


def test_bands_reach_from_the_lowest_to_the_highest_seed(panels_of, tmp_path):
    line = line_of(panels_of(position_figure)[0])
    assert line.interval == "band"
    assert {round(value, 6) for value in unseen(line, line.low)} == {50}
    assert {round(value, 6) for value in unseen(line, line.high)} == {70}
    assert set(line.notes) == {"2 seeds"}
    one_seed = full_run(tmp_path / "one", SPEC.replaced(seeds=1), {key: values[:1] for key, values in OOD.items()})
    line = line_of(position_figure(*section_of(one_seed)).panels[0])
    assert (line.low, line.high) == ((), ())


def test_bands_of_many_methods_would_hide_one_another(tmp_path):
    methods = ("none", "resonance", "pi", "ntk", "yarn")
    spec = COT.replaced(pe=methods)
    panels = position_figure(*section_of(full_run(tmp_path / "run", spec, {("cot", pe): [0.5, 0.7] for pe in methods})))
    line = line_of(panels.panels[0])
    assert (line.interval, {round(value, 6) for value in unseen(line, line.low)}) == ("hover", {50})


def test_the_training_length_and_guessing_are_marked(panels_of):
    panels = panels_of(position_figure, length=32, test_length=64, modulus=8)
    for panel, label in zip(panels, ["trained to 32"] * 2 + [""] * 2, strict=True):
        guess, trained = panel.marks
        assert guess == Mark(axis="y", at=12.5, label="guessing", in_legend=True)
        assert trained == Mark(axis="x", at=32, label=label)
        assert (panel.x.span, panel.x.ticks) == ((0, 64), ((0, "0"), (32, "32"), (64, "64")))


@pytest.mark.parametrize("length", [10, 11, 12, 13])
def test_no_point_mixes_seen_and_unseen_positions(tmp_path, length):
    spec = SPEC.replaced(length=length, test_length=40, seeds=1)
    cells = [(make_cell(spec, "none", 0, (1.0, 0.0, 0.0)), make_curves(spec, (1.0, 0.0, 0.0)))]
    line = line_of(position_figure(*section_of(make_posgen_run(tmp_path / "run", spec, cells))).panels[0])
    assert {(x < length, y) for x, y in zip(line.x, line.y, strict=True)} == {(True, 100.0), (False, 0.0)}


def test_losses_by_epoch_are_the_stored_ones(panels_of):
    seen, _, unseen, _ = panels_of(loss_figure)
    assert points(seen) == [[1, 2, 3], [2.0, 1.0, 0.5]]
    assert points(unseen) == [[1, 2, 3], [2.5, 2.0, 1.5]]
    assert seen.y.scale == "linear"
    assert seen.y.span == (0, pytest.approx(1.05 * max(2.5, np.log(17)))), "no line on the edge"
    assert [mark.at for mark in seen.marks] == [pytest.approx(np.log(17))], "guessing has a loss of ln 17"


def test_losses_of_several_decades_have_a_logarithmic_axis(losses_of):
    steep = make_curves(COT, VALUES, losses=((2.0, 2.5), (0.02, 2.0), (0.002, 1.5)))
    first, second = (panel.y for panel in losses_of({("none", 0): steep}))
    assert (first.scale, second.scale) == ("log", "linear")
    margin = (np.log(17) / 0.002) ** 0.05
    assert first.span == pytest.approx((0.002 / margin, np.log(17) * margin)), "guessing is on the axis too"
    assert {(0.01, "0.01"), (0.1, "0.1"), (1.0, "1")} < set(first.ticks)


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
    panel = losses_of({("none", 0): THREE_EPOCHS, ("resonance", 0): last_only})[0]
    assert [line_of(panel, method).style.marker for method in ("none", "resonance")] == ["", "o"]


def test_a_value_that_is_none_leaves_a_gap(losses_of):
    bad = dataclasses.replace(THREE_EPOCHS, valid_loss_ood=(2.5, float("nan"), 1.5))
    _, losses = points(losses_of({("none", 0): THREE_EPOCHS, ("none", 1): bad})[1])
    assert [value is None for value in losses] == [False, True, False]


def test_without_curves_there_is_no_figure(tmp_path):
    table, curves = section_of(make_posgen_run(tmp_path / "run", COT, [(make_cell(COT, "none", 0, VALUES), None)]))
    assert curves == []
    assert (position_figure(table, curves), loss_figure(table, curves)) == (None, None)
