"""Effective lengths by perplexity in a report: which lengths are judged, what stands beside them, what is told."""

import math

import numpy as np
import pytest
from records import csv_rows, make_nll, make_records, make_run, table_under, without_figures, write_report

import longeval
from longeval.report.collect import collect
from longeval.report.document import without_style
from longeval.report.numbers import MISSING
from longeval.report.tables import build_grids
from longeval.store.nll import NLL
from longeval.studies.ppl.effective import effective_rows, opening


def cell(pe, length, level, *, documents=12, **changes):
    """A cell of documents whose tokens all have the same NLL, near `level`, each a little more than the one before."""
    nll = make_nll([[level + 0.01 * d] * (length - 1) for d in range(documents)])
    return make_records(pe, length, nll, **changes), nll


def failed(pe, length):
    return make_records(pe, length, status="failed", error="out of memory"), None


def rows_of(tmp_path, cells):
    collection = collect([make_run(tmp_path / "run", cells)])
    (grid,) = build_grids(collection.made_from(NLL))
    return {row.row.pe: row for row in effective_rows(grid, collection)}


def test_a_curve_that_crosses_at_a_known_length(tmp_path):
    levels = {32: 2.5, 64: 2.0, 128: 1.9, 256: 2.1, 512: 1.0}
    rows = rows_of(tmp_path, [cell("none", length, level) for length, level in levels.items()])
    found = rows["none"].found
    assert found.lengths == (64, 128, 256, 512)  # from the native length up; 32 is worse than 64, as it should be
    assert (found.length, found.ends.low, found.ends.high) == (128, 128, 128)
    assert (rows["none"].reference, rows["none"].shared, rows["none"].documents) == (64, 12, 12)


def test_all_lengths_pass_and_all_fail(tmp_path):
    levels = {"none": (2.0, 2.5, 2.0), "yarn": (2.2, 2.1, 2.0)}
    cells = [cell(pe, n, level) for pe in levels for n, level in zip((64, 128, 256), levels[pe], strict=True)]
    rows = rows_of(tmp_path, cells)
    assert (rows["none"].found.length, rows["yarn"].found.length) == (64, 256)
    yarn = rows["yarn"]
    assert yarn.gain.ratio == pytest.approx(0.0, abs=1e-6)
    assert yarn.cost.ratio == pytest.approx(math.expm1(0.2), rel=1e-6)
    assert yarn.cost.difference.low == pytest.approx(math.expm1(0.2), rel=1e-6)
    assert rows["none"].gain is rows["none"].cost is None


def test_without_the_native_length_the_longest_up_to_it_is_the_reference(tmp_path):
    cells = [cell("none", 16, 3.0), cell("none", 32, 2.0), cell("none", 128, 2.1)]
    row = rows_of(tmp_path, cells)["none"]
    assert (row.reference, row.found.length, row.found.lengths) == (32, 32, (32, 128))


@pytest.mark.parametrize(
    ("cells", "reference"),
    [([cell("none", 128, 2.0), cell("none", 256, 2.0)], None), ([cell("none", 64, 2.0)], 64)],
)
def test_without_anything_to_compare_there_is_no_answer(tmp_path, cells, reference):
    row = rows_of(tmp_path, cells)["none"]
    assert (row.reference, row.found) == (reference, None)
    assert row.why


def test_a_failed_cell_ends_what_is_judged(tmp_path):
    cells = [cell("none", 64, 2.0), cell("none", 128, 1.9), failed("none", 256), cell("none", 512, 1.8)]
    row = rows_of(tmp_path, cells)["none"]
    assert (row.found.length, row.found.lengths) == (128, (64, 128))
    assert "256" in row.why
    native_failed = [cell("none", 32, 2.0), failed("none", 64), cell("none", 128, 1.9)]
    row = rows_of(tmp_path / "other", native_failed)["none"]
    assert (row.reference, row.found) == (32, None)


