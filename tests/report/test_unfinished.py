"""What was asked for and has no record, and the order in which what has one is shown."""

import pytest
from fabricated_runs import make_nll, make_provenance, make_records
from fabricated_tasks import make_failed_task, make_group, make_samples, make_task_records, make_task_run

from longeval.report.asked import ReadingOrder, find_subjects, understood
from longeval.report.collect import collect
from longeval.report.unfinished import unfinished_note
from longeval.request import PplRequest, TasksRequest

SAMPLES = make_samples([1.0, 0.0] * 10)
NLL = make_nll([[1.0] * 8] * 10)


def asked(*tasks, pe=("none", "yarn"), lengths=(64, 128), limit=20, **changes):
    return TasksRequest(model=("toy",), pe=pe, lengths=lengths, tasks=tasks, limit=limit, **changes)


def have(*places, **changes):
    return [record for pe, length, name in places for record in make_task_records(pe, length, name, SAMPLES, **changes)]


ALL = [(pe, length, "passkey") for pe in ("none", "yarn") for length in (64, 128)]


def test_nothing_is_said_of_a_whole_run():
    assert unfinished_note([asked("passkey")], have(*ALL)) == ""
    failed = [*have(*ALL[:3]), *make_failed_task("yarn", 128, "passkey")]
    assert unfinished_note([asked("passkey")], failed) == "", "a failure is a record"
    assert unfinished_note([], have(*ALL)) == ""


def test_missing_cells_are_counted_and_named():
    note = unfinished_note([asked("passkey")], have(*ALL[:3]))
    assert note.startswith("Not finished: 1 of 4 cells has no record yet: yarn at 128 (passkey). ")
    note = unfinished_note(
        [asked("passkey", "kv", pe=("none", "yarn", "pi"), lengths=(64, 1024))], have(("none", 64, "kv"))
    )
    assert (
        "5 of 6 cells have no record yet: none at 1k (kv); yarn, pi at 64, 1k (kv); nor is there any of passkey" in note
    )


def test_what_is_missing_alike_is_named_together_and_much_is_summed_up():
    lengths = tuple(64 * k for k in range(1, 9))
    some = have(*(("none", length, f"task{k}") for k, length in enumerate(lengths)))
    note = unfinished_note([asked(*(f"task{k}" for k in range(8)), pe=("none",), lengths=lengths)], some)
    assert "56 of 64 cells have no record yet" in note
    assert note.count(" at ") == 6
    assert "; and 2 more such" in note


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"limit": 10}, False),
        ({"limit": None}, False),
        ({"seed": 1}, False),
        ({"chat_template": "off"}, False),
        ({"chat_template": "on"}, True),
        ({"overlong": "skip"}, True),
        ({"num_fewshot": 2}, False),
        ({"num_fewshot": 0}, True),
        ({"max_new_tokens": 8}, False),
        ({"haystack": "stdlib"}, False),
        ({"haystack": "noise"}, True),
        ({"native": 32, "factor": 2.0}, False),
        ({"parse_special": True}, False),
        ({"dtype": "bfloat16"}, False),
        ({"dtype": "float32"}, True),
    ],
)
def test_a_cell_counts_only_with_the_settings_asked_for(changes, met):
    request = asked("passkey", **{"pe": ("none",), "lengths": (64,)} | changes)
    note = unfinished_note([request], have(("none", 64, "passkey")))
    assert (note == "") is met


def test_factor_and_parameters_of_methods_count():
    made = have(("yarn", 64, "passkey"), params={"method": {"beta_fast": 32.0}})
    for changes, met in (
        ({"factor": 2.0}, True),
        ({"factor": 4.0}, False),
        ({"factor": None}, False),  # 64 / 64
        ({"factor": 2.0, "pe_args": {"yarn": {"beta_fast": 32.0}}}, True),
        ({"factor": 2.0, "pe_args": {"yarn": {"beta_fast": 16.0}}}, False),
    ):
        note = unfinished_note([asked("passkey", pe=("yarn",), lengths=(64,), **changes)], made)
        assert (note == "") is met, changes
    each = have(("yarn", 128, "passkey"))
    assert unfinished_note([asked("passkey", pe=("yarn",), lengths=(128, 256), factor="each")], each).count("256") == 1


