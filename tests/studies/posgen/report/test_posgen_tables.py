"""Which PosGen cells stand together, what their seeds say, and what is missing or failed."""

import dataclasses

import pytest
from records import full_run, make_cell, make_curves, make_posgen_run

from longeval.errors import LongEvalError
from longeval.report.build import build_document
from longeval.report.formats.markdown import markdown_report
from longeval.request import requests_to_yaml
from longeval.stats.seeds import over_seeds
from longeval.store.folder import Store
from longeval.studies.posgen.report.cells import collect_posgen
from longeval.studies.posgen.report.sections import REPORT, introduced
from longeval.studies.posgen.report.tables import GENERATED, IN_DISTRIBUTION, OOD, build_tables
from longeval.studies.posgen.request import PosGenRequest

OOD_BY_METHOD = {
    ("cot", "none"): [0.60, 0.62, 0.64],
    ("cot", "resonance"): [0.65, 0.66, 0.70],
    ("cot", "yarn"): [0.90, 0.90, 0.90],
}
SPEC = PosGenRequest(tasks=("cot",), pe=("none", "resonance", "yarn"), seeds=3)


def tables_of(*paths):
    return build_tables(collect_posgen([str(path) for path in paths]))


def markdown_of(*paths):
    found = collect_posgen([str(path) for path in paths])
    preface = introduced("", "")
    return markdown_report(build_document(found, [REPORT], command="table", preface=preface, published=False))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    for name in ("position_figure", "loss_figure"):
        monkeypatch.setattr(f"longeval.studies.posgen.report.sections.{name}", lambda *_: None)


def cells_of(text):
    """Rows of Markdown tables: first cell to the others, of the last table with such a row."""
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


def test_the_table_says_means_intervals_and_the_better_of_a_pair(tmp_path):
    text = markdown_of(full_run(tmp_path / "run", SPEC, OOD_BY_METHOD))
    rows = cells_of(text)
    assert rows["`none`"] == ["–", "62.00 ± 4.00 [57.03, 66.97]", "63.00 ± 4.00"]
    assert rows["`resonance`"] == ["–", "**67.00 ± 7.00** [60.43, 73.57]", "68.00 ± 7.00"]
    assert rows["`yarn`"] == ["4", "90.00 ± 0.00 [90.00, 90.00]", "91.00 ± 0.00"], "no pair, so nothing is the best"
    assert rows["`resonance` vs `none`"] == ["–", "**+5.00** [2.52, 7.48]"]
    for said in (
        "positions 64 to 255",
        "at 4 to 63",
        "3 seeds (0–2)",
        "Guessing gives 5.9",
        "Regime trained",
        "150 epochs",
    ):
        assert said in text, said


def test_free_running_generation_has_a_table_of_its_own(tmp_path):
    text = markdown_of(full_run(tmp_path / "run", SPEC, OOD_BY_METHOD)).split("### Free-running generation")[1]
    assert cells_of(text)["`none`"] == ["–", "31.00 ± 1.00 [28.52, 33.48]"]
    assert cells_of(text)["`resonance`"] == ["–", "**33.50 ± 1.75** [30.21, 36.79]"]


def test_ties_at_the_shown_digits_are_both_best(tmp_path):
    ood = {("cot", "none"): [0.60001], ("cot", "resonance"): [0.60004]}
    (table,) = tables_of(full_run(tmp_path / "run", SPEC.replaced(seeds=1), ood))
    assert all(table.is_best(row, "cot", OOD) for row in table.rows)
    ood = {("cot", "none"): [0.6000], ("cot", "resonance"): [0.6002]}
    (table,) = tables_of(full_run(tmp_path / "other", SPEC.replaced(seeds=1), ood))
    assert [table.is_best(row, "cot", OOD) for row in table.rows] == [False, True]


