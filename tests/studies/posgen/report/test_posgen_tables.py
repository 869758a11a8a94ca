"""Which PosGen cells stand together, what their seeds say, and what is missing or failed."""

import dataclasses

import pytest
from records import collect_posgen, full_run, make_cell, make_curves, make_nll, make_posgen_run, make_records, make_run

from longeval.errors import LongEvalError
from longeval.report.build import build_document
from longeval.report.document import Preface
from longeval.report.formats.markdown import markdown_report
from longeval.request import requests_to_yaml
from longeval.stats.seeds import over_seeds
from longeval.store.folder import Store
from longeval.studies.posgen.report import REPORT, cautions
from longeval.studies.posgen.report.tables import GENERATED, IN_DISTRIBUTION, OOD, build_tables
from longeval.studies.posgen.request import PosGenRequest

OOD_BY_METHOD = {
    ("cot", "none"): [0.60, 0.62, 0.64],
    ("cot", "resonance"): [0.65, 0.66, 0.70],
    ("cot", "yarn"): [0.90, 0.90, 0.90],
}
SPEC = PosGenRequest(tasks=("cot",), pe=("none", "resonance", "yarn"), seeds=3)
NONE = SPEC.replaced(pe=("none",))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    for name in ("position_figure", "loss_figure"):
        monkeypatch.setattr(f"longeval.studies.posgen.report.{name}", lambda *_: None)


def cell(pe="none", seed=0, ood=0.6, *, spec=SPEC, **changes):
    """A cell without curves, with its records."""
    return make_cell(spec, pe, seed, (0.99, ood, 0.3), **changes), None


def failed(pe, seed, error):
    return make_cell(SPEC, pe, seed, error=error), None


def tables_of(*paths):
    return build_tables(collect_posgen([str(path) for path in paths]))


def markdown_of(*paths):
    found = collect_posgen([str(path) for path in paths])
    return markdown_report(build_document(found, [REPORT], command="table", preface=Preface(), published=False))


