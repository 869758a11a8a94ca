"""Accuracy by number of phases: which forms are compared, their phases, and the trend over seeds."""

import math

import pytest
from records import collect_posgen, make_cell, make_curves, make_posgen_run

from longeval.report.lines import line_style
from longeval.stats.seeds import over_seeds
from longeval.studies.posgen.report import posgen_sections
from longeval.studies.posgen.report.phases import families_of, phases_blocks, phases_figure, slope
from longeval.studies.posgen.report.tables import build_tables
from longeval.studies.posgen.request import PosGenRequest

SPEC = PosGenRequest(tasks=("cot",), pe=("none", "resonance"), seeds=2)
ROUNDED_PHASES = (6, 8, 11, 15, 20, 26, 35, 47, 63)
"""The nine wavelengths of at most 64 tokens (head_dim 64, base 10000), rounded."""


def run(path, values, spec=SPEC):
    """A run whose cells have these OOD accuracies in percent by (method, max_period) and seed."""
    cells = []
    for (pe, max_period), by_seed in values.items():
        method = {} if max_period is None else {"max_period": max_period}
        if "yarn" in pe:
            method |= {"beta_fast": 32.0, "beta_slow": 1.0}
        for seed, value in enumerate(by_seed):
            shares = (0.99, value / 100, 0.1)
            cell = make_cell(spec, pe, seed, shares, method=method, regime=spec.regimes[0])
            cells.append((cell, make_curves(spec, shares)))
    return make_posgen_run(path, spec, cells)


def table_of(path):
    (table,) = build_tables(collect_posgen([str(path)]))
    return table


@pytest.fixture
def table(tmp_path):
    values = {
        ("none", None): (70, 50),
        ("resonance", None): (30, 40),
        ("resonance", 16): (40, 41),
        ("resonance", "native"): (60, 49),
        ("yarn", None): (80, 80),
        ("resonance_yarn", None): (80, 80),
    }
    return table_of(run(tmp_path / "run", values))


def test_forms_stand_by_their_number_of_phases(table):
    (forms,) = families_of(table)
    assert [form.row.name for form in forms] == [
        "resonance (max_period=rounded)",
        "resonance (max_period=16)",
        "resonance (max_period=native)",
        "none",
    ]
    assert forms[0].phases == pytest.approx(math.prod(ROUNDED_PHASES) ** (1 / 9))
    assert forms[-1].phases == pytest.approx(64), "without resonance every position of training has a phase of its own"


def test_the_slope_is_in_points_for_twice_as_many_phases(tmp_path):
    values = {("none", None): (60, 64), ("resonance", None): (0, 0), ("resonance", "native"): (0, 0)}
    table = table_of(run(tmp_path / "run", values))
    (forms,) = families_of(table)
    at = [math.log2(form.phases) for form in forms]
    mean = sum(at) / 3
    gain = sum((x - mean) * y for x, y in zip(at, [0, 0, 1], strict=True)) / sum((x - mean) ** 2 for x in at)
    found, expected = slope(forms, "cot"), over_seeds({0: 60 * gain, 1: 64 * gain})
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_a_base_and_one_form_have_no_curve(tmp_path):
    table = table_of(run(tmp_path / "run", {("none", None): (60,), ("resonance", None): (50,)}))
    assert families_of(table) == [] and phases_blocks(table, "x") == []


def test_forms_with_equal_tables_count_once(tmp_path):
    values = {("none", None): (60,), ("resonance", None): (50,), ("resonance", 6): (50,), ("resonance", 32): (55,)}
    table = table_of(run(tmp_path / "run", values))
    (forms,) = families_of(table)
    assert len(table.rows) == 4, "no wavelength is below 6 tokens, so nothing turns several times"
    assert [form.phases for form in forms] == sorted({form.phases for form in forms}) and len(forms) == 3
    _, by_phases, *_ = phases_blocks(table, "x")
    assert "resonance (max_period=6)" in str(by_phases.caption)


def test_phases_are_counted_in_the_positions_of_training_under_the_table_of_training(tmp_path):
    spec = SPEC.replaced(native=256, start_token=True, regimes=("swapped",))
    values = {("yarn", None): (60,), ("resonance_yarn", None): (50,), ("resonance_yarn", "native"): (50,)}
    (forms,) = families_of(table_of(run(tmp_path / "run", values, spec)))
    # Without YaRN, which is off in training, 13 wavelengths are at most 256 tokens; training has 65 positions.
    rounded = [min(round(2 * math.pi * 10000 ** (j / 32)), 65) for j in range(13)]
    assert forms[0].phases == pytest.approx(math.prod(rounded) ** (1 / 13))
    assert forms[-1].row.name == "yarn" and forms[-1].phases == pytest.approx(65)


def test_forms_of_equal_phases_have_no_curve(tmp_path):
    spec = SPEC.replaced(theta=1e30, head_dim=4, length=6)  # periods of 6 and 13 tokens are no shorter than training
    values = {("none", None): (60,), ("resonance", None): (50,), ("resonance", 13): (40,)}
    assert families_of(table_of(run(tmp_path / "run", values, spec))) == []


def test_the_figure_has_a_point_for_each_form_and_the_range_of_seeds(table):
    (panel,) = phases_figure(table, families_of(table)).panels
    (line,) = panel.lines
    assert (line.label, line.style.dash) == ("none", "solid")
    assert line.y == (35.0, 40.5, 54.5, 60.0)
    assert (line.low, line.high) == ((30, 40, 49, 50), (40, 41, 60, 70))
    assert line.places[0] == "resonance (max_period=rounded)"


def test_the_report_has_the_figure(tmp_path):
    values = {("none", None): (60,), ("resonance", None): (50,), ("resonance", 32): (55,)}
    (section,) = posgen_sections(collect_posgen([str(run(tmp_path / "run", values))]))
    names = [block.name for block in section.blocks if hasattr(block, "chart")]
    assert any(name.startswith("phases-") for name in names)


def test_forms_of_one_base_differ_in_marker_and_shade_and_the_rounded_one_is_dashed(table):
    rows = [row.row for row in table.rows]
    styles = {row.label: line_style(row, rows, with_marker=True) for row in rows if "yarn" not in row.pe}
    forms = [style for label, style in styles.items() if label != "none"]
    assert [style.dash for style in forms] == ["dashed", "dotted", "dotted"]
    assert len({style.marker for style in forms}) == len({style.colour for style in forms}) == 3
    assert styles["none"].width > 2 and styles["none"].opacity < 1, "the base of pairs is a wide pale line"