def test_one_seed_has_no_spread_and_the_reader_is_told(tmp_path):
    spec = SPEC.replaced(seeds=1, first_seed=0)
    text = markdown_of(full_run(tmp_path / "run", spec, {key: values[:1] for key, values in OOD_BY_METHOD.items()}))
    assert cells_of(text)["`resonance`"] == ["–", "**65.00**", "66.00"]
    assert cells_of(text)["`resonance` vs `none`"] == ["–", "+5.00"]
    assert "One seed (0), so there is no variance and no interval" in text
    assert "±" not in text.split("### Beside")[0]


def test_missing_and_failed_seeds_are_named_and_not_in_the_mean(tmp_path):
    cells = []
    for pe, values in (("none", [0.60, 0.62]), ("resonance", [0.65, 0.66, 0.70])):
        cells += [
            (make_cell(SPEC, pe, seed, (0.99, v, 0.3)), make_curves(SPEC, (0.99, v, 0.3)))
            for seed, v in enumerate(values)
        ]
    cells.append((make_cell(SPEC, "none", 2, error="CUDA out\nof memory"), None))
    text = markdown_of(make_posgen_run(tmp_path / "run", SPEC, cells))
    assert cells_of(text)["`none`"][1] == "61.00 ± 2.00 [48.29, 73.71] (2 of 3 seeds)"
    assert cells_of(text)["`resonance` vs `none`"] == ["–", "+4.50 [−1.85, 10.85] (2 of 3 seeds)"]
    assert "- failed: none on cot, seed 2: CUDA out of memory" in text
    assert "Not finished: 3 of 9 cells have no record yet: yarn on cot, trained, seeds 0–2." in text
    assert "6 cells (5 done, 1 failed)" in text


def test_a_seed_that_was_asked_for_counts_before_any_cell_has_it(tmp_path):
    spec = SPEC.replaced(pe=("none",), seeds=5)
    cells = [(make_cell(spec, "none", seed, (0.99, 0.6, 0.3)), None) for seed in (0, 1, 2)]
    text = markdown_of(make_posgen_run(tmp_path / "run", spec, cells))
    assert "(3 of 5 seeds)" in cells_of(text)["`none`"][1]
    assert "- no cell of seeds 3, 4: none on cot" in text
    assert "Not finished: 2 of 5 cells have no record yet: none on cot, trained, seeds 3, 4." in text


def test_a_method_that_failed_altogether_says_so(tmp_path):
    spec = SPEC.replaced(pe=("none", "resonance"), seeds=1)
    cells = [
        (make_cell(spec, "none", 0, (0.9, 0.6, 0.3)), None),
        (make_cell(spec, "resonance", 0, error="loss is nan"), None),
    ]
    text = markdown_of(make_posgen_run(tmp_path / "run", spec, cells))
    assert cells_of(text)["`resonance`"][1] == "failed"
    assert "**" not in cells_of(text)["`none`"][1]


def test_regimes_stand_in_tables_of_their_own(tmp_path):
    spec = SPEC.replaced(pe=("yarn",), regimes=("trained", "swapped"), seeds=1)
    cells = [
        (make_cell(spec, "yarn", 0, (0.99, value, 0.5), regime=regime), None)
        for regime, value in (("swapped", 0.7), ("trained", 0.9))
    ]
    run = make_posgen_run(tmp_path / "run", spec, cells)
    trained, swapped = tables_of(run)
    assert (trained.regime, swapped.regime) == ("trained", "swapped")
    assert trained.rows[0].runs["cot"].mean(OOD).mean == pytest.approx(90)
    assert swapped.rows[0].runs["cot"].mean(OOD).mean == pytest.approx(70)
    text = markdown_of(run)
    assert "## Regime trained, posgen-2x512" in text and "## Regime swapped, posgen-2x512" in text
    assert "Trained with: `yarn` with `none`." in text.split("## Regime swapped")[1]
    assert "Trained with" not in text.split("## Regime swapped")[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 10}, "epochs 10"),
        ({"lr": 1e-3}, "lr 0.001"),
        ({"precision": "tf32"}, "tf32"),
        ({"num_train": 500}, "num\\_train 500"),
        ({"frozen_mlp": True}, "frozen\\_mlp true"),
    ],
)
def test_cells_of_other_settings_never_share_a_table(tmp_path, change, said):
    one = full_run(tmp_path / "a", SPEC, {("cot", "none"): [0.6, 0.6, 0.6]})
    other = full_run(tmp_path / "b", SPEC.replaced(**change), {("cot", "none"): [0.8, 0.8, 0.8]})
    first, second = tables_of(one, other)
    assert [table.rows[0].runs["cot"].mean(OOD).mean for table in (first, second)] == pytest.approx([60, 80])
    text = markdown_of(one, other)
    assert "Not all cells were asked with the same settings." in text
    assert said in text.split("## ")[0]
    headings = [line for line in text.splitlines() if line.startswith("## Regime")]
    assert len(set(headings)) == 2


