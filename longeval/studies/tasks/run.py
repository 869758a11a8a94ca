"""Cells of downstream tasks become records: answers what is not stored yet, and stores each cell once it is whole.

Averages of groups come last, from the records of their members.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from longeval.backends.base import Backend, BackendError, OutOfMemoryError
from longeval.errors import LongEvalError
from longeval.models.prepare import PreparedModel
from longeval.run.cost import sample_costs
from longeval.run.session import Progress, RunResult, Session, backend_of, by_engine
from longeval.store.folder import Store
from longeval.store.provenance import running_commit
from longeval.store.records import Record
from longeval.store.samples import Sample
from longeval.studies.tasks.answers import answer
from longeval.studies.tasks.cells import TaskCell, TaskJob
from longeval.studies.tasks.lm import TaskLM
from longeval.studies.tasks.outcome import group_record, task_records, without_score
from longeval.studies.tasks.plan import TaskPlan
from longeval.values import format_length

logger = logging.getLogger(__name__)


def run_tasks(
    plan: TaskPlan,
    store: Store,
    progress: Progress,
    *,
    fresh: bool = False,
    under_way: bool = False,
    load: Callable[[PreparedModel], Backend] | None = None,
) -> RunResult:
    """Runs what is missing and returns all records of the plan; the arguments are those of `run.run`.

    Raises:
        LongEvalError: A model can't be loaded or used, and nothing has been computed or found yet; later, that model's
            cells fail.
    """
    running_commit()  # now, not at the first record: the code that runs is the code of this moment
    stored = {} if fresh else stored_cells(plan, store)
    todo = [job for job in (_missing(job, stored) for job in plan.jobs) if job.cells]
    if any(job.prepared.samples for job in todo):
        store.check_writable()
    costs = {id(job): sample_costs(plan.sizes[job.model.name], job.inputs()) for job in todo}
    progress.begin([cost for job in todo for _ in job.cells for cost in costs[id(job)]])
    session = Session(
        store=store,
        progress=progress,
        spec=plan.spec,
        planned=plan.planned(),
        load=load or backend_of(plan.spec),
        under_way=under_way or bool(stored),
    )
    runner = _Runner(session=session)
    turns = [(job, cell) for job in todo if job.prepared.samples for cell in job.cells]
    if plan.spec.backend == "vllm":
        turns = by_engine(turns, lambda job, cell: (job.model, cell.setup.table(cell.length)))
    try:
        for job, cell in turns:
            runner.turn(job, cell, costs[id(job)])
    finally:
        session.close()
    for job in todo:
        runner.skip(job)
    session.remember()
    records = [record for cell in plan.cells for record in stored.get(cell.id) or session.records[cell.id]]
    return RunResult(
        records=(*records, *_averages(plan, store, {**stored, **session.records})),
        computed=len(session.records),
        reused=len(stored),
    )


def stored_cells(plan: TaskPlan, store: Store) -> dict[str, tuple[Record, ...]]:
    """Records of the plan's cells that are done, by cell id."""
    return {cell.id: found for cell in plan.cells if (found := store.finished(cell.id)) is not None}


def _missing(job: TaskJob, stored: dict[str, tuple[Record, ...]]) -> TaskJob:
    """The job without the cells that are stored."""
    return dataclasses.replace(job, cells=tuple(cell for cell in job.cells if cell.id not in stored))


def _averages(plan: TaskPlan, store: Store, records: dict[str, tuple[Record, ...]]) -> list[Record]:
    """Records of the groups' averages, stored where they are new."""
    averages = []
    for cell in plan.groups:
        record, kept = group_record(cell, records), store.load(cell.id)
        if kept is not None and _says_the_same(kept.records[0], record):
            record = kept.records[0]
        else:
            store.save([record])
        averages.append(record)
    return averages


def _says_the_same(one: Record, other: Record) -> bool:
    """Whether two records differ in nothing but where and when they were made."""
    return dataclasses.replace(one, provenance=other.provenance) == other


@dataclass(frozen=True, kw_only=True, slots=True)
class _Runner:
    """Runs the missing cells of a plan."""

    session: Session

    def turn(self, job: TaskJob, cell: TaskCell, costs: list[float]) -> None:
        """One missing cell."""
        try:
            backend = self.session.backend(job.model)
        except LongEvalError as error:
            if not self.session.under_way:
                raise
            self.fail(cell, job, str(error), "")
            return
        self.cell(cell, job, backend, costs)

    def cell(self, cell: TaskCell, job: TaskJob, backend: Backend, costs: list[float]) -> None:
        """One cell, or the reason why it failed."""
        backend.reset_peak_memory()
        try:
            records, samples = self.answered(cell, job, backend, costs)
        except (OutOfMemoryError, MemoryError) as error:
            self.fail(cell, job, f"out of memory in a window of {cell.length} tokens: {error}", backend.device)
        except BackendError as error:
            if not self.session.under_way:
                raise
            self.fail(cell, job, str(error), backend.device)
        except Exception as error:
            # Data that went away, a model that breaks at this length, a bug: its reason is kept, the others go on.
            logger.debug("%s", error, exc_info=True)
            self.fail(cell, job, f"{type(error).__name__}: {error}", backend.device)
        else:
            self.session.keep(records, samples=samples)

    def answered(
        self, cell: TaskCell, job: TaskJob, backend: Backend, costs: list[float]
    ) -> tuple[list[Record], tuple[Sample, ...]]:
        """A cell's samples and what they amount to."""
        if cell.setup.static:  # an engine that starts with the table has the time it takes for itself
            backend.serve(cell.setup.table(cell.length), cell.length)
        what = f"{cell.pe.canonical} {job.title} at {format_length(cell.length)} · {job.model.name}"
        self.session.progress.stage(what, len(job.prepared.samples), "sample")
        started = time.perf_counter()
        lm = TaskLM(
            backend,
            tokenizer=job.model.tokenizer,
            length=job.length,
            table=cell.setup.table,
            static=cell.setup.static,
        )

        def on_sample(place: int) -> None:
            sample = job.prepared.samples[place]
            self.session.progress.advance(sample.tokens, costs[place], f"sample {sample.index}")

        answers = answer(job.task, job.prepared, lm, on_sample)
        elapsed_s = time.perf_counter() - started
        backend.serve(cell.setup.table(cell.length), cell.length)
        digest = backend.rope_digest(cell.length)
        return task_records(cell, job, answers, backend, elapsed_s=elapsed_s, rope_digest=digest), answers.samples

    def fail(self, cell: TaskCell, job: TaskJob, reason: str, device: str) -> None:
        """A failed record for a cell."""
        self.session.keep([without_score(cell, job, "failed", reason, device)])

    def skip(self, job: TaskJob) -> None:
        """Records of the cells without samples; last, so that a model that can't be loaded leaves nothing."""
        if job.prepared.samples:
            return
        reason = "its one sample is longer than the window and was left out"
        if job.skipped != 1:
            reason = f"none of its {job.skipped} samples could be asked: longer than the window, and left out"
        for cell in job.cells:
            self.session.keep([without_score(cell, job, "skipped", reason, "")])
