"""What the report's page shows of single samples: prompt, expected answer, each method's answer and score.

The data is plain JSON:

    {"model", "notes": [sentence, …],
     "tasks": [{"name", "methods": [name, …], "lengths": [n, …], "total": samples that are stored, each length counted,
                "metrics": [{"name", "lower": whether lower is better, "binary": whether all scores are 0 or 1}, …],
                "samples": [{"index", "length", "target", "tokens", "cut", "depth", "cluster", "prompt" (if it is kept),
                             "answers": [{"output", "scores": {metric: score}, "finish"} or null, by method]}, …]}, …]}

`output` and `prompt` are as in `store.samples.Sample`. `longeval/report/page/samples.js` reads all this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from longeval.errors import LongEvalError
from longeval.metrics import higher_is_better
from longeval.report.collect import Collection
from longeval.report.numbers import counted
from longeval.report.tables import row_name
from longeval.store.samples import Sample
from longeval.studies.tasks.report.tables import TaskSet, TaskTable
from longeval.values import format_length

MOST_BYTES = 8_000_000
"""About how many bytes the samples of a whole page have."""

_WITHOUT_PROMPTS = (
    "No prompts are stored with these answers. --keep-text keeps them; stored cells need --fresh with it."
)


def sample_data(tasks: TaskSet, collection: Collection, most: int = MOST_BYTES) -> dict[str, Any]:
    """The data of the view (see above) for the tasks of one model.

    Args:
        tasks: The tables of the tasks.
        collection: The cells of the report.
        most: About how many bytes the data may have. Each task has an equal part of them; its first samples are taken,
            and their prompts as far as there is room left. What is too large is left out.
    """
    data: dict[str, Any] = {"model": tasks.model, "tasks": [], "notes": []}
    room = most // max(1, len(tasks.tasks))
    for table in tasks.tasks:
        task, notes = _task(table, tasks, collection, room)
        data["notes"] += notes
        if task["samples"]:
            data["tasks"].append(task)
    samples = [sample for task in data["tasks"] for sample in task["samples"]]
    if not samples and not data["notes"]:
        data["notes"].append("No samples are stored with these cells.")
    elif not any("prompt" in sample for sample in samples) and not data["notes"]:
        data["notes"].append(_WITHOUT_PROMPTS)
    return data


def _task(table: TaskTable, tasks: TaskSet, collection: Collection, room: int) -> tuple[dict[str, Any], list[str]]:
    """The samples of one task, and what is left out of them."""
    found, notes = _stored(table, collection)
    samples: list[dict[str, Any]] = []
    prompts: list[tuple[dict[str, Any], Any]] = []
    for (index, length), answers in sorted(found.items()):
        one = next(answer for answer in answers if answer is not None)
        plain = _sample(index, length, one, answers)
        size = _size(plain)
        if size > room:  # a later one may be smaller
            continue
        room -= size
        samples.append(plain)
        prompt = next((answer.prompt for answer in answers if answer is not None and answer.prompt is not None), None)
        if prompt is not None:
            prompts.append((plain, prompt))
    shown = 0
    for plain, prompt in prompts:
        size = _size(prompt)
        if size > room:
            continue
        room -= size
        plain["prompt"] = prompt
        shown += 1
    if len(samples) < len(found):
        notes.append(f"{table.title}: {len(samples):,} of {counted(len(found), 'sample')} are in this page.")
    if shown < len(prompts):
        notes.append(f"{table.title}: {shown:,} of {counted(len(prompts), 'prompt')} are in this page.")
    task = {
        "name": table.title,
        "methods": [row_name(row, table.rows) for row in table.rows],
        "lengths": [*table.lengths],
        "metrics": [*_metrics(table, tasks, samples)],
        "total": len(found),
        "samples": samples,
    }
    return task, notes


def _stored(table: TaskTable, collection: Collection) -> tuple[dict[tuple[int, int], list[Sample | None]], list[str]]:
    """The stored samples by index and length, one for each method; and what can't be read."""
    found: dict[tuple[int, int], list[Sample | None]] = {}
    notes: list[str] = []
    for method, row in enumerate(table.rows):
        for length, record in row.cells.items():
            try:
                samples = collection.samples(record.cell) or ()
            except LongEvalError as error:
                notes.append(f"{row.label} at {format_length(length)} is left out: {error.problem}. {error.remedy}")
                continue
            for sample in samples:
                found.setdefault((sample.index, length), [None] * len(table.rows))[method] = sample
    return found, notes


def _sample(index: int, length: int, one: Sample, answers: list[Sample | None]) -> dict[str, Any]:
    """A sample at one length, without its prompt. `one`: any of the answers."""
    return {
        "index": index,
        "length": length,
        "target": one.target,
        "tokens": one.tokens,
        "cut": one.cut_tokens,
        "depth": one.depth,
        "cluster": one.cluster,
        "answers": [
            None if answer is None else {"output": answer.output, "scores": answer.scores, "finish": answer.finish}
            for answer in answers
        ],
    }


def _metrics(table: TaskTable, tasks: TaskSet, samples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The metrics that single samples have, the task's main one first."""
    scores: dict[str, list[float]] = {table.metric: []}
    for answer in (answer for sample in samples for answer in sample["answers"] if answer is not None):
        for name, score in answer["scores"].items():
            scores.setdefault(name, []).append(score)
    records = [record for one in (table, *tasks.further) if one.task == table.task for record in one.records]
    better = {record.metric: higher_is_better(record) for record in records}
    for name, found in scores.items():
        if found:
            yield {"name": name, "lower": better.get(name) is False, "binary": set(found) <= {0.0, 1.0}}


def _size(plain: Any) -> int:
    """Bytes of a value as JSON."""
    return len(json.dumps(plain, ensure_ascii=False).encode())