def test_data_of_its_own_and_data_of_one_seed_stand_apart(tmp_path):
    own = full_run(tmp_path / "own", SPEC, {("cot", "none"): [0.60, 0.62, 0.64]})
    shared = full_run(tmp_path / "shared", SPEC.replaced(data_seed=0), {("cot", "none"): [0.60, 0.7, 0.8]})
    first, second = tables_of(own, shared)
    assert first.rows[0].runs["cot"].values(OOD) == pytest.approx({0: 60, 1: 62, 2: 64})
    assert second.rows[0].runs["cot"].values(OOD) == pytest.approx({0: 60, 1: 70, 2: 80})
    assert (first.differs, second.differs) == ("each seed its own data", "data of seed 0 for all")
    (alone,) = tables_of(shared)
    assert (alone.differs, sorted(alone.rows[0].runs["cot"].cells)) == ("data of seed 0 for all", [0, 1, 2])
    assert "all seeds have the data of seed 0" in markdown_of(shared)


def test_parameters_of_a_method_make_rows(tmp_path):
    spec = SPEC.replaced(pe=("yarn", "resonance_yarn"), seeds=1)
    cells = [
        (make_cell(spec, pe, 0, (0.9, value, 0.1), method={"beta_fast": beta}), None)
        for pe, beta, value in (("yarn", 32.0, 0.5), ("yarn", 2.0, 0.6), ("resonance_yarn", 2.0, 0.55))
    ]
    (table,) = tables_of(make_posgen_run(tmp_path / "run", spec, cells))
    assert [row.name for row in table.rows] == ["yarn (beta_fast=2)", "resonance_yarn", "yarn (beta_fast=32)"]
    assert [pair.differences["cot"].mean for pair in table.pairs()] == pytest.approx([-5.0])
    assert [table.is_best(row, "cot", OOD) for row in table.rows] == [True, False, False]


def test_a_cell_in_two_folders_counts_once_and_an_ok_one_wins(tmp_path):
    spec = SPEC.replaced(pe=("none",), seeds=1)
    done = make_cell(spec, "none", 0, (0.9, 0.6, 0.3))
    failed = [dataclasses.replace(record, value=None, status="failed", error="killed") for record in done[1:2]]
    one = make_posgen_run(tmp_path / "a", spec, [(failed, None)])
    other = make_posgen_run(tmp_path / "b", spec, [(done, make_curves(spec, (0.9, 0.6, 0.3)))])
    for order in ((one, other), (other, one)):
        found = collect_posgen(list(order))
        assert len(found.cells) == 1
        assert found.cells[0].status == "ok"
        assert found.stores[found.cells[0].cell].curves(found.cells[0].cell) is not None
        (note,) = found.notes
        assert "different outcomes" in note and f"the one of {other} is shown" in note
    assert collect_posgen([other, other]).notes == ()


def test_of_two_cells_in_one_place_the_newer_is_shown_and_it_is_said(tmp_path):
    spec = SPEC.replaced(pe=("none",), seeds=1)
    cells = [
        (
            make_cell(spec, "none", 0, (0.9, value, 0.3), params={"training": name}, provenance={"date": date}),
            None,
        )
        for name, value, date in (("a", 0.7, "2026-02-01"), ("b", 0.6, "2026-01-01"))
    ]
    run = make_posgen_run(tmp_path / "run", spec, cells)
    (table,) = tables_of(run)
    assert table.rows[0].runs["cot"].values(OOD) == pytest.approx({0: 70})
    assert table.replaced == 1
    assert "- 1 cell left out for newer ones of the same settings" in markdown_of(run)


