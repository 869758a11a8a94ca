from dataclasses import replace

import pytest
from records import make_nll, make_records

from longeval.looks import base_method, is_resonance
from longeval.report.formats.markdown import block_text
from longeval.report.tables import build_grids
from longeval.studies.ppl.report import scored_blocks


def nll(mean):
    return make_nll([[mean] * 8] * 10)


def grids_of(*cells):
    return build_grids([record for cell in cells for record in cell])


def cell(pe="none", length=64, mean=1.0, **changes):
    return make_records(pe, length, nll(mean), **changes)


@pytest.mark.parametrize(
    ("pe", "base", "resonance"),
    [
        ("none", "none", False),
        ("resonance", "none", True),
        ("resonance_yarn", "yarn", True),
        ("resonator", "resonator", False),
    ],
)
def test_names(pe, base, resonance):
    assert (base_method(pe), is_resonance(pe)) == (base, resonance)


def test_rows_keep_the_order_of_base_methods_with_each_resonance_form_after_its_base():
    names = ["resonance_yarn", "zeta", "resonance", "yarn", "pi", "none", "resonance_pi", "resonance_zeta"]
    (grid,) = grids_of(*(cell(pe, factor=2.0) for pe in names))
    expected = ["yarn", "resonance_yarn", "zeta", "resonance_zeta", "none", "resonance", "pi", "resonance_pi"]
    assert [row.pe for row in grid.rows] == expected


def test_texts_read_in_another_way_stand_apart_and_prefixes_are_told():
    apart = [{"parse_special": True, "data_digest": "e" * 64}, {"bos": True, "prefix": [7]}]
    apart += [{"bos": True, "prefix": [7, 8]}, {}]
    grids = grids_of(*(cell(pe, params=params) for params in apart for pe in ("none", "pi")))
    assert "parse_special true" in grids[0].title and "no parse_special" in grids[3].title
    texts = ["\n".join(block_text(block, "") for block in scored_blocks(grid, ())) for grid in grids]
    assert ["--parse-special" in text for text in texts] == [True, False, False, False]
    for text, told in zip(
        texts[1:], ("BOS: one", "2 tokens of the tokenizer's own (ids 7, 8)", "BOS: none"), strict=True
    ):
        assert told in text


def test_columns_ascend_and_hold_what_is_there():
    (grid,) = grids_of(cell(length=128), cell(mean=2.0), cell("pi", mean=3.0))
    assert [sorted(row.cells) for row in grid.rows] == [[64, 128], [64]]
    assert grid.rows[0].cells[64].value == pytest.approx(7.389, abs=1e-3)
    assert (grid.title, grid.lengths, grid.native_length) == ("toy on texts, prefix", (64, 128), 64)


def test_tables_split_by_what_decides_the_value_and_say_how_they_differ():
    sliding = [{"params": {"stride": 16}}, {"params": {"stride": 32}}, {"params": {"stride": 32}, "dtype": "bfloat16"}]
    grids = grids_of(*(cell(protocol="sliding", **changes) for changes in sliding), cell(data="other"))
    assert [grid.title for grid in grids] == [
        "toy on texts, sliding (float32, stride 16)",
        "toy on texts, sliding (float32, stride 32)",
        "toy on texts, sliding (bfloat16, stride 32)",
        "toy on other, prefix",
    ]


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"data_digest": "abcdef0123"}, ["data_digest dddddddd", "data_digest abcdef01"]),
        (
            {"data_digest": "abcdef0123", "min_tokens": 128},
            ["documents of at least 64 tokens", "documents of at least 128 tokens"],
        ),
    ],
)
def test_digests_split_tables_but_are_named_only_where_nothing_else_tells(other, differs):
    assert [grid.differs for grid in grids_of(cell(), cell(params=other))] == differs


def test_tables_of_other_documents_are_told_apart_by_their_number():
    two, four, short = (
        [replace(record, documents=number) for record in cell(params={"data_digest": digest, "min_tokens": least})]
        for number, digest, least in ((2, "a" * 64, 1024), (4, "b" * 64, 1024), (2, "c" * 64, 16))
    )
    assert [grid.differs for grid in grids_of(two, four)] == ["2 documents", "4 documents"]
    assert [grid.differs for grid in grids_of(two, four, short)] == [
        "documents of at least 1,024 tokens, 2 documents",
        "documents of at least 1,024 tokens, 4 documents",
        "documents of at least 16 tokens, 2 documents",
    ]


def test_unknown_parameters_split_only_where_cells_collide():
    assert len(grids_of(*(cell(length=n, params={"passes": n}) for n in (64, 128)))) == 1
    colliding = grids_of(*(cell(params={"prompt": prompt}) for prompt in "ab"))
    assert [grid.differs for grid in colliding] == ["prompt a", "prompt b"]


def test_parameters_and_factors_of_one_method_get_rows_of_their_own():
    methods = [(2.0, 32.0), (2.0, 64.0), (4.0, 64.0)]
    params = [{"method": {"beta_fast": fast, "beta_slow": 1.0}} for _, fast in methods]
    (grid,) = grids_of(*(cell("yarn", factor=s, params=own) for (s, _), own in zip(methods, params, strict=True)))
    shown = [(row.label, row.factor) for row in grid.rows]
    assert shown == [("yarn (beta_fast=32)", 2.0), ("yarn (beta_fast=64)", 2.0), ("yarn (beta_fast=64)", 4.0)]


@pytest.mark.parametrize(
    ("factors", "rows"),
    [({32: 1.0, 64: 1.0, 128: 2.0, 256: 4.0}, ["each"]), ({64: 2.0, 128: 4.0}, [2.0, 4.0])],
)
def test_factors_that_follow_the_length_are_one_row(factors, rows):
    (grid,) = grids_of(*(cell("yarn", length, factor=s) for length, s in factors.items()))
    assert [row.factor for row in grid.rows] == rows


def test_of_two_cells_of_one_place_the_one_finished_last_is_shown():
    dates = {"aa": "2025-01-03", "bb": "2025-01-02"}
    (grid,) = grids_of(*(cell(cell=name, provenance={"date": date}) for name, date in dates.items()))
    assert [(row.label, row.cells[64].cell) for row in grid.rows] == [("none", "aa")]


def test_ties_at_the_displayed_precision_are_all_best_and_a_lonely_value_is_not():
    (grid,) = grids_of(cell(mean=2.0), cell("resonance", mean=2.00001), cell("pi", mean=2.001))
    assert [grid.is_best(row.cells[64]) for row in grid.rows] == [True, True, False]
    (grid,) = grids_of(cell(), make_records("pi", 64, status="failed", error="out of memory"))
    assert [grid.is_best(row.cells[64]) for row in grid.rows] == [False, False]


def test_downstream_tasks_are_in_no_table():
    assert grids_of(cell(task="passkey")) == []