def rows_of(text):
    """Rows of Markdown tables: first cell to the others, of the first table with such a row."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"
    ]
    return {row[0]: row[1:] for row in reversed(rows)}


def test_means_are_percentages_over_seeds(tmp_path):
    (table,) = tables_of(full_run(tmp_path / "run", SPEC, OOD_BY_METHOD))
    assert [row.name for row in table.rows] == ["none", "resonance", "yarn"]
    assert (table.regime, table.tasks, table.seeds, table.differs) == ("trained", ("cot",), (0, 1, 2), "")
    none = table.rows[0].runs["cot"]
    assert none.mean(OOD) == over_seeds({0: 60.0, 1: 62.0, 2: 64.0}, lowest=0, highest=100)
    assert none.mean(IN_DISTRIBUTION).mean == pytest.approx(63.0)
    assert none.mean(GENERATED).mean == pytest.approx(31.0)


def test_the_better_of_a_pair_is_bold_and_their_difference_a_row(tmp_path):
    forced, generated = markdown_of(full_run(tmp_path / "run", SPEC, OOD_BY_METHOD)).split("### Free-running")
    rows = rows_of(forced)
    assert rows["`none`"] == ["–", "62.00 ± 4.00 [57.03, 66.97]", "63.00 ± 4.00"]
    assert rows["`resonance`"] == ["–", "**67.00 ± 7.00** [60.43, 73.57]", "68.00 ± 7.00"]
    assert rows["`yarn`"] == ["4", "90.00 ± 0.00 [90.00, 90.00]", "91.00 ± 0.00"], "no pair, so nothing is the best"
    assert rows["`resonance` vs `none`"] == ["–", "**+5.00** [2.52, 7.48]"]
    assert rows_of(generated)["`resonance`"] == ["–", "**33.50 ± 1.75** [30.21, 36.79]"]


@pytest.mark.parametrize(("other", "best"), [(0.60004, [True, True]), (0.6002, [False, True])])
def test_ties_at_the_shown_digits_are_both_best(tmp_path, other, best):
    ood = {("cot", "none"): [0.60001], ("cot", "resonance"): [other]}
    (table,) = tables_of(full_run(tmp_path / "run", SPEC.replaced(seeds=1), ood))
    assert [table.is_best(row, "cot", OOD) for row in table.rows] == best


def test_missing_and_failed_seeds_are_named_and_not_in_the_mean(tmp_path):
    cells = [cell("none", seed, ood) for seed, ood in enumerate((0.60, 0.62))]
    cells += [cell("resonance", seed, ood) for seed, ood in enumerate((0.65, 0.66, 0.70))]
    text = markdown_of(make_posgen_run(tmp_path / "run", SPEC, [*cells, failed("none", 2, "CUDA out\nof memory")]))
    assert rows_of(text)["`none`"][1] == "61.00 ± 2.00 [48.29, 73.71] (2 of 3 seeds)"
    assert rows_of(text)["`resonance` vs `none`"] == ["–", "+4.50 [−1.85, 10.85] (2 of 3 seeds)"]
    assert "none on cot, seed 2: CUDA out of memory" in text
    assert "3 of 9 cells have no record yet: yarn on cot, trained, seeds 0–2." in text
    assert "6 cells (5 done, 1 failed)" in text


def test_a_seed_that_was_asked_for_counts_before_any_cell_has_it(tmp_path):
    text = markdown_of(
        make_posgen_run(tmp_path / "run", NONE.replaced(seeds=5), [cell(seed=seed) for seed in range(3)])
    )
    assert "(3 of 5 seeds)" in rows_of(text)["`none`"][1]
    assert "no cell of seeds 3, 4: none on cot" in text
    assert "2 of 5 cells have no record yet: none on cot, trained, seeds 3, 4." in text


def test_a_method_that_failed_altogether_says_so(tmp_path):
    text = markdown_of(make_posgen_run(tmp_path / "run", None, [cell("none"), failed("resonance", 0, "loss is nan")]))
    assert rows_of(text)["`resonance`"][1] == "failed"
    assert "**" not in rows_of(text)["`none`"][1]


def test_regimes_stand_in_tables_of_their_own(tmp_path):
    spec = SPEC.replaced(pe=("yarn",), regimes=("trained", "swapped"), seeds=1)
    cells = [cell("yarn", 0, ood, regime=regime) for regime, ood in (("swapped", 0.7), ("trained", 0.9))]
    run = make_posgen_run(tmp_path / "run", spec, cells)
    found = [(table.regime, table.rows[0].runs["cot"].mean(OOD).mean) for table in tables_of(run)]
    assert found == [("trained", pytest.approx(90)), ("swapped", pytest.approx(70))]
    trained, swapped = markdown_of(run).split("## Regime swapped, posgen-2x512")
    assert "## Regime trained, posgen-2x512" in trained and "Trained with" not in trained
    assert "Trained with: `yarn` with `none`." in swapped


@pytest.mark.parametrize(
    ("change", "said"),
    [({"epochs": 10}, "epochs 10"), ({"precision": "tf32"}, "tf32"), ({"frozen_mlp": True}, "frozen\\_mlp true")],
)
def test_cells_of_other_settings_never_share_a_table(tmp_path, change, said):
    one = full_run(tmp_path / "a", SPEC, {("cot", "none"): [0.6, 0.6, 0.6]})
    other = full_run(tmp_path / "b", SPEC.replaced(**change), {("cot", "none"): [0.8, 0.8, 0.8]})
    first, second = tables_of(one, other)
    assert [table.rows[0].runs["cot"].mean(OOD).mean for table in (first, second)] == pytest.approx([60, 80])
    text = markdown_of(one, other)
    assert said in text.split("## ")[0]
    assert len({line for line in text.splitlines() if line.startswith("## Regime")}) == 2


def test_data_of_its_own_and_data_of_one_seed_stand_apart(tmp_path):
    own = full_run(tmp_path / "own", SPEC, {("cot", "none"): [0.60, 0.62, 0.64]})
    shared = full_run(tmp_path / "shared", SPEC.replaced(data_seed=0), {("cot", "none"): [0.60, 0.7, 0.8]})
    first, second = tables_of(own, shared)
    assert first.rows[0].runs["cot"].values(OOD) == pytest.approx({0: 60, 1: 62, 2: 64})
    assert second.rows[0].runs["cot"].values(OOD) == pytest.approx({0: 60, 1: 70, 2: 80})
    assert (first.differs, second.differs) == ("each seed its own data", "data of seed 0 for all")
    (alone,) = tables_of(shared)
    assert (alone.differs, sorted(alone.rows[0].runs["cot"].cells)) == ("data of seed 0 for all", [0, 1, 2])


def test_parameters_of_a_method_make_rows(tmp_path):
    cells = [
        cell(pe, 0, ood, method={"beta_fast": beta})
        for pe, beta, ood in (("yarn", 32.0, 0.5), ("yarn", 2.0, 0.6), ("resonance_yarn", 2.0, 0.55))
    ]
    (table,) = tables_of(make_posgen_run(tmp_path / "run", None, cells))
    assert [row.name for row in table.rows] == ["yarn (beta_fast=2)", "resonance_yarn", "yarn (beta_fast=32)"]
    assert [pair.differences["cot"].mean for pair in table.pairs()] == pytest.approx([-5.0])
    assert [row.name for row in table.rows if table.is_best(row, "cot", OOD)] == ["yarn (beta_fast=2)"]


def test_a_cell_in_two_folders_counts_once_and_an_ok_one_wins(tmp_path):
    spec = NONE.replaced(seeds=1)
    done, _ = cell()
    killed = [dataclasses.replace(record, value=None, status="failed", error="killed") for record in done[1:2]]
    one = make_posgen_run(tmp_path / "a", spec, [(killed, None)])
    other = make_posgen_run(tmp_path / "b", spec, [(done, make_curves(spec, (0.99, 0.6, 0.3)))])
    for order in ((one, other), (other, one)):
        found = collect_posgen(list(order))
        (kept,) = found.cells
        assert kept.status == "ok" and found.stores[kept.cell].curves(kept.cell) is not None
        (note,) = found.notes
        assert f"the one of {other} is shown" in note
    assert collect_posgen([other, other]).notes == ()


def test_of_two_cells_in_one_place_the_newer_is_shown_and_it_is_said(tmp_path):
    cells = [
        cell(ood=ood, params={"training": name}, provenance={"date": date})
        for name, ood, date in (("a", 0.7, "2026-02-01"), ("b", 0.6, "2026-01-01"))
    ]
    run = make_posgen_run(tmp_path / "run", NONE.replaced(seeds=1), cells)
    (table,) = tables_of(run)
    assert table.rows[0].runs["cot"].values(OOD) == pytest.approx({0: 70})
    assert table.replaced == 1
    assert "1 cell left out for newer ones" in markdown_of(run)


def test_what_one_folder_lacks_another_may_have_and_is_missed_once(tmp_path):
    halves = [make_posgen_run(tmp_path / str(seed), NONE.replaced(seeds=2), [cell(seed=seed)]) for seed in range(2)]
    assert "1 of 2 cells has no record yet: none on cot, trained, seed 1." in collect_posgen(halves[:1]).notes[0]
    assert collect_posgen(halves).notes == ()
    run = make_posgen_run(tmp_path / "run", SPEC, [cell()])
    again = make_posgen_run(tmp_path / "again", NONE.replaced(seeds=4), [cell(seed=1)])
    assert "8 of 10 cells have no record yet" in collect_posgen([run, again]).notes[0]


def test_cells_of_other_settings_do_not_stand_for_missing_ones(tmp_path):
    run = make_posgen_run(tmp_path / "run", NONE.replaced(seeds=1), [cell(spec=SPEC.replaced(epochs=10))])
    assert "1 of 1 cells has no record yet" in collect_posgen([run]).notes[0]


def test_a_folder_without_posgen_cells_is_refused_with_the_right_command(tmp_path):
    nll = make_nll([[2.0] * 31] * 12)
    other = make_run(tmp_path / "ppl", [(make_records("none", 32, nll), nll)])
    with pytest.raises(LongEvalError, match="no cells that `longeval posgen table` shows") as caught:
        collect_posgen([other])
    assert f"longeval report {other}" in caught.value.remedy
    run = make_posgen_run(tmp_path / "run", NONE.replaced(seeds=1), [cell()])
    assert any(
        note.startswith("1 cell is left out here: longeval report ") for note in collect_posgen([run, other]).notes
    )


def test_seeds_of_earlier_versions_that_were_stacked_stand_in_one_table_with_others(tmp_path):
    cells = [cell(seed=0, params={"stacked": 2}), cell(seed=1, params={"stacked": 1}), cell(seed=2)]
    path = make_posgen_run(tmp_path / "run", NONE.replaced(seeds=4), cells)
    requests = [NONE.replaced(seeds=4).to_mapping() | more for more in ({}, {"stack": True}, {"stack": False})]
    Store(path).write_text("spec.yaml", requests_to_yaml(requests))
    (table,) = tables_of(path)
    assert (table.differs, table.seeds) == ("", (0, 1, 2, 3))
    (note,) = collect_posgen([path]).notes
    assert "1 of 4 cells has no record yet: none on cot, trained, seed 3." in note


@pytest.mark.parametrize(
    ("none", "yarn", "is_cautious"),
    [
        ([0.60, 0.62], [0.90, 0.91], True),  # two seeds
        ([0.60, 0.62, 0.64], [0.90, 0.90, 0.92], False),
        ([0.30, 0.38, 0.36], [0.72, 0.23, 0.30], True),  # one seed of yarn is far from the others
    ],
)
def test_the_first_line_says_where_the_order_may_be_chance(tmp_path, none, yarn, is_cautious):
    cells = [cell(pe, seed, ood) for pe, oods in (("none", none), ("yarn", yarn)) for seed, ood in enumerate(oods)]
    path = make_posgen_run(tmp_path / "run", None, cells)
    (table,) = tables_of(path)
    said = [*cautions(table)]
    assert bool(said) == is_cautious
    text = markdown_of(path)
    assert all(f"> {line.split(':')[0]}" in text.split("|")[0] for line in said), "before the first table"