def test_what_one_folder_lacks_another_may_have(tmp_path):
    spec = SPEC.replaced(pe=("none",), seeds=2)
    halves = [
        make_posgen_run(tmp_path / name, spec, [(make_cell(spec, "none", seed, (0.9, 0.6, 0.3)), None)])
        for seed, name in enumerate("ab")
    ]
    assert "1 of 2 cells has no record yet: none on cot, trained, seed 1." in collect_posgen(halves[:1]).notes[0]
    assert collect_posgen(halves).notes == ()


def test_missing_cells_are_counted_once_however_often_they_were_asked_for(tmp_path):
    run = make_posgen_run(tmp_path / "run", SPEC, [(make_cell(SPEC, "none", 0, (0.9, 0.6, 0.3)), None)])
    other = SPEC.replaced(pe=("none",), seeds=4)
    again = make_posgen_run(tmp_path / "again", other, [(make_cell(SPEC, "none", 1, (0.9, 0.6, 0.3)), None)])
    assert "8 of 10 cells have no record yet" in collect_posgen([run, again]).notes[0]


def test_cells_of_other_settings_do_not_stand_for_missing_ones(tmp_path):
    spec = SPEC.replaced(pe=("none",), seeds=1)
    run = make_posgen_run(
        tmp_path / "run", spec, [(make_cell(spec.replaced(epochs=10), "none", 0, (0.9, 0.6, 0.3)), None)]
    )
    assert "1 of 1 cells has no record yet" in collect_posgen([run]).notes[0]


def test_a_folder_without_posgen_cells_is_refused_with_the_right_command(tmp_path):
    from records import make_nll, make_records, make_run

    nll = make_nll([[2.0] * 31] * 12)
    other = make_run(tmp_path / "ppl", [(make_records("none", 32, nll), nll)])
    with pytest.raises(LongEvalError, match="no PosGen cells") as caught:
        collect_posgen([other])
    assert f"longeval report {other}" in caught.value.remedy
    run = full_run(tmp_path / "run", SPEC.replaced(seeds=1), {("cot", "none"): [0.6]})
    assert any("1 cell that is not PosGen's left out" in note for note in collect_posgen([run, other]).notes)


def test_models_that_did_not_learn_the_rule_are_named(tmp_path):
    spec = SPEC.replaced(pe=("none", "resonance"), seeds=1)
    cells = [(make_cell(spec, pe, 0, (seen, 0.05, 0.05)), None) for pe, seen in (("none", 0.06), ("resonance", 0.95))]
    text = markdown_of(make_posgen_run(tmp_path / "run", spec, cells))
    (line,) = [line for line in text.splitlines() if "not learned" in line]
    assert line.startswith("- not learned: below 90%") and line.endswith("to the positions: none on cot (6.0)")


def test_seeds_that_were_stacked_and_seeds_alone_stand_in_one_table(tmp_path):
    spec, values = SPEC.replaced(pe=("none",)), (0.9, 0.8, 0.7)
    cells = [
        (make_cell(spec, "none", seed, values, params={"stacked": stacked}), make_curves(spec, values))
        for seed, stacked in ((0, 2), (1, 1))
    ]
    path = make_posgen_run(tmp_path / "run", spec, cells)
    requests = [spec.replaced(stack=stack).to_mapping() for stack in (None, True, False)]
    Store(path).write_text("spec.yaml", requests_to_yaml(requests))
    (table,) = tables_of(path)
    assert (table.differs, table.seeds) == ("", (0, 1, 2))
    (note,) = collect_posgen([path]).notes
    assert note.startswith("Not finished: 1 of 3 cells has no record yet: none on cot, trained, seed 2.")
