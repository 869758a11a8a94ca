"""PosGen's published numbers against a transcription, and what is said where ours differ from them."""

import dataclasses

from records import full_run

from longeval.report.formats.markdown import block_text
from longeval.report.published import published_sets
from longeval.studies.posgen.report.cells import collect_posgen
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
ALL = ("none", "resonance", "yarn", "resonance_yarn")


def the_set():
    (found,) = [one for one in published_sets() if one.kind == "posgen"]
    return found


def compared(path, ood, **changes):
    methods = tuple(dict.fromkeys(pe for _, pe in ood))
    tasks = tuple(dict.fromkeys(task for task, _ in ood))
    spec = PosGenRequest(**{"tasks": tasks, "pe": methods, "seeds": len(next(iter(ood.values())))} | changes)
    (table,) = build_tables(collect_posgen([full_run(path, spec, ood)]))
    return comparison(table)


def published_lines(beside):
    return "\n".join(block_text(block, "") for block in published_blocks(beside)).splitlines()


def near(value, num_seeds=5):
    """As many shares around a percentage, which have it as their mean."""
    return [value / 100 + 0.0001 * (seed - (num_seeds - 1) / 2) for seed in range(num_seeds)]


def as_published(**changes):
    tasks = {"cot": {"none": 69.56, "resonance": 75.25, "yarn": 98.71, "resonance_yarn": 99.58} | changes}
    return {(task, pe): near(value) for task, by_method in tasks.items() for pe, value in by_method.items()}


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
    text = "\n".join(published_lines(found))
    assert "All settings that the paper states are the same here." in text
    assert "tied on, attention\\_scale off, init t5, start\\_token off" in text


def test_every_setting_that_the_paper_states_is_recorded_by_that_name(tmp_path):
    """A setting that no record has would never be found to differ."""
    record = compared(tmp_path / "run", as_published()).table.records[0]
    elsewhere = {"seeds", "dtype", "factor"}
    assert set(the_set().params) - elsewhere <= set(record.params)


def test_other_settings_are_named_with_both_values(tmp_path):
    found = compared(
        tmp_path / "run", {("cot", "yarn"): [0.9, 0.91]}, d_model=128, lr=1e-3, precision="tf32", start_token=True
    )
    assert list(found.differences()) == [
        ("seeds", "5", "2"),
        ("dtype", "float32", "tf32"),
        ("d_model", "512", "128"),
        ("lr", "0.0002", "0.001"),
        ("factor", "4", "3.95385"),
        ("native_length", "64", "65"),
    ]
    assert "d\\_model 128 (theirs 512)" in "\n".join(published_lines(found))


def test_methods_without_a_factor_say_nothing_of_one(tmp_path):
    found = compared(tmp_path / "run", {("cot", "none"): [0.7] * 5}, start_token=True)
    assert list(found.differences()) == []


def test_numbers_stand_side_by_side(tmp_path):
    found = compared(tmp_path / "run", as_published(none=70.0))
    lines = published_lines(found)
    (row,) = [line for line in lines if line.startswith("| `none`")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "`none`",
        "–",
        "70.00 ± 0.00",
        "69.56 ± 0.33",
        "+0.44",
    ]
    assert "- cot: the means are in the published order, `resonance_yarn` > `yarn` > `resonance` > `none`." in lines


def test_another_order_is_said_with_what_the_seeds_know(tmp_path):
    found = compared(tmp_path / "run", as_published(none=76.0))
    text = "\n".join(published_lines(found))
    assert (
        "- cot: the means are not in the published order. Here `resonance_yarn` > `yarn` > `none` > `resonance`; "
        "published `resonance_yarn` > `yarn` > `resonance` > `none`." in text
    )
    assert (
        "`none` is 0.75 points above `resonance`; the paired interval 0.75 to 0.75 of 5 seeds lies on one side of 0. "
        in text
    )
    assert "Published: 5.69 points below." in text


def test_an_order_that_the_seeds_cannot_tell_is_said_to_be_so(tmp_path):
    ood = as_published() | {("cot", "none"): [0.7, 0.8, 0.72, 0.78, 0.78]}
    text = "\n".join(published_lines(compared(tmp_path / "run", ood)))
    assert "of 5 seeds holds 0." in text


