"""PosGen's published numbers against a transcription, and what is said where ours differ from them."""

import dataclasses

from records import collect_posgen, full_run

from longeval.report.formats.markdown import block_text
from longeval.report.published import published_sets
from longeval.studies.posgen.report.published import comparison, published_blocks
from longeval.studies.posgen.report.tables import build_tables
from longeval.studies.posgen.request import PosGenRequest

# Wang et al. 2024 (arXiv 2403.00071), Table 1: recursive, cot, semi_recursive.
TABLE_1 = """
none           65.29±0.43 69.56±0.33 17.96±0.03
resonance      62.64±0.15 75.25±0.10 29.78±0.07
yarn           95.93±0.04 98.71±0.00 33.70±0.04
resonance_yarn 98.30±0.00 99.58±0.00 48.46±0.03
"""


def the_set():
    (found,) = [one for one in published_sets() if one.kind == "posgen"]
    return found


def compared(path, ood, **changes):
    methods = tuple(dict.fromkeys(pe for _, pe in ood))
    tasks = tuple(dict.fromkeys(task for task, _ in ood))
    spec = PosGenRequest(**{"tasks": tasks, "pe": methods, "seeds": len(next(iter(ood.values())))} | changes)
    (table,) = build_tables(collect_posgen([full_run(path, spec, ood)]))
    return comparison(table)


def text_of(beside):
    return "\n".join(block_text(block, "") for block in published_blocks(beside))


def cot(**shares):
    return {("cot", pe): values for pe, values in shares.items()}


def as_published(**changes):
    """Shares of cot whose means are the published ones, each seed 0.01 points above the one before."""
    means = {"none": 69.56, "resonance": 75.25, "yarn": 98.71, "resonance_yarn": 99.58} | changes
    steps = [0.0001 * step for step in (-2, -1, 0, 1, 2)]
    return cot(**{pe: [mean / 100 + step for step in steps] for pe, mean in means.items()})


def test_table_1_is_as_printed():
    found = the_set()
    assert found.source == "Wang et al. 2024, Resonance RoPE (arXiv 2403.00071), Table 1"
    assert found.columns == ("recursive", "cot", "semi_recursive")
    for row, line in zip(found.rows, TABLE_1.strip().splitlines(), strict=True):
        method, *words = line.split()
        assert row.method == method
        pairs = [(row.values[column], row.variances[column]) for column in found.columns]
        assert pairs == [tuple(map(float, word.split("±"))) for word in words]


def test_the_papers_settings_are_those_of_the_full_preset(tmp_path):
    found = compared(tmp_path / "run", as_published())
    assert list(found.differences()) == []
    assert "tied on, attention\\_scale off, init t5, start\\_token off" in text_of(found)
    # A setting that no record has would never be found to differ.
    assert set(the_set().params) - {"seeds", "dtype", "factor"} <= set(found.table.records[0].params)


def test_other_settings_are_named_with_both_values(tmp_path):
    changes = {"d_model": 128, "lr": 1e-3, "precision": "tf32", "start_token": True}
    found = compared(tmp_path / "run", cot(yarn=[0.9, 0.91]), **changes)
    assert list(found.differences()) == [
        ("seeds", "5", "2"),
        ("dtype", "float32", "tf32"),
        ("d_model", "512", "128"),
        ("lr", "0.0002", "0.001"),
        ("factor", "4", "3.95385"),
        ("native_length", "64", "65"),
    ]
    assert "d\\_model 128 (theirs 512)" in text_of(found)
    # A method without a factor doesn't read the lengths either.
    assert list(compared(tmp_path / "none", cot(none=[0.7] * 5), start_token=True).differences()) == []


