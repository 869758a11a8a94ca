"""Cells of several versions and settings in one report: what stands in tables, and what is said of the rest."""

import json

import pytest
from records import (
    csv_rows,
    make_group,
    make_provenance,
    make_samples,
    make_task_records,
    make_task_run,
    without_figures,
    write_report,
)

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


def tables_of(*cells):
    """The tables of tasks in the one set that cells make."""
    (found,) = build_task_sets([record for records in cells for record in records])
    return found.tasks


@pytest.mark.parametrize("params", [{"prompts": "x"}, {"task_digest": "x"}, {"task_version": "0"}, {"chance": 0.5}])
def test_of_two_versions_the_newest_is_shown(params):
    before, after = task(provenance=OLD, params=params), task()
    assert older_cells([*before, *after]) == older_cells([*after, *before]) == {before[0].cell}


@pytest.mark.parametrize(
    "other", [{"pe": "yarn"}, {"length": 128}, {"params": {"limit": 5}}, {"params": {"seed": 1}}, {"dtype": "bfloat16"}]
)
def test_cells_of_other_places_or_settings_are_not_older(other):
    assert older_cells([*old(), *task(**other)]) == frozenset()


def test_averages_of_other_members_are_not_older():
    groups = [make_group("none", 64, "all", names, 0.5, provenance=at) for names, at in (("a", OLD), ("ab", NEW))]
    assert older_cells([record for records in groups for record in records]) == frozenset()


@pytest.mark.parametrize(
    ("name", "newer", "same"),
    [
        ("haystack", "noise", True),
        ("haystack", "essays", False),
        ("limit", None, True),
        ("limit", 5, False),
        ("parse_special", True, False),
        ("end_tokens", [2], True),
        ("clean_up_spaces", True, True),
    ],
)
def test_a_setting_that_a_record_lacks_has_its_default_and_what_follows_from_the_model_tells_nothing(name, newer, same):
    before, after = old(), task(params={name: newer})
    before[0].params.pop(name, None)
    assert older_cells([*before, *after]) == ({before[0].cell} if same else frozenset())


def test_cells_of_one_column_stand_apart_where_only_one_has_a_setting():
    found = tables_of(task(), task("yarn", params={"new_setting": 3, "prompts": "other"}))
    assert [table.differs for table in found] == ["no new_setting", "new_setting 3"]


def test_methods_whose_table_is_pinned_stand_beside_those_that_have_one_anyway():
    names = ("dynamic_ntk", "resonance_dynamic_ntk")
    cells = [task(params={"pin_length": None}), *(task(pe, params={"pin_length": 64}) for pe in names)]
    (table,) = tables_of(*cells)
    assert (table.differs, [row.label for row in table.rows]) == ("", ["none", *names])
    assert [(pair.base.pe, pair.resonance.pe) for pair in task_pairs(table, lambda cell: HALF)] == [names]
    (table,) = tables_of(*cells, task("dynamic_ntk", params={"pin_length": 128}))
    labels = {row.label for row in table.rows if row.pe == "dynamic_ntk"}
    assert labels == {"dynamic_ntk (pin_length=128)", "dynamic_ntk (pin_length=64)"}


def test_the_note_counts_and_names_versions():
    before = [old(pe)[0] for pe in ("none", "yarn")]
    records = [*before, *task(), *task("yarn")]
    note = older_note(records, older_cells(records))
    assert note.startswith("2 older cells are left out of tables and figures (passkey; code aaaaaaa, 2025-01-01)")
    assert older_note(records, frozenset()) == ""
    assert code_of(task(provenance=make_provenance(commit=None))[0]) == "longeval 0.1.0"
    assert code_of(task(provenance=make_provenance(dirty=True))[0]).endswith("with uncommitted changes")


def test_a_column_of_two_versions_is_said_to_be_one():
    (table,) = tables_of(old(), task("yarn"), task("yarn", 128), task("none", 128))
    (note,) = [note for note in table_notes(table) if note.startswith("not the same prompts")]
    assert " at 64" in note and note.endswith(": none (code aaaaaaa); yarn (code bbbbbbb)")
    assert not same_samples(table)
    (table,) = tables_of(task(), task("yarn"))
    assert same_samples(table) and not any("not the same prompts" in note for note in table_notes(table))
    unknown = {"params": {"prompts": None}}
    for second in ({}, unknown):
        (table,) = tables_of(task(**unknown), task("yarn", **second))
        assert not same_samples(table), "not recorded is not the same"


