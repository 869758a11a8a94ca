import pytest
from records import make_group, make_samples, make_task_records

from longeval.studies.tasks.report.pairs import FEWEST_DISCORDANT, pair_notes, task_pairs
from longeval.studies.tasks.report.tables import build_task_sets


def pairs_of(values, *, stored=True, **changes):
    """Pairs from {(pe, length): values}."""
    samples, records = {}, []
    for (pe, length), found in values.items():
        made = make_samples(found, **changes.get(pe, {}))
        records += make_task_records(pe, length, "passkey", made)
        samples[records[-1].cell] = made if stored else None
    (tasks,) = build_task_sets(records)
    return [pair for table in tasks.tasks for pair in task_pairs(table, samples.get)]


def test_pairs_of_a_task():
    half, most, every = ([1.0] * n + [0.0] * (20 - n) for n in (10, 18, 20))
    values = {("yarn", 64): half, ("resonance_yarn", 64): most, ("resonance_yarn", 128): every, ("none", 64): every}
    (pair,) = pairs_of(values | {("resonance_pi", 64): every})
    assert (pair.base.pe, pair.resonance.pe, pair.length, pair.task) == ("yarn", "resonance_yarn", 64, "passkey")
    assert (pair.found.difference, pair.found.a_only, pair.found.b_only) == (0.4, 0, 8)
    assert pair.found.p == 2 / 2**8
    assert pair.is_different and not pair.says_nothing


@pytest.mark.parametrize(("discordant", "silent"), [(5, True), (6, False)])
def test_too_few_discordant_samples_say_nothing(discordant, silent):
    assert FEWEST_DISCORDANT == 6
    right = [1.0] * discordant + [0.0] * (20 - discordant)
    (pair,) = pairs_of({("none", 64): [0.0] * 20, ("resonance", 64): right})
    assert pair.says_nothing is silent and pair.is_different is not silent
    assert any("says nothing for or against: passkey resonance 64" in note for note in pair_notes([pair])) is silent


def test_without_samples_or_equal_prompts_it_says_why():
    values = {("none", 64): [1.0] * 10, ("resonance", 64): [0.0] * 10}
    (pair,) = pairs_of(values, stored=False)
    assert (pair.found, pair.why_not) == (None, "samples are not stored")
    (pair,) = pairs_of(values, resonance={"prompt_digest": "other"})
    assert (pair.found, pair.why_not) == (None, "no sample had the same prompt in both")
    assert pair_notes([pair]) == ["no comparison, no sample had the same prompt in both: passkey resonance 64"]


def test_a_part_that_matches_is_said_to_be_one():
    (pair,) = pairs_of({("none", 64): [1.0] * 10, ("resonance", 64): [0.0] * 8})
    assert (pair.found.n, pair.found.unmatched) == (8, 2)
    assert any("left out: 2 in passkey resonance 64" in note for note in pair_notes([pair]))


def test_averages_have_no_pairs():
    records = [*make_group("none", 64, "all", ["a"], 0.5), *make_group("resonance", 64, "all", ["a"], 0.6)]
    (tasks,) = build_task_sets(records)
    assert task_pairs(tasks.groups[0], {}.get) == []


def test_comparisons_without_an_interval_are_not_counted():
    clusters = {"clusters": ["a", "b", "c", "a"] * 5}
    values = {("none", 64): [0.0] * 20, ("resonance", 64): [1.0, 0.0] * 10}
    (pair,) = pairs_of(values, none=clusters, resonance=clusters)
    assert not pair.is_different
    (note,) = pair_notes([pair])
    assert note.startswith("no interval") and note.endswith("passkey resonance 64")
