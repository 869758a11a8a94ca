"""The work of downstream tasks: a cell's samples are answered, and the answers become records.

Averages of groups follow from the records of their members.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from longeval.backends.base import GenerateRequest, capabilities
from longeval.metrics import Value, derived
from longeval.run.cell import Cell
from longeval.run.cost import memory_bytes, precision, seconds
from longeval.run.examples import Found, InputPart, ShownInput, ShownInputs, shortened
from longeval.run.examples import stored as stored_of
from longeval.run.host import Host, by_engine
from longeval.run.overview import CellList, Overview, count, format_gib
from longeval.run.reuse import computed_with
from longeval.run.study import Outcome, Plan, SkippedWork, Work
from longeval.stats.scores import score
from longeval.store.folder import Store
from longeval.store.plan import PlannedRequest
from longeval.store.records import Record, Status, provenance
from longeval.store.samples import SAMPLES, Sample
from longeval.studies.tasks.answers import Answers, TaskLM, answer, metric_name
from longeval.studies.tasks.cells import GroupCell, TaskCell, TaskJob
from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.prompts.requests import Place, PreparedSample, as_text
from longeval.studies.tasks.request import TasksRequest
from longeval.values import format_duration, format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskWork:
    """One cell: the samples of a task under one method."""

    job: TaskJob
    cell: TaskCell

    @property
    def cells(self) -> tuple[TaskCell, ...]:
        """See `Work`."""
        return (self.cell,)

    def parts(self, cell: Cell) -> list[str]:
        """See `InParts`."""
        return [sample.prompt_digest for sample in self.job.prepared.samples]

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`."""
        done = host.reused[self.cell.id].sources if self.cell.id in host.reused else {}
        return [cost for place, cost in enumerate(self.job.costs) if place not in done]

    def without(self, ids: Container[str]) -> TaskWork | None:
        """See `Work`."""
        return None if self.cell.id in ids else self

    def smaller(self) -> None:
        """See `Work`: there is only one cell."""

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        return f"out of memory in a window of {self.cell.length} tokens: {reason}"

    def memory(self, host: Host) -> int | None:
        """See `Work`."""
        if not capabilities(self.cell.backend).estimates:
            return None
        longest = self.job.prepared.longest_reach()
        return memory_bytes(self.job.model, self.job.size, longest, cached=longest)

    def run(self, host: Host) -> Iterator[Outcome]:
        """Answers the samples and makes the cell's records."""
        cell, job, backend, lm = self.cell, self.job, None, None
        reused = host.reused.get(cell.id)
        if reused is not None and not reused.under(cell.setup.table(cell.length).digest(cell.length)):
            reused = None
        known: dict[int, Sample] = {} if reused is None else reused.load(host.store)
        if len(known) < len(job.prepared.samples):
            backend = host.backend(job.model)
            backend.reset_peak_memory()
            # An engine that starts with the table has the time it takes for itself.
            if cell.setup.static:
                backend.serve(cell.setup.table(cell.length), cell.length)
            lm = TaskLM(
                backend,
                tokenizer=job.model.tokenizer,
                length=job.length,
                table=cell.setup.table,
                static=cell.setup.static,
            )
        what = f"{cell.pe.canonical} {job.title} at {format_length(cell.length)} · {job.model.name}"
        if backend is not None:
            host.progress.stage(what, len(job.prepared.samples) - len(known), "sample")
        started = time.perf_counter()

        def on_sample(place: int) -> None:
            sample = job.prepared.samples[place]
            host.progress.advance(sample.tokens, job.costs[place], f"sample {sample.index}")

        answers = answer(job.task, job.prepared, lm, on_sample, known=known)
        elapsed_s, digest = time.perf_counter() - started, None
        if backend is not None:
            backend.serve(cell.setup.table(cell.length), cell.length)
            digest = backend.rope_digest(cell.length)
        how = computed_with(backend, reused, rope_digest=digest, elapsed_s=elapsed_s)
        yield Outcome(records=tuple(_records(cell, job, answers, how)), found=_kept(job, answers.samples))


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPlan(Plan):
    """A plan of downstream tasks."""

    jobs: tuple[TaskJob, ...]
    groups: tuple[GroupCell, ...]

    def planned(self) -> PlannedRequest:
        """The cells as the run folder keeps them, averages last."""
        asked = Plan.planned(self)
        return dataclasses.replace(asked, cells=(*asked.cells, *(cell.planned() for cell in self.groups)))

    def derived(self, records: Mapping[str, Sequence[Record]], store: Store) -> Iterator[Outcome]:
        """Averages of groups."""
        for cell in self.groups:
            yield Outcome(records=(group_record(cell, records),))

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """See `Plan`."""
        own = {name: [job for job in self.jobs if job.model.name == name] for name in self.request.model}
        return Overview(
            columns=("task", "length", "methods", "samples", "cut", "skipped", "longest prompt", "stored"),
            words=frozenset({"task", "methods"}),
            sections=tuple(
                CellList(title=name, rows=tuple(_row(job, host, stored) for job in own[name])) for name in own
            ),
            costs=tuple(_cost(self.request, own[name], left, host) for name in own),
        )

    def examples(self, number: int, store: Store) -> Iterator[ShownInputs]:
        """See `Plan`: the first samples of each model, task and length."""
        for job in self.jobs:
            yield _examples(job, number, store)

    def stored_notes(self, store: Store, stored: Container[str]) -> list[str]:
        """See `Plan`: prompts that were asked for and can't be added."""
        if not self.request.keep_text:
            return []
        ids = [cell.id for job in self.jobs if job.prepared.samples for cell in job.cells if cell.id in stored]
        without = [one for one in ids if any(sample.prompt is None for sample in store.samples(one) or ())]
        if not without:
            return []
        cells = f"{len(without)} of {count(len(ids), 'stored cell')}"
        return [f"--keep-text: {cells} were computed without it and stay as they are; --fresh computes them again"]


