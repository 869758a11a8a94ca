"""Cells of several versions and settings in one report: what stands in tables, and what is said of the rest."""

import csv
import json

import pytest
from records import make_group, make_provenance, make_samples, make_task_records, make_task_run, write_report

from longeval.report import plots
from longeval.report.document import without_style
from longeval.report.settings import code_of, comparable, older_cells, older_note
from longeval.studies.tasks.report.figures import depth_table
from longeval.studies.tasks.report.notes import same_samples, table_notes
from longeval.studies.tasks.report.pairs import INCOMPARABLE, task_pairs
from longeval.studies.tasks.report.scores import chance_sentence
from longeval.studies.tasks.report.tables import build_task_sets

HALF = make_samples([1.0, 0.0] * 10)
OLD = make_provenance(commit="a" * 40, date="2025-01-01T00:00:00+00:00")
LATER = make_provenance(commit="b" * 40, date="2025-03-01T00:00:00+00:00")
NEW = make_provenance(commit="b" * 40, date="2025-02-01T00:00:00+00:00")


def task(pe="none", length=64, provenance=NEW, params=None, samples=HALF, **changes):
    return make_task_records(pe, length, "passkey", samples, provenance=provenance, params=params or {}, **changes)


def old(pe="none", length=64, **changes):
    return task(pe, length, OLD, {"prompts": "old", "task_digest": "old"}, **changes)


@pytest.mark.parametrize("params", [{"prompts": "x"}, {"task_digest": "x"}, {"task_version": "0"}, {"chance": 0.5}])
def test_of_two_versions_the_newest_stands_in_the_table(params):
    before, after = task(provenance=OLD, params=params), task()
    for records in ([*before, *after], [*after, *before]):
        assert older_cells(records) == {before[0].cell}
        older = older_cells(records)
        (found,) = build_task_sets([record for record in records if record.cell not in older])
        (table,) = found.tasks
        assert [(row.label, row.cells[64].cell) for row in table.rows] == [("none", after[0].cell)]


@pytest.mark.parametrize(
    "other", [{"pe": "yarn"}, {"length": 128}, {"params": {"limit": 5}}, {"params": {"seed": 1}}, {"dtype": "bfloat16"}]
)
def test_cells_of_other_places_or_settings_are_not_older(other):
    assert older_cells([*old(), *task(**other)]) == frozenset()


def test_a_parameter_that_an_older_version_did_not_record_tells_nothing():
    before, after = old(), task()
    del before[0].params["haystack"]
    assert older_cells([*before, *after]) == {before[0].cell}


def test_an_old_cell_that_did_not_record_a_setting_does_not_blur_it_between_newer_ones():
    before = old()
    del before[0].params["limit"]
    few, many = task(params={"limit": 5}), task(params={"limit": 10})
    assert older_cells([*before, *few, *many]) == {before[0].cell}


def test_methods_whose_table_is_pinned_stand_beside_those_that_have_one_anyway():
    plain = task(params={"pin_length": None})
    pinned = [
        record for pe in ("dynamic_ntk", "resonance_dynamic_ntk") for record in task(pe, params={"pin_length": 64})
    ]
    (found,) = build_task_sets([*plain, *pinned])
    (table,) = found.tasks
    assert (table.differs, [row.label for row in table.rows]) == ("", ["none", "dynamic_ntk", "resonance_dynamic_ntk"])
    assert [
        (a.pe, b.pe) for a, b in [(pair.base, pair.resonance) for pair in task_pairs(table, lambda cell: HALF)]
    ] == [("dynamic_ntk", "resonance_dynamic_ntk")]
    (found,) = build_task_sets([*plain, *pinned, *task("dynamic_ntk", params={"pin_length": 128})])
    (table,) = found.tasks
    assert sorted(row.label for row in table.rows if row.pe == "dynamic_ntk") == [
        "dynamic_ntk (pin_length=128)",
        "dynamic_ntk (pin_length=64)",
    ]


def test_averages_of_other_members_are_not_older():
    one = make_group("none", 64, "all", ["a"], 0.5, provenance=OLD)
    assert older_cells([*one, *make_group("none", 64, "all", ["a", "b"], 0.5, provenance=NEW)]) == frozenset()


def test_the_note_counts_and_names_versions():
    before = [old(pe)[0] for pe in ("none", "yarn")]
    records = [*before, *task(), *task("yarn")]
    note = older_note(records, older_cells(records))
    assert note.startswith("2 older cells are left out of tables and figures (passkey; code aaaaaaa, 2025-01-01)")
    assert older_note(records[:1], frozenset({records[0].cell})).startswith("An older cell is left out")
    assert older_note(records, frozenset()) == ""
    assert code_of(task(provenance=make_provenance(commit=None))[0]) == "longeval 0.1.0"
    assert code_of(task(provenance=make_provenance(dirty=True))[0]).endswith("with uncommitted changes")


