"""What was asked for and has no record, and the order in which what has one is shown."""

from pathlib import Path

import pytest
from records import (
    make_failed_task,
    make_group,
    make_nll,
    make_provenance,
    make_records,
    make_samples,
    make_task_records,
    make_task_run,
    planned,
)

from longeval.report.collect import Names, ReadingOrder, collect, unfinished_note, written_names
from longeval.store.folder import Store
from longeval.store.plan import PlannedRequest

SAMPLES = make_samples([1.0, 0.0] * 10)
NLL = make_nll([[1.0] * 8] * 10)


def have(*places, **changes):
    return [record for pe, length, name in places for record in make_task_records(pe, length, name, SAMPLES, **changes)]


def note(asked, there):
    return unfinished_note(planned(asked), {record.cell for record in there})


ALL = [(pe, length, "passkey") for pe in ("none", "yarn") for length in (64, 128)]


def test_nothing_is_said_of_a_whole_run():
    failed = [*have(*ALL[:3]), *make_failed_task("yarn", 128, "passkey")]
    average = make_group("none", 64, "leval", ["a"], 0.5)
    assert note(failed, failed) == "", "a failure is a record"
    assert note([], have(*ALL)) == ""
    assert note([*have(("none", 64, "a")), *average], have(("none", 64, "a"))) == "", "averages are not counted"


def test_missing_cells_are_counted_and_named():
    said = note(have(*ALL), have(*ALL[:3]))
    assert said.startswith("Not finished: 1 of 4 cells has no record yet: yarn at 128 (passkey). ")
    asked = have(*((pe, length, task) for task in ("a", "b") for pe in ("none", "yarn", "pi") for length in (64, 1024)))
    said = note(asked, have(("none", 64, "a")))
    assert "11 of 12 cells have no record yet: none at 1k (a); yarn, pi at 64, 1k (a, b); none at 64, 1k (b). " in said


def test_what_is_missing_alike_is_named_together_and_much_is_summed_up():
    lengths = [64 * k for k in range(1, 9)]
    every = [("none", length, f"task{k}") for k in range(8) for length in lengths]
    said = note(have(*every), have(*every[::9]))
    assert "56 of 64 cells have no record yet" in said
    assert said.count(" at ") == 6 and "; and 2 more such" in said


def test_models_and_protocols_are_named_where_they_differ():
    one = make_records("none", 64, NLL)
    assert "none at 64 (texts)." in note(one, [])
    sliding = make_records("none", 64, NLL, protocol="sliding")
    assert "none at 64 (texts, prefix, texts, sliding)" in note([*one, *sliding], [])
    other = make_records("none", 64, NLL, model="other")
    assert "toy none at 64 (texts); other none at 64 (texts)" in note([*one, *other], [])


def test_reading_order_is_as_asked():
    names = Names(
        models=["toy"],
        methods=["yarn", "none", "resonance_yarn"],
        subjects=[("tasks", name) for name in ("b", "g_z", "g_y", "g", "a")],
    )
    records = [
        *have(("none", 64, "extra"), provenance=make_provenance(date="2024-01-01T00:00:00+00:00")),
        *have(*((pe, n, t) for t in ("a", "b", "g_z", "g_y") for pe in ("pi", "yarn", "none") for n in (128, 64))),
        *have(("resonance_yarn", 64, "b")),
        *make_group("none", 64, "g", ["g_z", "g_y"], 0.5),
    ]
    shown = [(r.task, r.pe, r.length) for r in sorted(records, key=ReadingOrder([names], records).key)]
    assert list(dict.fromkeys(task for task, _, _ in shown)) == ["b", "g_z", "g_y", "g", "a", "extra"]
    assert list(dict.fromkeys(pe for task, pe, _ in shown if task == "b")) == ["yarn", "resonance_yarn", "none", "pi"]
    assert [n for task, pe, n in shown if (task, pe) == ("b", "yarn")] == [64, 128]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("model: toy\npe: [yarn, none]\ndata: texts, books\n", (["toy"], ["yarn", "none"], ["texts", "books"])),
        ("model: [a, 3]\npe: {x: y}\ntasks: [b]\n---\nmodel: c\n", (["a", "c"], [], ["b"])),
        ("a: [", ([], [], [])),
        ("", ([], [], [])),
    ],
)
def test_names_of_a_folder_without_a_plan(spec, names):
    found = written_names(spec)
    assert ([*found.models], [*found.methods], [name for _, name in found.subjects]) == names


@pytest.fixture
def run(tmp_path):
    cells = [(make_task_records("none", 64, name, SAMPLES), SAMPLES) for name in ("a", "b")]
    made = make_task_run(tmp_path / "run", cells)
    Path(made, "plan.json").unlink()
    return made


def test_a_plan_tells_what_is_missing_and_in_which_order(run):
    asked = planned(have(*(("none", length, name) for name in ("b", "a") for length in (64, 1024))))
    for command, cells in (("tasks", asked), ("posgen", planned(make_records("none", 64, NLL), backend="posgen"))):
        Store(run).remember_plan(PlannedRequest(command=command, digest="0" * 16, cells=cells))
    found = collect([run])
    assert [record.task for record in found.records] == ["b", "a"]
    (said,) = found.notes
    assert said.startswith("Not finished: 2 of 4 cells have no record yet: none at 1k (b, a).")


def test_a_cell_in_another_folder_is_not_missing(run, tmp_path):
    Store(run).remember_plan(PlannedRequest(command="tasks", digest="0" * 16, cells=planned(have(("yarn", 64, "a")))))
    other = make_task_run(tmp_path / "other", [(have(("yarn", 64, "a")), SAMPLES)])
    Store(other).remember_plan(PlannedRequest(command="tasks", digest="0" * 16, cells=()))
    assert collect([run, other]).notes == ()


@pytest.mark.parametrize("content", [None, b"[", b"{}"])
def test_without_a_plan_what_is_missing_is_not_known_and_the_spec_gives_the_order(run, content):
    store = Store(run)
    store.write_text("spec.yaml", "model: toy\npe: [none]\ntasks: [b, a]\n")
    if content is not None:
        store.write_text("plan.json", content.decode())
    found = collect([run])
    assert [record.task for record in found.records] == ["b", "a"]
    assert found.notes == (f"Whether cells are missing is not known: {run} has no plan.json.",)
