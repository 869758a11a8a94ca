"""The data of the page's view of samples, against the samples that are stored."""

from __future__ import annotations

import dataclasses
import json

import pytest
from records import demo_task_cells, make_sample, make_task_records, make_task_run

from longeval.report.collect import collect
from longeval.store.folder import Store
from longeval.studies.tasks.report import sections
from longeval.studies.tasks.report.samples import sample_data
from longeval.studies.tasks.report.tables import build_task_sets


def view_data(path, most=None):
    collection = collect([str(path)])
    if most is not None:
        (tasks,) = build_task_sets(collection.current)
        return json.loads(json.dumps(sample_data(tasks, collection, most), allow_nan=False))
    (section,) = sections(collection)
    (view,) = section.views
    assert view.kind == "samples"
    return json.loads(json.dumps(view.load(), allow_nan=False))


def test_every_answer_is_at_its_method_index_and_length(tmp_path):
    path = make_task_run(tmp_path / "run", demo_task_cells(num_samples=6, lengths=(32, 64)))
    data = view_data(path)
    store = Store(path)
    tasks = {task["name"]: task for task in data["tasks"]}
    assert list(tasks) == ["passkey", "quality", "topics"]
    seen = 0
    for cell in store.cells():
        record = cell.records[0]
        for one in store.samples(cell.cell) or () if record.task in tasks else ():
            task = tasks[record.task]
            (shown,) = (s for s in task["samples"] if (s["index"], s["length"]) == (one.index, record.length))
            answer = shown["answers"][task["methods"].index(record.pe)]
            assert (answer["output"], answer["scores"], answer["finish"]) == (one.output, one.scores, one.finish)
            assert (shown["target"], shown["tokens"], shown["cut"]) == (one.target, one.tokens, one.cut_tokens)
            assert (shown["depth"], shown["cluster"]) == (one.depth, one.cluster)
            seen += 1
    assert seen == sum(a is not None for t in tasks.values() for s in t["samples"] for a in s["answers"]) > 100
    assert all(task["total"] == len(task["samples"]) for task in tasks.values())
    binary = {task["name"]: task["metrics"][0]["binary"] for task in data["tasks"]}
    assert binary["passkey"] is True and binary["topics"] is False
    # pi failed everywhere: its row has no answers.
    assert "--keep-text" in data["notes"][0]


def test_metrics_say_whether_lower_is_better(tmp_path):
    samples = [make_sample(n, 1.0, scores={"accuracy": float(n % 2), "wer": 0.25 * n}) for n in range(4)]
    records = make_task_records("none", 64, "own", samples)
    records[1] = dataclasses.replace(records[1], params=records[1].params | {"higher_is_better": False})
    data = view_data(make_task_run(tmp_path / "run", [(records, samples)]))
    assert data["tasks"][0]["metrics"] == [
        {"name": "accuracy", "lower": False, "binary": True},
        {"name": "wer", "lower": True, "binary": False},
    ]


@pytest.mark.parametrize(("most", "samples", "prompts"), [(10**6, 10, 10), (12_000, 10, 3), (1_000, 4, 0)])
def test_the_size_is_bounded_and_prompts_go_first(tmp_path, most, samples, prompts):
    found = [make_sample(n, 1.0, prompt=f"{n}" * 3000) for n in range(10)]
    path = make_task_run(tmp_path / "run", [(make_task_records("none", 64, "own", found), found)])
    data = view_data(path, most)
    shown = data["tasks"][0]["samples"]
    assert len(json.dumps(data)) < most + 500
    assert abs(len(shown) - samples) <= 1
    assert [one["index"] for one in shown] == [*range(len(shown))]
    assert [one.get("prompt") for one in shown[:prompts]] == [f"{n}" * 3000 for n in range(prompts)]
    assert sum("prompt" in one for one in shown) == prompts
    assert data["tasks"][0]["total"] == 10
    assert len(data["notes"]) == (samples < 10) + (prompts < len(shown))


def test_what_is_too_large_leaves_room_for_the_rest(tmp_path):
    found = [make_sample(n, 1.0, prompt="p" * 500, output="x" * (20_000 if n == 2 else 3)) for n in range(10)]
    path = make_task_run(tmp_path / "run", [(make_task_records("none", 64, "own", found), found)])
    (task,) = view_data(path, 12_000)["tasks"]
    assert [one["index"] for one in task["samples"]] == [0, 1, *range(3, 10)]
    assert all("prompt" in one for one in task["samples"])
