import pytest
from records import make_nll, make_records

from longeval.report.formats.markdown import block_text
from longeval.report.rows import base_method, is_resonance
from longeval.report.tables import build_grids
from longeval.studies.ppl.report import scored_blocks


def nll(mean):
    return make_nll([[mean] * 8] * 10)


def records(*cells):
    return [record for cell in cells for record in cell]


def test_names():
    assert [base_method(pe) for pe in ("none", "resonance", "yarn", "resonance_yarn")] == [
        "none",
        "none",
        "yarn",
        "yarn",
    ]
    assert [is_resonance(pe) for pe in ("none", "resonance", "resonance_yarn", "resonator")] == [
        False,
        True,
        True,
        False,
    ]


def test_rows_keep_the_order_of_base_methods_with_each_resonance_form_after_its_base():
    names = ["resonance_yarn", "zeta", "resonance", "yarn", "pi", "none", "resonance_pi", "resonance_zeta"]
    (grid,) = build_grids(records(*(make_records(pe, 64, nll(1.0), factor=2.0) for pe in names)))
    expected = ["yarn", "resonance_yarn", "zeta", "resonance_zeta", "none", "resonance", "pi", "resonance_pi"]
    assert [row.pe for row in grid.rows] == expected


def test_texts_read_in_another_way_stand_apart_and_prefixes_are_told():
    apart = [{"parse_special": True, "data_digest": "e" * 64}, {"bos": True, "prefix": [7]}]
    apart.append({"bos": True, "prefix": [7, 8]})
    cells = (make_records(pe, 64, nll(1.0), params=params) for params in (*apart, {}) for pe in ("none", "pi"))
    (parsed, one, two, plain) = build_grids(records(*cells))
    assert "parse_special true" in parsed.title and "no parse_special" in plain.title
    shown = [[block_text(block, "") for block in scored_blocks(grid, ())] for grid in (parsed, one, two, plain)]
    lines = ["\n".join(blocks) for blocks in shown]
    assert ["--parse-special" in text for text in lines] == [True, False, False, False]
    assert "BOS: one at the start" in lines[1] and "2 tokens of the tokenizer's own (ids 7, 8)" in lines[2]
    assert "BOS: none" in lines[3]


def test_columns_ascend_and_hold_what_is_there():
    cells = [make_records("none", 128, nll(1.0)), make_records("none", 64, nll(2.0)), make_records("pi", 64, nll(3.0))]
    (grid,) = build_grids(records(*cells))
    assert grid.lengths == (64, 128)
    assert [sorted(row.cells) for row in grid.rows] == [[64, 128], [64]]
    assert grid.rows[0].cells[64].value == pytest.approx(7.389, abs=1e-3)
    assert grid.native_length == 64
    assert grid.title == "toy on texts, prefix"


def test_tables_split_by_what_decides_the_value_and_say_how_they_differ():
    grids = build_grids(
        records(
            make_records("none", 64, nll(1.0), protocol="sliding", params={"stride": 16}),
            make_records("none", 64, nll(1.0), protocol="sliding", params={"stride": 32}),
            make_records("none", 64, nll(1.0), protocol="sliding", params={"stride": 32}, dtype="bfloat16"),
            make_records("none", 64, nll(1.0), data="other"),
        )
    )
    assert [grid.title for grid in grids] == [
        "toy on texts, sliding (float32, stride 16)",
        "toy on texts, sliding (float32, stride 32)",
        "toy on texts, sliding (bfloat16, stride 32)",
        "toy on other, prefix",
    ]


def test_digests_split_tables_but_are_named_only_where_nothing_else_tells():
    one = make_records("none", 64, nll(1.0))
    same_name = make_records("none", 64, nll(2.0), params={"data_digest": "abcdef0123"})
    assert [g.differs for g in build_grids(records(one, same_name))] == ["data_digest dddddddd", "data_digest abcdef01"]
    longer = make_records("none", 64, nll(2.0), params={"data_digest": "abcdef0123", "min_tokens": 128})
    assert [g.differs for g in build_grids(records(one, longer))] == ["min_tokens 64", "min_tokens 128"]


def test_unknown_parameters_split_only_where_cells_collide():
    per_cell = [make_records("none", n, nll(1.0), params={"passes": n}) for n in (64, 128)]
    assert len(build_grids(records(*per_cell))) == 1
    colliding = [make_records("none", 64, nll(1.0), params={"prompt": p}) for p in ("a", "b")]
    assert [grid.differs for grid in build_grids(records(*colliding))] == ["prompt a", "prompt b"]


def test_parameters_and_factors_of_one_method_get_rows_of_their_own():
    cells = [
        make_records("yarn", 64, nll(1.0), factor=2.0, params={"method": {"beta_fast": 32.0, "beta_slow": 1.0}}),
        make_records("yarn", 64, nll(1.0), factor=2.0, params={"method": {"beta_fast": 64.0, "beta_slow": 1.0}}),
        make_records("yarn", 64, nll(1.0), factor=4.0, params={"method": {"beta_fast": 64.0, "beta_slow": 1.0}}),
    ]
    (grid,) = build_grids(records(*cells))
    shown = [(row.label, row.factor) for row in grid.rows]
    assert shown == [("yarn (beta_fast=32)", 2.0), ("yarn (beta_fast=64)", 2.0), ("yarn (beta_fast=64)", 4.0)]


def test_factor_each_is_one_row():
    each = [make_records("yarn", n, nll(1.0), factor=max(1.0, n / 64)) for n in (32, 64, 128, 256)]
    (grid,) = build_grids(records(*each))
    assert [row.factor for row in grid.rows] == ["each"]
    fixed = [make_records("yarn", n, nll(1.0), factor=s) for n, s in ((64, 2.0), (128, 4.0))]
    (grid,) = build_grids(records(*fixed))
    assert [row.factor for row in grid.rows] == [2.0, 4.0]


def test_of_two_cells_of_one_place_the_one_finished_last_is_shown():
    dates = (("aa", "2025-01-03"), ("bb", "2025-01-02"))
    cells = [make_records("none", 64, nll(1.0), cell=name, provenance={"date": date}) for name, date in dates]
    (grid,) = build_grids(records(*cells))
    assert [(row.label, row.cells[64].cell) for row in grid.rows] == [("none", "aa")]


def test_ties_at_the_displayed_precision_are_all_best():
    cells = [make_records(pe, 64, nll(m)) for pe, m in (("none", 2.0), ("resonance", 2.00001), ("pi", 2.001))]
    (grid,) = build_grids(records(*cells))
    assert [grid.is_best(row.cells[64]) for row in grid.rows] == [True, True, False]


def test_a_lonely_value_is_not_best():
    cells = [make_records("none", 64, nll(2.0)), make_records("pi", 64, status="failed", error="out of memory")]
    (grid,) = build_grids(records(*cells))
    assert [grid.is_best(row.cells[64]) for row in grid.rows] == [False, False]


def test_downstream_tasks_are_in_no_table():
    assert build_grids(make_records("none", 64, nll(1.0), task="passkey")) == []