def test_cut_samples_count_only_under_the_same_policy():
    cut = make_task_records("none", 64, "passkey", make_samples([1.0] * 20, truncated=True))
    for overlong, met in (("middle", True), ("left", False)):
        note = unfinished_note([asked("passkey", pe=("none",), lengths=(64,), overlong=overlong)], cut)
        assert (note == "") is met


@pytest.mark.parametrize(("limit", "met"), [(30, True), (20, True), (None, True), (8, False)])
def test_a_task_with_fewer_samples_than_were_asked_for_is_whole(limit, met):
    made = make_task_records("none", 64, "passkey", SAMPLES[:10], params={"limit": 20})
    assert (unfinished_note([asked("passkey", pe=("none",), lengths=(64,), limit=limit)], made) == "") is met


def test_requests_are_told_apart_by_what_differs():
    requests = [asked("passkey"), asked("passkey", limit=5)]
    note = unfinished_note(requests, have(*ALL))
    assert "4 of 8 cells have no record yet (limit 5): none, yarn at 64, 128 (passkey)" in note
    note = unfinished_note([*requests, asked("passkey", seed=3)], have(*ALL))
    assert "(passkey; limit 5, seed 0)" in note
    assert "(passkey; limit 20, seed 3)" in note


def test_members_of_groups_are_known_by_their_average_or_by_what_has_records():
    some = have(("none", 64, "leval_a"), ("none", 64, "leval_b"), ("none", 64, "niah_x"), ("yarn", 64, "niah_x"))
    request = asked("leval", "niah", lengths=(64,), factor=2.0)
    note = unfinished_note([request], some)
    assert "2 of 6 cells have no record yet: yarn at 64 (leval_a, leval_b)" in note
    assert "Of leval, niah only what has a record somewhere is counted." in note
    average = make_group("none", 64, "leval", ["leval_a", "leval_b", "leval_without_data"], 0.5)
    subjects = find_subjects([request], [*some, *average])
    assert subjects.stands_for(("tasks", "leval")) == [("tasks", "leval_a"), ("tasks", "leval_b")]
    assert "Of niah only" in unfinished_note([request], [*some, *average])
    assert "nor is there any of ruler" in unfinished_note([asked("niah", "ruler")], some[2:])
    assert unfinished_note([asked("ruler", lengths=(64,), pe=("none",))], some[:2]).count("leval") == 0


def test_perplexity_is_asked_for_by_data_and_protocol():
    made = make_records("none", 64, NLL)
    request = {"model": ("toy",), "pe": ("none",), "lengths": (64,)}
    assert unfinished_note([PplRequest(**request, data=("texts",))], made) == ""
    sliding = PplRequest(**request, data=("texts",), protocol="sliding")
    assert "1 of 1 cells has no record yet: none at 64 (texts)" in unfinished_note([sliding], made)
    assert "no record yet of books" in unfinished_note([PplRequest(**request, data=("texts", "books"))], made)
    assert unfinished_note([PplRequest(**request, data=("texts",)), asked("passkey")], made).count("passkey") == 1


def test_reading_order_is_as_asked():
    date = make_provenance(date="2024-01-01T00:00:00+00:00")
    records = [
        *have(("none", 64, "extra"), provenance=date),
        *have(*((pe, n, t) for t in ("a", "b", "g_z", "g_y") for pe in ("pi", "yarn", "none") for n in (128, 64))),
        *have(("resonance_yarn", 64, "b")),
        *make_group("none", 64, "g", ["g_z", "g_y"], 0.5),
    ]
    order = ReadingOrder([asked("b", "g", "a", pe=("yarn", "none", "resonance_yarn"))], records)
    shown = [(r.task, r.pe, r.length) for r in sorted(records, key=order.key)]
    assert list(dict.fromkeys(task for task, _, _ in shown)) == ["b", "g_z", "g_y", "g", "a", "extra"]
    assert list(dict.fromkeys(pe for task, pe, _ in shown if task == "b")) == ["yarn", "resonance_yarn", "none", "pi"]
    assert [n for task, pe, n in shown if (task, pe) == ("b", "yarn")] == [64, 128]