def test_a_column_of_two_versions_is_said_to_be_one():
    (found,) = build_task_sets([*old(), *task("yarn"), *task("yarn", 128), *task("none", 128)])
    (table,) = found.tasks
    (note,) = [note for note in table_notes(table) if note.startswith("not the same prompts")]
    assert note.endswith("at 64, so rows are not comparable there: none (code aaaaaaa); yarn (code bbbbbbb)")
    assert not same_samples(table)
    (found,) = build_task_sets([*task(), *task("yarn")])
    assert same_samples(found.tasks[0])
    assert not any("not the same prompts" in note for note in table_notes(found.tasks[0]))
    (found,) = build_task_sets([*task(params={"prompts": None}), *task("yarn")])
    assert not same_samples(found.tasks[0]), "not recorded is not the same"
    (found,) = build_task_sets([*task(params={"prompts": None}), *task("yarn", params={"prompts": None})])
    assert not same_samples(found.tasks[0])


def test_methods_with_other_limits_in_one_column_are_told_apart():
    records = [*task(params={"limit": 20}), *task("yarn", params={"limit": 5, "prompts": "fewer"}, samples=HALF[:5])]
    (found,) = build_task_sets(records)
    assert [(table.title, [row.label for row in table.rows]) for table in found.tasks] == [
        ("passkey (limit 20)", ["none"]),
        ("passkey (limit 5)", ["yarn"]),
    ]
    records = [*task(params={"limit": 20}), *task("yarn", params={"limit": None})]
    assert [table.title for table in build_task_sets(records)[0].tasks] == ["passkey"], "the same prompts after all"
    records = [*task(params={"limit": None}), *task("yarn", params={"limit": 5, "prompts": "fewer"})]
    assert build_task_sets(records)[0].tasks[0].title == "passkey (no limit)"


def test_pairs_differ_in_the_method_alone():
    (a,), (b,) = task("none"), task("resonance")
    assert comparable(a, b)
    for params in ({"seed": 1}, {"task_digest": "x"}, {"limit": 5, "prompts": "x"}, {"max_new_tokens": 8}):
        assert not comparable(a, task("resonance", params=params)[0]), params
    assert comparable(a, task("resonance", params={"limit": 5})[0]), "the limit made no difference"
    assert not comparable(a, task("resonance", 128)[0])


def test_a_base_of_an_older_version_is_not_compared():
    records = [*old("none"), *task("resonance")]
    (table,) = build_task_sets(records)[0].tasks
    (pair,) = task_pairs(table, lambda cell: HALF)
    assert (pair.found, pair.why_not) == (None, INCOMPARABLE)


def test_the_report_says_all_of_it_and_keeps_older_cells_for_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "render", lambda figure: plots.Picture(png=b"png", svg=b"svg"))
    cells = [old("none"), old("resonance"), old("yarn"), task("none"), task("resonance")]
    fewer = {"params": {"limit": 5, "prompts": "fewer"}, "samples": HALF[:5], "provenance": LATER}
    cells += [task(pe, **fewer) for pe in ("none", "resonance")]
    run = make_task_run(tmp_path / "run", [(records, HALF[: records[0].n]) for records in cells])
    written = write_report([run])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "> 2 older cells are left out of tables and figures (passkey; code aaaaaaa, 2025-01-01)" in text
    assert "named by the difference (limit 20; limit 5), and are not compared with each other" in text
    assert "#" not in "".join(line for line in text.splitlines() if line.startswith("|"))
    assert "with the same prompts, but not (or not as far as is recorded) in `passkey (limit 20)`." in text
    latex = (tmp_path / "run" / "report.tex").read_text()
    assert latex.count(r"\quad none &") == latex.count(r"\quad resonance &") == 2
    assert latex.count(r"\quad yarn &") == 1
    assert r"\textit{passkey (limit 5): accuracy}" in latex
    with open(tmp_path / "run" / "report.csv", newline="") as file:
        lines = {line["cell"]: line["older"] for line in csv.DictReader(file)}
    assert lines == {records[0].cell: str(records in cells[:2]).lower() for records in cells}
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())) == len(written.records) == 7
    with open(tmp_path / "run" / "report_files" / "score_pairs.csv", newline="") as file:
        assert [(line["task"], line["n"]) for line in csv.DictReader(file)] == [
            ("passkey (limit 20)", "20"),
            ("passkey (limit 5)", "5"),
        ]


def test_two_factors_of_one_method_have_maps_of_their_own():
    by_cell = {}
    for factor, value in ((2.0, 1.0), (4.0, 0.0)):
        samples = make_samples([value] * 4, depths=[0.0, 0.5, 0.5, 1.0])
        records = task("yarn", samples=samples, factor=factor)
        by_cell[records[0].cell] = (records, samples)
    (table,) = build_task_sets([record for records, _ in by_cell.values() for record in records])[0].tasks
    found = depth_table(table, lambda cell: by_cell[cell][1])
    assert {name: cell.value for (name, _, level), cell in found.cells.items() if level == 0.5} == {
        "yarn s=2": 1.0,
        "yarn s=4": 0.0,
    }


def test_chance_is_said_to_be_known_of_some_tasks_only():
    known, unknown = task(), make_task_records("none", 64, "other", HALF)
    (found,) = build_task_sets([*known, *unknown])
    said = chance_sentence(found.tasks)
    assert without_style(said).endswith("only where a task says what guessing scores, which other does not.")
    assert chance_sentence(found.tasks[:1]) == ""
    assert "not known for these tasks" in chance_sentence(found.tasks[1:])
