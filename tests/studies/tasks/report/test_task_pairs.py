from records import make_group, make_samples, make_task_records

from longeval.studies.tasks.report.pairs import FEWEST_DISCORDANT, pair_notes, task_pairs
from longeval.studies.tasks.report.tables import build_task_sets


def pairs_of(values, *, stored=True, metric="accuracy", **changes):
    """Pairs from {(pe, length): values}."""
    samples, records = {}, []
    for (pe, length), found in values.items():
        made = make_samples(found, **changes.get(pe, {}))
        records += make_task_records(pe, length, "passkey", made)
        samples[records[-1].cell] = made if stored else None
    (tasks,) = build_task_sets(records)
    return [pair for table in tasks.tasks for pair in task_pairs(table, samples.get)]


def test_pairs_of_a_task():
    pairs = pairs_of(
        {
            ("yarn", 64): [1.0] * 10 + [0.0] * 10,
            ("resonance_yarn", 64): [1.0] * 18 + [0.0] * 2,
            ("resonance_yarn", 128): [1.0] * 20,
            ("none", 64): [1.0] * 20,
            ("resonance_pi", 64): [1.0] * 20,
        }
    )
    (pair,) = pairs
    assert (pair.base.pe, pair.resonance.pe, pair.length, pair.task) == ("yarn", "resonance_yarn", 64, "passkey")
    assert (pair.found.difference, pair.found.a_only, pair.found.b_only) == (0.4, 0, 8)
    assert pair.found.p == 2 / 2**8
    assert pair.is_different
    assert not pair.says_nothing


def test_too_few_discordant_samples_say_nothing():
    assert FEWEST_DISCORDANT == 6
    for discordant, silent in ((5, True), (6, False)):
        (pair,) = pairs_of(
            {("none", 64): [0.0] * 20, ("resonance", 64): [1.0] * discordant + [0.0] * (20 - discordant)}
        )
        assert pair.says_nothing is silent
        assert pair.is_different is not silent
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
    assert "samples without a counterpart that had the same prompt, left out: 2 in passkey resonance 64" in pair_notes(
        [pair]
    )


def test_averages_have_no_pairs():
    records = [*make_group("none", 64, "all", ["a"], 0.5), *make_group("resonance", 64, "all", ["a"], 0.6)]
    (tasks,) = build_task_sets(records)
    assert task_pairs(tasks.groups[0], {}.get) == []


def test_comparisons_without_an_interval_are_not_counted():
    clusters = ["a", "b", "c", "a"] * 5
    samples, records = {}, []
    for pe, values in (("none", [0.0] * 20), ("resonance", [1.0, 0.0] * 10)):
        made = make_samples(values, clusters)
        records += make_task_records(pe, 64, "quality", made)
        samples[records[-1].cell] = made
    (pair,) = task_pairs(build_task_sets(records)[0].tasks[0], samples.get)
    assert not pair.is_different
    assert pair_notes([pair]) == [
        "no interval, so no statement (fewer than 8 independent units, or all alike): quality resonance 64"
    ]