def _kept(job: TaskJob, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Samples as they are stored: with their prompts where that was asked for."""
    if not job.request.keep_text:
        return tuple(samples)
    prompts = {one.index: as_text(one.requests, job.model.tokenizer) for one in job.prepared.samples}
    return tuple(dataclasses.replace(sample, prompt=prompts[sample.index]) for sample in samples)


def _examples(job: TaskJob, number: int, store: Store) -> ShownInputs:
    """The first samples of a task at one length, with each method's answers as far as they are stored."""
    samples = job.prepared.samples
    found = [stored_of(cell, store, SAMPLES) for cell in job.cells]
    return ShownInputs(
        title=(
            f"{job.title} at {format_length(job.length)} · {job.model.name}: "
            f"{min(number, len(samples))} of {count(len(samples), 'sample')}"
        ),
        tokenizer=job.model.tokenizer,
        examples=tuple(_example(sample, found) for sample in samples[:number]),
    )


def _example(sample: PreparedSample, found: Sequence[Found[tuple[Sample, ...]]]) -> ShownInput:
    """One sample: what the model is given, what would be right, and what each method answered."""

    def told(answered: Sequence[Sample]) -> str:
        return _told(next(one for one in answered if one.index == sample.index))

    cut = f", its document shorter by {count(sample.cut_tokens, 'token')}" if sample.truncated else ""
    return ShownInput(
        title=f"sample {sample.index}{cut}",
        parts=tuple(_parts(sample)),
        answers=(("expected", shortened(sample.target)), *((one.method, one.tell(told)) for one in found)),
    )


def _parts(sample: PreparedSample) -> Iterator[InputPart]:
    """What the model is given: a prompt, or contexts and what is scored after each."""
    numbers = {place: number for number, places in enumerate(sample.places, start=1) for place in places}
    for index, request in enumerate(sample.requests):
        if isinstance(request, GenerateRequest):
            yield InputPart(name="prompt", tokens_T=request.prompt_T)
            continue
        yield InputPart(name="context", tokens_T=request.context_T)
        for place, tokens_T in enumerate(request.continuations):
            name = f"choice {numbers[Place(index, place)]}" if len(sample.instances) > 1 else "scored"
            yield InputPart(name=name, tokens_T=tokens_T)


def _told(sample: Sample) -> str:
    """An answer with its scores: the text and what ended it, or the log-likelihoods of the choices."""
    scores = "".join(f", {name} {value:g}" for name, value in sample.scores.items())
    if isinstance(sample.output, str):
        ended = f" (ended by {sample.finish})" if sample.finish else ""
        return f"{shortened(sample.output)}{ended}{scores}"
    values = ["−∞" if value is None else f"{value:.4f}" for value, *_ in sample.output]
    return f"log-likelihood {', '.join(values)}{scores}"


def task_plan(
    request: TasksRequest, jobs: Sequence[TaskJob], groups: Sequence[GroupCell], notes: Sequence[str]
) -> TaskPlan:
    """Lays out a request's jobs: cells as they were asked for, a work for each, those without samples last."""
    cells = [cell for job in jobs for cell in job.cells]
    tasks = list(dict.fromkeys(cell.task for cell in cells))

    def place(cell: TaskCell) -> tuple[int, int, int, int]:
        model, method = request.model.index(cell.model), request.pe.index(cell.pe.canonical)
        return model, tasks.index(cell.task), method, cell.length

    in_order = sorted(cells, key=place)
    work = [TaskWork(job=job, cell=cell) for job in jobs if job.prepared.samples for cell in job.cells]
    if capabilities(request.backend).one_table:
        work = by_engine(work, lambda one: (one.job.model, one.cell.setup.table(one.cell.length)))
    skipped = [SkippedWork(cells=job.cells, reason=_why_skipped(job)) for job in jobs if not job.prepared.samples]
    return TaskPlan(
        request=request,
        cells=tuple(in_order),
        work=(*work, *skipped),
        notes=tuple(dict.fromkeys(notes)),
        jobs=tuple(jobs),
        groups=tuple(groups),
    )


def _why_skipped(job: TaskJob) -> str:
    """Why a task has nothing to ask."""
    if job.skipped == 1:
        return "its one sample is longer than the window and was left out"
    return f"none of its {job.skipped} samples could be asked: longer than the window, and left out"


def _row(job: TaskJob, host: Host, stored: Container[str]) -> tuple[str, ...]:
    """One task at one length."""
    samples = job.prepared.samples
    taken = sum(len(host.reused[cell.id].sources) for cell in job.cells if cell.id in host.reused)
    return (
        job.title,
        format_length(job.length),
        ", ".join(cell.pe.canonical for cell in job.cells),
        str(len(samples)),
        str(job.prepared.num_truncated),
        str(job.skipped),
        f"{max((sample.tokens for sample in samples), default=0):,}",
        f"{sum(cell.id in stored for cell in job.cells)} of {len(job.cells)}"
        + (f", {count(taken, 'sample')}" if taken else ""),
    )


def _cost(request: TasksRequest, jobs: Sequence[TaskJob], left: Sequence[Work], host: Host) -> str:
    """What is left to do with one model."""
    size, model = jobs[0].size, jobs[0].model
    own = [work for work in left if isinstance(work, TaskWork) and work.job.model is model]
    said = (
        f"{model.name} ({precision(request, model)}): {count(len(own), 'cell')} to compute, "
        f"{sum(len(work.costs(host)) for work in own):,} samples"
    )
    if not capabilities(request.backend).estimates:  # what an engine or a server takes, only it knows
        return said
    took = seconds(model, size, sum(sum(work.costs(host)) for work in own))
    longest = max(job.prepared.longest_reach() for job in jobs)
    memory = format_gib(memory_bytes(model, size, longest, cached=longest))
    return (
        f"{said}; estimated {format_duration(took)} for reading the prompts (answers that are generated come on top) "
        f"and {memory}"
    )


def _records(cell: TaskCell, job: TaskJob, answers: Answers, how: Mapping[str, Any]) -> list[Record]:
    """One record per metric, the task's main one first: the one that its file names, else the first.

    `how` says what computed them (`computed_with`).
    """
    samples = answers.samples
    clusters = {sample.cluster for sample in samples}
    common = cell.fields() | {
        "n": len(samples),
        "documents": None if None in clusters else len(clusters),
        "truncated": sum(sample.truncated for sample in samples),
        "status": "ok",
        **how,
    }
    records: list[Record] = []
    for metric in sorted(answers.metrics, key=lambda metric: metric.name != job.metadata.primary):
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


def group_record(cell: GroupCell, records: Mapping[str, Sequence[Record]]) -> Record:
    """The average of a group from its members' records (by cell id); null where a member is missing or failed."""
    members = {task: records.get(cell_id or "", ()) for task, cell_id in cell.members.items()}
    found = {task: _record_of(cell.average, own) for task, own in members.items()}
    kept = {task: record for task, record in found.items() if record is not None}
    averaged = average(
        cell.average,
        {task: record.value for task, record in kept.items()},
        sizes={task: record.n or 0 for task, record in kept.items()},
        stderrs={task: record.params.get("stderr") for task, record in kept.items()},
    )
    reasons = [f"{task} {_why_absent(members[task])}" for task in averaged.missing]
    failed = any(record.status == "failed" for own in members.values() for record in own)
    metrics = {record.metric for record in kept.values()}
    status: Status = "ok" if not reasons else "failed" if failed else "skipped"
    averaged_fields = {
        "metric": metrics.pop() if len(metrics) == 1 else "average",
        "value": averaged.value,
        "status": status,
        "error": f"no average: {'; '.join(reasons)}" if reasons else None,
        "provenance": provenance(next((record.provenance.device for record in kept.values()), "")),
        "params": cell.params | {"primary": True, "stderr": averaged.stderr},
    }
    return Record(**cell.fields() | averaged_fields)


def _record_of(average: GroupAverage, records: Sequence[Record]) -> Record | None:
    """Which of a member's records is averaged: that of the group's metric, or the main one where it names none."""
    if average.metric is None:
        return records[0] if records else None
    names = {metric_name(average.metric, name, only_filter=False) for name in (*(average.filters or ()), "none")}
    return next((record for record in records if record.metric in names), None)


def _why_absent(records: Sequence[Record]) -> str:
    """Why a member of a group has nothing to average."""
    if not records:
        return "is missing (no data)"
    return {"failed": "failed", "skipped": "has no sample that fits", "ok": "lacks the metric"}[records[0].status]


class Averaged(NamedTuple):
    """The outcome of an average."""

    value: float | None
    """None if a member is missing."""
    stderr: float | None
    """None if a member has none."""
    missing: tuple[str, ...]
    """Members without a value."""


def average(
    spec: GroupAverage,
    values: Mapping[str, float | None],
    *,
    sizes: Mapping[str, int] | None = None,
    stderrs: Mapping[str, float | None] | None = None,
) -> Averaged:
    """Averages the members' values of one metric and one filter.

    The mean over all members, plain or weighted by the number of samples, as lm-eval has it (0.4.13, api/group.py,
    api/metrics.py), but for two points. lm-eval leaves out members without a value; here the average is then no number.
    The standard error is that of a weighted sum of independent means, sqrt(Σ w²·se²), for both kinds of weights;
    lm-eval pools the variances for weighted means, which is the same only if the members' means are equal.

    Args:
        spec: What is averaged.
        values: Value by member; left out or None: missing.
        sizes: Number of samples by member; needed where `spec.weight_by_size`.
        stderrs: Standard error by member, where there is one.
    """
    members = spec.members
    missing = tuple(name for name in members if values.get(name) is None)
    if missing or not members:
        return Averaged(value=None, stderr=None, missing=missing)
    if spec.weight_by_size:
        assert sizes is not None, "a weighted average needs sizes"
        total = sum(sizes[name] for name in members)
        weights = {name: sizes[name] / total for name in members}
    else:
        weights = dict.fromkeys(members, 1 / len(members))
    value = math.fsum(weights[name] * float(values[name] or 0.0) for name in members)
    found = {name: (stderrs or {}).get(name) for name in members}
    if any(stderr is None for stderr in found.values()):
        return Averaged(value=value, stderr=None, missing=())
    variance = math.fsum((weights[name] * float(stderr or 0.0)) ** 2 for name, stderr in found.items())
    return Averaged(value=value, stderr=math.sqrt(variance), missing=())
