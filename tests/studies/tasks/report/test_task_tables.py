"""Which task cells stand in which table."""

import pytest
from records import demo_task_cells, make_failed_task, make_group, make_samples, make_task_records

from longeval.studies.tasks.report.notes import count_rows, is_chance, table_notes
from longeval.studies.tasks.report.tables import build_task_sets

HALF = make_samples([1.0, 0.0] * 10)


def task(pe="none", length=64, name="passkey", samples=HALF, **changes):
    return make_task_records(pe, length, name, samples, **changes)


def set_of(*cells):
    """The one set of tables that cells make."""
    (found,) = build_task_sets(flat(*cells))
    return found


def flat(*cells):
    return [record for cell in cells for record in cell]


def test_a_set_has_tasks_by_main_metric_then_averages_then_further_metrics():
    found = set_of(*(cell[0] for cell in demo_task_cells()))
    assert found.title == "toy, downstream tasks"
    mains = [(table.task, table.metric) for table in found.tasks]
    assert mains == [("passkey", "accuracy"), ("quality", "accuracy"), ("topics", "accuracy")]
    groups = [(table.task, table.members) for table in found.groups]
    assert groups == [("suite", ("quality", "books")), ("pair", ("quality", "topics"))]
    assert [table.metric for table in found.further] == ["accuracy_first", "accuracy_second"]
    assert [row.label for row in found.tasks[0].rows] == ["none", "resonance", "yarn", "resonance_yarn", "pi"]
    assert (found.lengths, found.native_length) == ((32, 64, 128), 64)


def test_ways_of_asking_make_sets_of_their_own():
    ways = [{"chat_template": True}, {"chat_template": False}, {"chat_template": False, "overlong": "skip"}]
    assert [found.differs for found in build_task_sets(flat(*(task(params=params) for params in ways)))] == [
        "chat_template true, overlong middle",
        "chat_template false, overlong middle",
        "chat_template false, overlong skip",
    ]


def test_tasks_with_other_limits_share_a_set_unless_cells_collide():
    apart = [task(params={"limit": 20}), task(name="quality", params={"limit": 10})]
    assert [table.title for table in set_of(*apart).tasks] == ["passkey", "quality"]
    titles = [table.title for table in set_of(*apart, task(params={"limit": 5, "prompts": "other"})).tasks]
    assert titles == ["passkey (limit 20)", "passkey (limit 5)", "quality"]


def test_a_failed_cell_stands_with_the_metric_of_the_others():
    samples = make_samples([1.0, 0.0], scores={"exact_match": 1.0, "f1": 0.5})
    failed = make_failed_task("none", 128, "passkey")
    found = set_of(task(samples=samples), failed)
    (table,) = found.tasks
    assert (table.metric, table.rows[0].cells[128].status) == ("exact_match", "failed")
    assert [other.metric for other in found.further] == ["f1"]
    assert set_of(failed).tasks[0].metric == "accuracy"


def test_the_main_metric_is_the_one_that_says_so():
    samples = make_samples([1.0, 0.0], scores={"accuracy": 1.0, "recall": 0.5})
    first, second = task(samples=samples)
    first.params["primary"], second.params["primary"] = False, True
    (found,) = build_task_sets([first, second])
    assert [table.metric for table in found.tasks] == ["recall"]


def test_an_average_goes_where_its_members_are():
    average = make_group("none", 128, "both", ["passkey"], 0.5)
    cells = [task(params={"chat_template": False}), task(length=128, params={"chat_template": True}), average]
    assert [(found.differs, [table.task for table in found.groups]) for found in build_task_sets(flat(*cells))] == [
        ("chat_template false", []),
        ("chat_template true", ["both"]),
    ]
    alone = set_of(average)
    assert (alone.tasks, [table.task for table in alone.groups]) == ((), ["both"])


# Wilson's interval of 15 and 16 of 40 begins at 0.242 and 0.263, of 5 and 4 of 40 ends at 0.261 and 0.231.
@pytest.mark.parametrize(("right", "chance"), [(4, False), (5, True), (15, True), (16, False)])
def test_chance_is_inside_the_interval(right, chance):
    samples = make_samples([1.0] * right + [0.0] * (40 - right))
    (table,) = set_of(task(name="quality", samples=samples)).tasks
    assert is_chance(table, table.rows[0].cells[64]) is chance


def test_notes_name_what_a_reader_must_know():
    few = make_samples([0.0] * 9 + [1.0])
    cut = make_samples([1.0] * 12 + [0.0] * 12, truncated=True)
    (table,) = set_of(
        task(name="quality", length=64, samples=few),
        task(name="quality", length=128, samples=cut, skipped=3),
        task("yarn", name="quality", length=64, samples=few[:9]),
    ).tasks
    notes = table_notes(table)
    assert notes[0].startswith("† ") and notes[0].endswith("0.25: none 64; yarn 64")
    assert any(note.startswith("few samples (9)") for note in notes)
    assert any(note.startswith("not the same number of samples everywhere (9–10 at 64, 24 at 128)") for note in notes)
    assert count_rows(table) == [("samples", ["9–10", "24"]), ("cut to fit", ["0", "24"]), ("left out", ["0", "3"])]


def test_a_score_below_guessing_is_said_to_be():
    (table,) = set_of(task(name="quality", samples=make_samples([0.0] * 40))).tasks
    assert any(note.startswith("below guessing, which scores 0.25: none 64") for note in table_notes(table))


def test_too_few_documents_to_tell_from_guessing():
    samples = make_samples([1.0, 1.0, 1.0, 0.0] * 5, ["a", "b", "c", "a"] * 5)
    quality, topics = set_of(task(name="quality", samples=samples), task(name="topics", samples=samples)).tasks
    assert quality.rows[0].cells[64].ci_low is None
    assert is_chance(quality, quality.rows[0].cells[64]), "0.75 against 0.25, but from three documents"
    assert any(note.startswith("few documents (3)") for note in table_notes(quality))
    assert not is_chance(topics, topics.rows[0].cells[64]), "a guess is never right"
