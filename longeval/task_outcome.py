"""What a task's answers gave, as records: scores with standard errors and intervals, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longeval.backends.base import Backend
from longeval.evals.downstream import Answers
from longeval.provenance import provenance
from longeval.records import Record, Status
from longeval.report.scores import score
from longeval.task_cells import GroupCell, TaskCell, TaskJob


def task_records(
    cell: TaskCell, job: TaskJob, answers: Answers, backend: Backend, *, elapsed_s: float, rope_digest: str
) -> list[Record]:
    """One record per metric, the task's main one first."""
    samples = answers.samples
    clusters = {sample.cluster for sample in samples}
    common = _common(cell) | {
        "n": len(samples),
        "documents": None if None in clusters else len(clusters),
        "truncated": sum(sample.truncated for sample in samples),
        "skipped": len(job.prepared.skipped),
        "status": "ok",
        "elapsed_s": round(elapsed_s, 3),
        "peak_memory_bytes": backend.peak_memory_bytes(),
        "rope_digest": rope_digest,
        "backend": backend.name,
        "dtype": backend.dtype,
        "provenance": provenance(backend.device),
    }
    records = []
    for metric in metric_order(answers, job.metadata.primary):
        params = cell.params | {
            "primary": not records,
            "higher_is_better": answers.higher_is_better.get(metric),
            "filter": answers.filters.get(metric),
        }
        if metric in answers.aggregates:
            value = answers.aggregates[metric].value
            found: dict[str, Any] = {"value": value}
            params |= {"stderr": answers.aggregates[metric].stderr, "ci": None}
        else:
            got = score(samples, metric, seed=cell.params["seed"])
            found = {"value": got.value, "ci_low": got.ci_low, "ci_high": got.ci_high, "n": got.n}
            params |= {"stderr": got.stderr, "ci": got.how}
        records.append(Record(**common | found | {"metric": metric, "params": params}))
    return records


def metric_order(answers: Answers, primary: str | None) -> list[str]:
    """All metrics of a task, the main one first."""
    names = list(dict.fromkeys([*(name for sample in answers.samples for name in sample.scores), *answers.aggregates]))
    return names if primary not in names else [primary, *(name for name in names if name != primary)]


def without_score(cell: TaskCell, job: TaskJob, status: Status, reason: str, device: str) -> Record:
    """The record of a cell that failed or was skipped."""
    return Record(
        metric=job.metadata.primary or "accuracy",
        value=None,
        status=status,
        error=reason,
        skipped=len(job.prepared.skipped),
        provenance=provenance(device),
        **_common(cell),
    )


def group_record(cell: GroupCell, records: Mapping[str, Sequence[Record]]) -> Record:
    """The average of a group from its members' records (by cell id); null where a member is missing or failed.

    Weighted by size, a member counts with its number of samples, else once.
    """
    values, sizes, lacking, failed = [], [], [], []
    for task, cell_id in cell.members.items():
        found = [record for record in records.get(cell_id or "", ()) if record.metric == cell.metric]
        if cell_id is None:
            lacking.append(f"{task} is missing (no data)")
        elif not found or found[0].value is None:
            failed.append(f"{task} has no {cell.metric}")
        else:
            values.append(found[0].value)
            sizes.append(found[0].n or 0)
    reasons = [*lacking, *failed]
    value = None
    if not reasons and cell.by_size:
        value = sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
    elif not reasons:
        value = sum(values) / len(values)
    first = next((found[0] for cell_id in cell.members.values() if (found := records.get(cell_id or ""))), None)
    status: Status = "ok" if not reasons else "failed" if failed else "skipped"
    return Record(
        metric=cell.metric,
        value=value,
        status=status,
        error=f"no average: {'; '.join(reasons)}" if reasons else None,
        provenance=provenance("" if first is None else first.provenance.device),
        **_common(cell),
    )


def _common(cell: TaskCell | GroupCell) -> dict[str, Any]:
    """The fields that a plan knows of a cell's record."""
    return {
        "cell": cell.id,
        "model": cell.model,
        "pe": cell.pe.canonical,
        "factor": cell.setup.factor,
        "length": cell.length,
        "data": None,
        "task": cell.task if isinstance(cell, TaskCell) else cell.group,
        "protocol": None,
        "params": cell.params,
        "backend": cell.backend,
        "dtype": cell.dtype,
    }