def test_numbers_and_orders_stand_side_by_side(tmp_path):
    lines = text_of(compared(tmp_path / "run", as_published(none=70.0))).splitlines()
    (row,) = [line for line in lines if line.startswith("| `none`")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["–", "70.00 ± 0.00", "69.56 ± 0.33", "+0.44"]
    assert any("in the published order, `resonance_yarn` > `yarn` > `resonance` > `none`." in line for line in lines)


def test_another_order_is_said_with_what_the_seeds_know(tmp_path):
    text = text_of(compared(tmp_path / "a", as_published(none=76.0)))
    assert "Here `resonance_yarn` > `yarn` > `none` > `resonance`" in text
    assert "0.75 points above `resonance`; the paired interval 0.75 to 0.75 of 5 seeds lies on one side of 0" in text
    assert "5.69 points below" in text
    unsure = as_published() | cot(none=[0.7, 0.8, 0.72, 0.78, 0.78])
    assert "of 5 seeds holds 0." in text_of(compared(tmp_path / "b", unsure))


def test_seeds_that_only_one_method_has_do_not_enter_the_paired_difference(tmp_path):
    text = text_of(compared(tmp_path / "run", cot(none=[0.80, 0.80, 0.95], resonance=[0.78, 0.79])))
    assert "6.50 points above `resonance`, over the seeds that both have +1.50; the paired interval" in text


def test_an_order_is_said_with_the_neighbours_that_seeds_can_tell(tmp_path):
    # Leads seed by seed, in points: 1, 2, 3 (s 1: ± 4.303/√3); −1, 1, 3 (s 2: twice that); 10, 10, 10.
    ood = cot(
        resonance_yarn=[0.92, 0.93, 0.97],
        yarn=[0.91, 0.91, 0.94],
        resonance=[0.92, 0.90, 0.91],
        none=[0.82, 0.80, 0.81],
    )
    apart, unsure = [line for line in text_of(compared(tmp_path / "run", ood)).splitlines() if "  - Neighbours" in line]
    assert apart.endswith(": `resonance` and `none` (+10.00, interval 10.00 to 10.00, 3 seeds).")
    assert unsure.endswith(
        ": `resonance_yarn` and `yarn` (+2.00, interval −0.48 to 4.48, 3 seeds), "
        "`yarn` and `resonance` (+1.00, interval −3.97 to 5.97, 3 seeds)."
    )


def test_neighbours_without_two_common_seeds_are_named(tmp_path):
    text = text_of(compared(tmp_path / "run", cot(yarn=[0.90, 0.91], resonance=[0.80, 0.81], none=[0.70])))
    assert "fewer than two seeds have both: `resonance` and `none`" in text
    assert "One seed" not in text


def test_what_the_paper_does_not_have_is_left_out(tmp_path):
    found = compared(tmp_path / "a", cot(none=[0.7], pi=[0.9]) | {("mine", "none"): [0.5], ("mine", "pi"): [0.5]})
    assert (found.tasks, [row.name for row in found.rows]) == (("cot",), ["none"])
    assert "- cot:" not in text_of(found)
    assert compared(tmp_path / "b", cot(pi=[0.9])) is None
    assert compared(tmp_path / "c", {("mine", "none"): [0.9]}) is None


def test_a_longest_period_makes_another_method_than_the_papers(tmp_path):
    found = compared(tmp_path / "a", cot(none=[0.7], resonance=[0.9]))
    assert [row.name for row in found.rows] == ["none", "resonance"]
    none, resonance = found.table.rows
    several = dataclasses.replace(resonance, row=dataclasses.replace(resonance.row, method='{"max_period": 16}'))
    table = dataclasses.replace(found.table, rows=(none, several))
    assert [row.name for row in comparison(table).rows] == ["none"]
    assert table.is_best(several, "cot", "accuracy_ood") and not table.is_best(none, "cot", "accuracy_ood")


def test_the_regime_of_the_published_code_is_named(tmp_path):
    found = compared(tmp_path / "run", as_published())
    swapped = dataclasses.replace(found, table=dataclasses.replace(found.table, regime="swapped"))
    said = "The regime here is not the one of the paper's text"
    assert said in text_of(swapped) and said not in text_of(found)


def test_what_reads_the_same_is_neither_above_nor_below(tmp_path):
    text = text_of(compared(tmp_path / "run", as_published(none=75.2501, resonance=75.2500)))
    assert "points above" not in text
    assert "`resonance_yarn` > `yarn` > `none` = `resonance`." in text