def test_methods_with_other_limits_in_one_column_are_told_apart():
    fewer = task("yarn", params={"limit": 5, "prompts": "fewer"}, samples=HALF[:5])
    found = tables_of(task(params={"limit": 20}), fewer)
    assert [(table.title, table.rows[0].label) for table in found] == [
        ("passkey (limit 20)", "none"),
        ("passkey (limit 5)", "yarn"),
    ]
    assert tables_of(task(params={"limit": None}), fewer)[0].title == "passkey (no limit)"
    found = tables_of(task(params={"limit": 20}), task("yarn", params={"limit": None}))
    assert [table.title for table in found] == ["passkey"], "the same prompts after all"


def test_pairs_differ_in_the_method_alone():
    (a,), (b,) = task("none"), task("resonance")
    assert comparable(a, b)
    for params in ({"seed": 1}, {"task_digest": "x"}, {"limit": 5, "prompts": "x"}, {"max_new_tokens": 8}):
        assert not comparable(a, task("resonance", params=params)[0]), params
    assert comparable(a, task("resonance", params={"limit": 5})[0]), "the limit made no difference"
    assert not comparable(a, task("resonance", 128)[0])


def test_a_base_of_an_older_version_is_not_compared():
    (table,) = tables_of(old("none"), task("resonance"))
    (pair,) = task_pairs(table, lambda cell: HALF)
    assert (pair.found, pair.why_not) == (None, INCOMPARABLE)


def test_the_report_says_all_of_it_and_keeps_older_cells_for_programs(tmp_path, monkeypatch):
    without_figures(monkeypatch)
    cells = [old("none"), old("resonance"), old("yarn"), task("none"), task("resonance")]
    fewer = {"params": {"limit": 5, "prompts": "fewer"}, "samples": HALF[:5], "provenance": LATER}
    cells += [task(pe, **fewer) for pe in ("none", "resonance")]
    run = make_task_run(tmp_path / "run", [(records, HALF[: records[0].n]) for records in cells])
    written = write_report([run])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "> 2 older cells are left out of tables and figures (passkey; code aaaaaaa, 2025-01-01)" in text
    assert "named by the difference (limit 20; limit 5), and are not compared with each other" in text
    assert "with the same prompts, but not (or not as far as is recorded) in `passkey (limit 20)`." in text
    latex = (tmp_path / "run" / "report.tex").read_text()
    assert [latex.count(rf"\quad {pe} &") for pe in ("none", "resonance", "yarn")] == [2, 2, 1]
    lines = {line["cell"]: line["older"] for line in csv_rows(tmp_path / "run" / "report.csv")}
    assert lines == {records[0].cell: str(records in cells[:2]).lower() for records in cells}
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())) == len(written.records) == 7
    pairs = csv_rows(tmp_path / "run" / "report_files" / "score_pairs.csv")
    assert [(line["task"], line["n"]) for line in pairs] == [("passkey (limit 20)", "20"), ("passkey (limit 5)", "5")]


def test_two_factors_of_one_method_have_maps_of_their_own():
    samples = {value: make_samples([value] * 4, depths=[0.0, 0.5, 0.5, 1.0]) for value in (1.0, 0.0)}
    cells = [task("yarn", samples=samples[value], factor=s) for s, value in ((2.0, 1.0), (4.0, 0.0))]
    (table,) = tables_of(*cells)
    of_cell = {records[0].cell: samples[records[0].value] for records in cells}
    found = depth_table(table, of_cell.get)
    shown = {name: cell.value for (name, _, level), cell in found.cells.items() if level == 0.5}
    assert shown == {"yarn s=2": 1.0, "yarn s=4": 0.0}


def test_chance_is_said_to_be_known_of_some_tasks_only():
    found = tables_of(task(), make_task_records("none", 64, "other", HALF))
    assert without_style(chance_sentence(found)).endswith("which other does not.")
    assert chance_sentence(found[:1]) == ""
    assert "not known for these tasks" in chance_sentence(found[1:])
