import math

import pytest
from records import make_nll, make_records

from longeval.report.tables import build_grids
from longeval.studies.ppl.pairs import pair_rows

BASE = make_nll([[2.0] * 8] * 10)
LOWER = make_nll([[1.9] * 8] * 10)
OTHER_TEXT = make_nll([[1.9] * 8] * 10, names=tuple("abcdefghij"))


def grid_and_nlls(*cells):
    nlls = {}
    records = []
    for pe, length, nll, changes in cells:
        made = make_records(pe, length, nll, **changes)
        records += made
        nlls[made[0].cell] = nll
    (grid,) = build_grids(records)
    return grid, nlls.get


def test_pairs_are_matched_by_method_parameters_and_factor():
    grid, nll = grid_and_nlls(
        ("none", 64, BASE, {}),
        ("resonance", 64, LOWER, {}),
        ("yarn", 64, BASE, {"factor": 2.0}),
        ("resonance_yarn", 64, LOWER, {"factor": 2.0}),
        ("resonance_yarn", 128, LOWER, {"factor": 2.0}),
        ("resonance_yarn", 64, LOWER, {"factor": 4.0}),
        ("resonance_pi", 64, LOWER, {"factor": 2.0}),
    )
    rows = pair_rows(grid, nll)
    found = [(row.base.pe, row.resonance.pe, row.base.factor, list(row.cells)) for row in rows]
    assert found == [("none", "resonance", None, [64]), ("yarn", "resonance_yarn", 2.0, [64])]
    cell = rows[0].cells[64]
    assert cell.ratio == pytest.approx(math.expm1(-0.1), rel=1e-6)
    assert cell.difference.high < 0
    assert cell.difference.resamples == 200  # as the record's own interval


def test_every_form_of_resonance_is_paired_with_its_base_and_named_by_its_longest_period():
    def yarn(**parameters):
        return {"factor": 2.0, "params": {"method": {"beta_fast": 16.0, **parameters}}}

    def longest(period):
        return {"params": {"method": {"max_period": period}}}

    grid, nll = grid_and_nlls(
        ("resonance", 64, LOWER, longest("native")),
        ("resonance", 64, LOWER, longest(128)),
        ("resonance", 64, LOWER, longest(16)),
        ("resonance", 64, LOWER, {}),
        ("none", 64, BASE, {}),
        ("resonance_yarn", 64, LOWER, yarn(max_period=16)),
        ("yarn", 64, BASE, yarn()),
        ("yarn", 64, BASE, {"factor": 2.0, "params": {"method": {"beta_fast": 32.0}}}),
    )
    names = ["rounded", "16", "128", "native"]
    forms = [f"resonance (max_period={name})" for name in names]
    yarns = ["yarn (beta_fast=16)", "resonance_yarn", "yarn (beta_fast=32)"]
    assert [row.label for row in grid.rows] == ["none", *forms, *yarns]
    found = [(row.base.label, row.resonance.label) for row in pair_rows(grid, nll)]
    assert found == [*(("none", form) for form in forms), ("yarn (beta_fast=16)", "resonance_yarn")]


@pytest.mark.parametrize("other", [None, OTHER_TEXT])
def test_without_comparable_nlls_there_is_a_ratio_but_no_interval(other):
    grid, nll = grid_and_nlls(("none", 64, BASE, {}), ("resonance", 64, OTHER_TEXT, {}))
    lookup = nll if other is not None else lambda cell: None
    cell = pair_rows(grid, lookup)[0].cells[64]
    assert cell.ratio == pytest.approx(math.expm1(-0.1), rel=1e-6)
    assert cell.difference is None
