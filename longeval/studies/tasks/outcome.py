"""What a task's answers gave, as records: scores with standard errors and intervals, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longeval.backends.base import Backend
from longeval.metrics import Value, derived
from longeval.stats.scores import score
from longeval.store.provenance import provenance
from longeval.store.records import Record, Status
from longeval.store.samples import SAMPLES
from longeval.studies.tasks.answers import Answers
from longeval.studies.tasks.cells import GroupCell, TaskCell, TaskJob
from longeval.studies.tasks.definitions.averages import average
from longeval.studies.tasks.metrics import TaskMetric, metric_name


def task_records(
    cell: TaskCell, job: TaskJob, answers: Answers, backend: Backend, *, elapsed_s: float, rope_digest: str | None
) -> list[Record]:
    """One record per metric, the task's main one first."""
    samples = answers.samples
    clusters = {sample.cluster for sample in samples}
    common = _common(cell) | {
        "n": len(samples),
        "documents": None if None in clusters else len(clusters),
        "truncated": sum(sample.truncated for sample in samples),
        "skipped": job.skipped,
        "status": "ok",
        "elapsed_s": round(elapsed_s, 3),
        "peak_memory_bytes": backend.peak_memory_bytes(),
        "rope_digest": rope_digest,
        "backend": backend.name,
        "dtype": backend.dtype,
        "provenance": provenance(backend.device),
    }
    records: list[Record] = []
    for metric in metric_order(answers.metrics, job.metadata.primary):
        params = cell.params | {
            "primary": not records,
            "higher_is_better": metric.higher_is_better,
            "filter": metric.filter,
        }
        value = _value(answers, metric.name, cell.params["seed"])
        records.append(value.record(metric.name, common | {"params": params}))
    for further, value in derived(SAMPLES, samples, None, cell.params):
        params = cell.params | {"primary": False, "higher_is_better": further.higher_is_better, "filter": None}
        records.append(value.record(further.name, common | {"params": params}))
    return records


def _value(answers: Answers, metric: str, seed: int) -> Value:
    """One of the task's own metrics: the mean over samples, or the task's value for all samples together."""
    whole = answers.aggregates.get(metric)
    if whole is not None:
        return Value(value=whole.value, fields={"n": whole.n}, params={"stderr": whole.stderr, "ci": None})
    found = score(answers.samples, metric, seed=seed)
    params = {"stderr": found.stderr, "ci": found.how}
    return Value(value=found.value, low=found.ci_low, high=found.ci_high, fields={"n": found.n}, params=params)


def metric_order(metrics: Sequence[TaskMetric], primary: str | None) -> list[TaskMetric]:
    """A task's metrics, the main one first; without a main one, in the task's own order."""
    return sorted(metrics, key=lambda metric: metric.name != primary)


def without_score(cell: TaskCell, job: TaskJob, status: Status, reason: str, device: str) -> Record:
    """The record of a cell that failed or was skipped."""
    return Record(
        metric=job.metadata.primary or "accuracy",
        value=None,
        status=status,
        error=reason,
        skipped=job.skipped,
        provenance=provenance(device),
        **_common(cell),
    )


def group_record(cell: GroupCell, records: Mapping[str, Sequence[Record]]) -> Record:
    """The average of a group from its members' records (by cell id); null where a member is missing or failed."""
    found = {task: _member_record(cell, records.get(cell_id or "", ())) for task, cell_id in cell.members.items()}
    kept = {task: record for task, record in found.items() if record is not None}
    averaged = average(
        cell.average,
        {task: record.value for task, record in kept.items()},
        sizes={task: record.n or 0 for task, record in kept.items()},
        stderrs={task: record.params.get("stderr") for task, record in kept.items()},
    )
    reasons = [f"{task} {_why_absent(records.get(cell.members[task] or ''))}" for task in averaged.missing]
    failed = any(
        record.status == "failed" for cell_id in cell.members.values() for record in records.get(cell_id or "", ())
    )
    metrics = {record.metric for record in kept.values()}
    status: Status = "ok" if not reasons else "failed" if failed else "skipped"
    return Record(
        metric=metrics.pop() if len(metrics) == 1 else "average",
        value=averaged.value,
        status=status,
        error=f"no average: {'; '.join(reasons)}" if reasons else None,
        provenance=provenance(next((record.provenance.device for record in kept.values()), "")),
        **_common(cell) | {"params": cell.params | {"primary": True, "stderr": averaged.stderr}},
    )


def _why_absent(records: Sequence[Record] | None) -> str:
    """Why a member of a group has nothing to average."""
    if records is None:
        return "is missing (no data)"
    return {"failed": "failed", "skipped": "has no sample that fits", "ok": "lacks the metric"}[records[0].status]


def _member_record(cell: GroupCell, records: Sequence[Record]) -> Record | None:
    """The record of a member that is averaged: of the group's metric, else of the member's main one."""
    if cell.average.metric is None:
        return records[0] if records else None
    names = {
        metric_name(cell.average.metric, name, only_filter=name == "none")
        for name in (cell.average.filters or ("none",))
    } | {metric_name(cell.average.metric, "none", only_filter=True)}
    return next((record for record in records if record.metric in names), None)


def _common(cell: TaskCell | GroupCell) -> dict[str, Any]:
    """The fields that a plan knows of a cell's record."""
    return {
        "cell": cell.id,
        "model": cell.model,
        "pe": cell.pe.canonical,
        "factor": cell.setup.factor,
        "length": cell.length,
        "data": None,
        "task": cell.task if isinstance(cell, TaskCell) else cell.average.group,
        "protocol": None,
        "params": cell.params,
        "backend": cell.backend,
        "dtype": cell.dtype,
    }