def test_documents_that_some_lengths_lack_are_left_out(tmp_path):
    """The long windows' documents are easier; on the same documents nothing changes."""
    cells = [cell("none", 64, 2.0, documents=20), cell("none", 128, 2.0, documents=12)]
    row = rows_of(tmp_path, cells)["none"]
    assert (row.found.length, row.shared, row.documents) == (128, 12, 20)


def test_without_token_values_the_records_values_decide(tmp_path):
    cells = [(cell("none", n, level)[0], None) for n, level in ((64, 2.0), (128, 1.9), (256, 2.2))]
    row = rows_of(tmp_path, cells)["none"]
    assert (row.found.length, row.found.ends, row.shared) == (128, None, None)


def test_the_report_opens_with_effective_lengths(tmp_path, monkeypatch):
    without_figures(monkeypatch)
    levels = {"none": (2.0, 2.5, 2.6), "yarn": (2.1, 2.1, 2.05), "pi": (3.0, 2.9, 3.1)}
    cells = [cell(pe, n, level) for pe in levels for n, level in zip((64, 128, 256), levels[pe], strict=True)]
    run = make_run(tmp_path / "run", cells)
    write_report([run], out=str(tmp_path / "report.md"))
    text = (tmp_path / "report.md").read_text()
    assert next(line for line in text.splitlines() if line.startswith("## ")) == "## Effective length"
    header, rows = table_under(text, "## Effective length")
    assert [row[2].strip() for row in rows] == ["64 [64, 64]", "≥ 256 [≥ 256, ≥ 256]", "128 [128, 128]"]
    assert [column.strip() for column in header[-2:]] == ["against `none` at 256", "against `none` at 64"]
    lines = csv_rows(tmp_path / "report_files" / "effective.csv")
    assert [line["effective_length"] for line in lines] == ["64", "256", "128"]
    assert [line["longest_passes"] for line in lines] == ["false", "true", "false"]
    assert float(lines[1]["gain"]) == pytest.approx(math.expm1(2.05 - 2.6), rel=1e-6)
    assert "Effective length" in (tmp_path / "report.tex").read_text()
    frame = longeval.load(run).effective()
    np.testing.assert_array_equal(frame["effective_length"], [64, 256, 128])


def test_models_with_the_same_columns_share_a_table(tmp_path):
    """One table for models of equal native length and lengths, another for the model that has other lengths."""
    levels = {"first": (2.0, 2.5), "second": (2.0, 1.9), "longer": (2.0, 1.9, 1.8)}
    cells = [
        cell("none", n, level, model=model)
        for model, own in levels.items()
        for n, level in zip((64, 128, 256), own, strict=False)
    ]
    shared, alone = opening(collect([make_run(tmp_path / "run", cells)]))
    (table,) = shared.paper
    shown = [[without_style(one.text) for one in row.cells] for row in table.rows]
    assert [(row[0], row[1], row[-1]) for row in shown] == [("first", "none", "64"), ("second", "none", "≥ 128")]
    assert [row["model"] for row in shared.data[0].rows] == ["first", "second"]
    assert [without_style(row.cells[0].text) for row in alone.paper[0].rows] == ["none"]


def test_the_table_says_what_a_dash_against_none_is(tmp_path):
    """A trained model has a row `none` alone, since its configuration holds its method."""
    levels = [("base", "none", 2.5), ("base", "yarn", 2.1), ("trained", "none", 2.0)]
    cells = [cell(pe, n, level, model=model) for model, pe, level in levels for n in (64, 128)]
    (section,) = opening(collect([make_run(tmp_path / "run", cells)]))
    (table,) = section.paper
    shown = {(without_style(row.cells[0].text), without_style(row.cells[1].text)): row.cells[4:] for row in table.rows}
    for (_, pe), against in shown.items():
        assert [cell.text == MISSING for cell in against] == [pe == "none"] * 2
    assert f"{MISSING}: " in without_style(table.caption)
    assert "trained" in without_style(table.caption)
    (alone,) = opening(collect([make_run(tmp_path / "alone", cells[:4])]))
    assert f"{MISSING}: " in without_style(alone.paper[0].caption)
    assert "trained" not in without_style(alone.paper[0].caption)
