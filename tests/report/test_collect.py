import pytest
from records import make_nll, make_records, make_run

from longeval.errors import LongEvalError
from longeval.report.collect import collect

NLL = make_nll([[1.0] * 8] * 10)
OTHER = make_nll([[2.0] * 8] * 10)
OLD, NEW = ({"date": f"2025-0{month}-01T00:00:00+00:00"} for month in (1, 6))


def test_a_cell_in_two_folders_counts_once(tmp_path):
    a = make_run(tmp_path / "a", [(make_records("none", 64, NLL), NLL), (make_records("pi", 64, NLL), NLL)])
    b = make_run(tmp_path / "b", [(make_records("none", 64, NLL), NLL), (make_records("yarn", 64, NLL), NLL)])
    found = collect([a, b, a + "/"])
    assert [cell.records[0].pe for cell in found.cells] == ["none", "pi", "yarn"], "as asked, folder by folder"
    assert [run.path for run in found.runs] == [a, b]
    assert not any("different outcomes" in note for note in found.notes)


@pytest.mark.parametrize("newer_first", [True, False])
def test_of_different_values_the_newest_is_kept_and_noted(tmp_path, newer_first):
    old = make_records("none", 64, NLL, provenance=OLD)
    new = make_records("none", 64, OTHER, provenance=NEW)
    assert old[0].cell == new[0].cell
    a = make_run(tmp_path / "a", [(old, NLL)])
    b = make_run(tmp_path / "b", [(new, OTHER)])
    found = collect([b, a] if newer_first else [a, b])
    assert found.cells[0].records[0].value == pytest.approx(7.389, abs=1e-3)
    assert found.nll(found.cells[0].cell).nll_S[0] == 2.0
    (note,) = [note for note in found.notes if "different outcomes" in note]
    assert f"the one of {b} is shown" in note


def test_a_finished_cell_is_kept_before_a_later_failure(tmp_path):
    a = make_run(tmp_path / "a", [(make_records("none", 64, NLL, provenance=OLD), NLL)])
    failed = make_records("none", 64, status="failed", error="killed", provenance=NEW)
    found = collect([a, make_run(tmp_path / "b", [(failed, None)])])
    assert [cell.status for cell in found.cells] == ["ok"]
    assert "failed" in found.notes[-1]


def test_no_run_folder_no_cells(tmp_path):
    with pytest.raises(LongEvalError, match="not a run folder"):
        collect([str(tmp_path)])
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    (tmp_path / "empty" / "spec.yaml").write_text("model: toy\n")
    with pytest.raises(LongEvalError, match="no cells"):
        collect([str(tmp_path / "empty")])


def test_a_protocol_that_nobody_knows_is_shown_all_the_same(tmp_path):
    records = make_records("none", 64, NLL, protocol="tail")
    assert [cell.records[0].protocol for cell in collect([make_run(tmp_path / "a", [(records, NLL)])]).cells] == [
        "tail"
    ]


def test_a_folder_of_run_folders_stands_for_them(tmp_path):
    for name, pe in (("b", "pi"), ("a", "none")):
        make_run(tmp_path / name, [(make_records(pe, 64, NLL), NLL)])
    (tmp_path / "notes").mkdir()
    found = collect([str(tmp_path)])
    assert [run.path for run in found.runs] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert {cell.records[0].pe for cell in found.cells} == {"none", "pi"}


def test_a_folder_that_may_not_be_listed_is_no_run_folder(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(LongEvalError, match=str(tmp_path)):
        collect([str(tmp_path)])