def test_a_folder_tells_what_is_missing_and_in_which_order(tmp_path):
    run = make_task_run(
        tmp_path / "run", [(make_task_records("none", 64, name, SAMPLES), SAMPLES) for name in ("a", "b")]
    )
    spec = tmp_path / "run" / "spec.yaml"
    spec.write_text("command: tasks\nmodel: toy\npe: [none]\nlengths: [64, 1k]\ntasks: [b, a]\nlimit: 20\n")
    found = collect([run])
    assert [record.task for record in found.records] == ["b", "a"]
    (note,) = found.notes
    assert note.startswith("Not finished: 2 of 4 cells have no record yet: none at 1k (b, a).")
    spec.write_text("command: tasks\nmodel: toy\nnonsense: 1\n")
    (note,) = collect([run]).notes
    assert note.startswith("Whether cells are missing is not known:")
    assert "nonsense" in note


def test_a_request_in_two_folders_counts_once():
    text = "model: toy\npe: none\nlengths: 64\n"
    requests, notes = understood([("a", text), ("b", text), ("c", "")])
    assert (len(requests), notes) == (1, ())


def test_a_task_file_is_known_by_its_source():
    mine = {"params": {"source": "tasks/mine.yaml"}}
    both = [
        *have(("none", 64, "mine"), **mine),
        *have(("none", 64, "other"), params={"source": "other.yaml", "seed": 1}),
    ]
    requests = [
        asked("./tasks/mine.yaml", pe=("none",), lengths=(64,)),
        asked("other.yaml", pe=("none",), lengths=(64,), seed=1),
    ]
    assert unfinished_note(requests, both) == "", "neither request asked for the other's file"
    note = unfinished_note([asked("./tasks/mine.yaml")], both)
    assert "3 of 4 cells have no record yet: none at 128 (mine); yarn at 64, 128 (mine)" in note
    assert "only what has a record" not in note


def test_a_pattern_is_known_by_what_it_matches():
    records = [
        *have(
            *((pe, length, name) for pe in ("none", "yarn") for length in (64, 128) for name in ("niah_a", "niah_b"))
        ),
        *have(("none", 64, "passkey"), params={"seed": 1}),
    ]
    request = asked("niah*"), asked("pass*", pe=("none",), lengths=(64,), seed=1)
    assert unfinished_note(request, records) == ""
    assert "1 of 9 cells has no record yet" in unfinished_note(request, records[1:])


def test_a_group_that_was_asked_for_by_a_file_or_a_pattern_is_no_missing_one():
    records = have(*((pe, length, name) for pe in ("none", "yarn") for length in (64, 128) for name in ("a", "b")))
    averages = [r for pe in ("none", "yarn") for n in (64, 128) for r in make_group(pe, n, "mine", ["a", "b"], 0.5)]
    for name in ("tasks/group.yaml", "mi*"):
        assert unfinished_note([asked(name)], [*records, *averages]) == ""


def test_a_table_pinned_to_another_length_is_not_what_was_asked_for():
    request = asked("passkey", pe=("dynamic_ntk",), lengths=(64,), backend="vllm", pin_length=128)
    for pinned, met in ((128, True), (64, False), (None, True)):
        made = have(("dynamic_ntk", 64, "passkey"), params={"pin_length": pinned}, backend="vllm")
        assert (unfinished_note([request], made) == "") is met


def test_a_pattern_stands_for_the_members_of_a_group_that_it_matches_too():
    records = have(("none", 64, "mixed"), ("yarn", 64, "mixed"), ("none", 64, "a"))
    averages = make_group("none", 64, "mine", ["a"], 0.5)
    note = unfinished_note([asked("mi*", lengths=(64,), factor=2.0)], [*records, *averages])
    assert "1 of 4 cells has no record yet: yarn at 64 (a)" in note
