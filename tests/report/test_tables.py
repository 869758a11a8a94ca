"""What stands in the places of a table."""

from records import make_nll, make_records

from longeval.report.document import TableCell
from longeval.report.tables import DASH, build_grids, places_text, value_cell


def test_perplexities_and_what_stands_for_missing_ones():
    (ok, _) = make_records(nll=make_nll([[1.0] * 4] * 10))
    assert value_cell(ok) == TableCell(text="2.718", interval=("2.718", "2.718"))
    assert value_cell(ok, is_best=True, with_interval=False) == TableCell(text="2.718", is_strong=True)
    (failed,), (skipped,) = (make_records(status=status, error="x") for status in ("failed", "skipped"))
    assert value_cell(failed) == TableCell(text="failed", is_failure=True, reason="x")
    assert value_cell(skipped) == TableCell(text="skipped", reason="x")
    assert value_cell(None) == DASH


def test_where_every_method_lacks_the_same_lengths_they_are_named_once():
    methods = ("none", "pi", "yarn")
    records = [
        r
        for pe in methods
        for n in (64, 128, 256)
        for r in make_records(pe=pe, length=n, nll=make_nll([[1.0] * 4] * 10))
    ]
    (grid,) = build_grids(records)
    assert places_text(grid.rows, [r for r in records if r.length != 128]) == "every method 64, 256"
    some = [r for r in records if r.length == 64 and r.pe != "pi"]
    assert places_text(grid.rows, some) == "none 64; yarn 64"