def test_seeds_that_only_one_method_has_do_not_enter_the_paired_difference(tmp_path):
    ood = {("cot", "none"): [0.80, 0.80, 0.95], ("cot", "resonance"): [0.78, 0.79]}
    text = "\n".join(published_lines(compared(tmp_path / "run", ood)))
    assert "`none` is 6.50 points above `resonance`, over the seeds that both have +1.50; the paired interval" in text


def test_one_seed_is_said_wherever_an_order_rests_on_it(tmp_path):
    same = {key: values[:1] for key, values in as_published().items()}
    sentence = "  - One seed, which can't tell whether another would give the same order."
    assert sentence in published_lines(compared(tmp_path / "a", same))
    other = {key: values[:1] for key, values in as_published(none=76.0).items()}
    lines = published_lines(compared(tmp_path / "b", other))
    assert "points above `resonance`; one seed has both. Published" in "\n".join(lines) and sentence in lines


def test_an_order_is_said_with_the_neighbours_that_seeds_can_tell(tmp_path):
    # Leads seed by seed, in points: 1, 2, 3 (s 1: ± 4.303/√3); −1, 1, 3 (s 2: twice that); 10, 10, 10.
    ood = {
        ("cot", "resonance_yarn"): [0.92, 0.93, 0.97],
        ("cot", "yarn"): [0.91, 0.91, 0.94],
        ("cot", "resonance"): [0.92, 0.90, 0.91],
        ("cot", "none"): [0.82, 0.80, 0.81],
    }
    lines = published_lines(compared(tmp_path / "run", ood))
    place = lines.index(
        "- cot: the means are in the published order, `resonance_yarn` > `yarn` > `resonance` > `none`."
    )
    assert lines[place + 1 : place + 3] == [
        "  - Neighbours that the seeds tell apart (the paired interval excludes 0): `resonance` and `none` "
        "(+10.00, interval 10.00 to 10.00, 3 seeds).",
        "  - Neighbours that the seeds don't tell apart (the paired interval holds 0): `resonance_yarn` and `yarn` "
        "(+2.00, interval −0.48 to 4.48, 3 seeds), `yarn` and `resonance` (+1.00, interval −3.97 to 5.97, "
        "3 seeds).",
    ]


def test_neighbours_without_two_common_seeds_are_named(tmp_path):
    ood = {("cot", "yarn"): [0.90, 0.91], ("cot", "resonance"): [0.80, 0.81], ("cot", "none"): [0.70]}
    lines = published_lines(compared(tmp_path / "run", ood))
    sentence = "Neighbours that fewer than two seeds have both: `resonance` and `none`; nothing can be told of them."
    assert f"  - {sentence}" in lines
    assert not any("One seed" in line for line in lines)


def test_what_the_paper_does_not_have_is_left_out(tmp_path):
    ood = {("cot", "none"): [0.7], ("cot", "pi"): [0.9], ("mine", "none"): [0.5], ("mine", "pi"): [0.5]}
    found = compared(tmp_path / "a", ood)
    assert (found.tasks, [row.name for row in found.rows]) == (("cot",), ["none"])
    assert not any("- cot:" in line for line in published_lines(found))
    assert compared(tmp_path / "b", {("cot", "pi"): [0.9]}) is None
    assert compared(tmp_path / "c", {("mine", "none"): [0.9]}) is None


def test_the_regime_of_the_published_code_is_named(tmp_path):
    found = compared(tmp_path / "run", as_published())
    swapped = dataclasses.replace(found, table=dataclasses.replace(found.table, regime="swapped"))
    sentence = "The regime here is not the one of the paper's text, but the one of its published code."
    assert sentence in "\n".join(published_lines(swapped))
    assert sentence not in "\n".join(published_lines(found))


def test_what_reads_the_same_is_neither_above_nor_below(tmp_path):
    found = compared(tmp_path / "run", as_published(none=75.2501, resonance=75.2500))
    assert not any("points above" in line for line in published_lines(found))
    expected = "- cot: no mean is above one that it is below there, `resonance_yarn` > `yarn` > `none` = `resonance`."
    assert expected in published_lines(found)
