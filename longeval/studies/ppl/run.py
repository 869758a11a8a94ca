"""Cells become records: runs what is not stored yet, group by group, and stores each cell as soon as it is whole.

A cell that fails (out of memory, a NaN, a document that went away) becomes a failed record with its reason, and the
others go on.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longeval.backends.base import Backend, BackendError, OutOfMemoryError
from longeval.errors import LongEvalError
from longeval.models.prepare import PreparedModel
from longeval.run.cost import ModelSize, model_size
from longeval.run.session import Progress, RunResult, Session, backend_of, by_engine
from longeval.run.window import Window
from longeval.store.folder import Store
from longeval.store.provenance import running_commit
from longeval.store.records import Record
from longeval.studies.ppl.cells import Cell, Group
from longeval.studies.ppl.outcome import Measured, Outcome, outcome, why_skipped, without_value
from longeval.studies.ppl.plan import Job, Plan
from longeval.studies.ppl.texts import Texts
from longeval.values import format_length

logger = logging.getLogger(__name__)


def run(
    plan: Plan,
    store: Store,
    progress: Progress,
    *,
    fresh: bool = False,
    under_way: bool = False,
    load: Callable[[PreparedModel], Backend] | None = None,
) -> RunResult:
    """Runs what is missing and returns all records of the plan.

    Args:
        plan: What to compute.
        store: Where records are and go; the request is written beside them before the first.
        progress: Told about every pass and cell.
        fresh: Compute stored cells again.
        under_way: Whether results of the same invocation exist already, so that nothing may end it any more.
        load: Brings a model's weights, called only if one of its cells is missing; None: into the request's backend.

    Raises:
        LongEvalError: A model can't be loaded or used, and nothing has been computed or found yet; later, that model's
            cells fail.
    """
    running_commit()  # now, not at the first record: the code that runs is the code of this moment
    stored, todo = pending(plan, store, fresh=fresh)
    if any(cell.windows for job in todo for cell in job.cells):
        store.check_writable()
    sizes = {job.model.name: model_size(job.model) for job in todo if job.groups}
    progress.begin([sizes[job.model.name].window_flops(window) for job in todo for window in job.passes()])
    session = Session(
        store=store,
        progress=progress,
        spec=plan.spec,
        planned=plan.planned(),
        load=load or backend_of(plan.spec),
        under_way=under_way or bool(stored),
    )
    runner = _Runner(session=session, sizes=sizes)
    turns = [(job, group) for job in todo for group in job.groups]
    if plan.spec.backend == "vllm":
        turns = by_engine(turns, lambda job, group: (job.model, group.table(group.cells[-1].length)))
    try:
        for job, group in turns:
            runner.turn(job, group)
    finally:
        session.close()
    for job in todo:
        runner.skip(job)
    session.remember()
    records = [record for cell in plan.cells for record in stored.get(cell.id) or session.records[cell.id]]
    return RunResult(records=tuple(records), computed=len(session.records), reused=len(stored))


class Pending(NamedTuple):
    """A plan held against a store."""

    stored: dict[str, tuple[Record, ...]]
    """Records of the cells that are done, by cell id."""
    jobs: list[Job]
    """The plan's jobs without those cells."""


def pending(plan: Plan, store: Store, *, fresh: bool = False) -> Pending:
    """What of a plan is stored already, and what is left to do; `fresh`: everything is left."""
    stored = {} if fresh else {cell.id: found for cell in plan.cells if (found := store.finished(cell.id)) is not None}
    return Pending(stored, [_missing(job, set(stored)) for job in plan.jobs])


def _missing(job: Job, stored: set[str]) -> Job:
    """The job without the cells that are stored."""
    groups = []
    for group in job.groups:
        cells = tuple(cell for cell in group.cells if cell.id not in stored)
        if cells:
            groups.append(dataclasses.replace(group, cells=cells))
    return dataclasses.replace(job, groups=tuple(groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Runner:
    """Runs the missing cells of a plan."""

    session: Session
    sizes: dict[str, ModelSize]

    def turn(self, job: Job, group: Group) -> None:
        """All missing cells of one group."""
        runnable = tuple(cell for cell in group.cells if cell.windows)
        if not runnable:
            return
        texts = Texts(job.corpus.selection, joined=job.protocol.joined, prefix=job.model.prefix)
        try:
            backend = self.session.backend(job.model)
        except LongEvalError as error:
            if not self.session.under_way:
                raise
            self.fail(runnable, job, str(error), "")
            return
        self.group(dataclasses.replace(group, cells=runnable), job, backend, texts)

    def skip(self, job: Job) -> None:
        """Records of the cells with nothing to score; last, so that a model that can't be loaded leaves nothing."""
        for cell in job.cells:
            if not cell.windows:
                self.session.keep([without_value(cell, job, "skipped", why_skipped(job, cell), "")])

    def group(self, group: Group, job: Job, backend: Backend, texts: Texts) -> None:
        """Runs a group's passes; where the longest doesn't fit into memory, the shorter cells go on without it."""
        too_large = ""
        backend.reset_peak_memory()
        try:
            wholes = self.outcomes(group, job, backend, texts)
        except (OutOfMemoryError, MemoryError) as error:
            too_large = str(error) or "MemoryError"
        except BackendError as error:
            if not self.session.under_way:
                raise
            self.fail(group.cells, job, str(error), backend.device)
            return
        except Exception as error:
            # A file that went away, a model that breaks at this length, a bug: its reason is kept, the others go on.
            logger.debug("%s", error, exc_info=True)
            self.fail(group.cells, job, f"{type(error).__name__}: {error}", backend.device)
            return
        # Only here, after the except block: the exception holds the failed pass's tensors.
        if too_large:
            longest = group.cells[-1].length
            dropped = tuple(cell for cell in group.cells if cell.length == longest)
            rest = tuple(cell for cell in group.cells if cell.length < longest)
            self.fail(dropped, job, f"out of memory in a window of {longest} tokens: {too_large}", backend.device)
            if rest:
                self.group(dataclasses.replace(group, cells=rest), job, backend, texts)
            return
        for whole in wholes:
            self.session.keep(whole.records, nll=whole.nll)

    def outcomes(self, group: Group, job: Job, backend: Backend, texts: Texts) -> list[Outcome]:
        """A group's passes, and what they mean for each of its cells."""
        if group.static:  # an engine that starts with the table has the time it takes for itself
            longest = group.cells[-1].length
            backend.serve(group.table(longest), longest)
        methods = ",".join(dict.fromkeys(cell.pe.canonical for cell in group.cells))
        lengths = ",".join(dict.fromkeys(format_length(cell.length) for cell in group.cells))
        what = f"{methods} {lengths} · {job.model.name} on {job.corpus.source.name}"
        self.session.progress.stage(what, len(group.passes()), "window")
        started = time.perf_counter()
        measured = self.measure(group, backend, texts)
        elapsed_s = time.perf_counter() - started
        return [
            outcome(
                cell,
                job,
                backend,
                texts,
                measured[cell.id],
                elapsed_s=elapsed_s,
                rope_digest=self.digest(group, cell, backend),
            )
            for cell in group.cells
        ]

    def measure(self, group: Group, backend: Backend, texts: Texts) -> dict[str, Measured]:
        """Runs all passes of a group and hands each cell its part; a static table is served already."""
        measured = {cell.id: Measured() for cell in group.cells}
        wanted: dict[tuple[int, int], list[tuple[Cell, Window]]] = {}
        for cell in group.cells:
            for window in cell.windows:
                wanted.setdefault((window.document, window.start), []).append((cell, window))
        served = 0
        for window in group.passes():
            if not group.static and served != window.length:
                served = window.length
                backend.serve(group.table(served), served)
            nll_S = backend.score(texts.window(window), window.context)
            for cell, own in wanted[window.document, window.start]:
                assert own.context == window.context and own.num_scored <= window.num_scored
                measured[cell.id].nlls.append(nll_S[: own.num_scored])
                measured[cell.id].windows.append(own)
            cost = self.sizes[group.cells[0].model].window_flops(window)
            self.session.progress.advance(window.length, cost, f"{window.num_scored} scored")
        return measured

    def digest(self, group: Group, cell: Cell, backend: Backend) -> str | None:
        """The digest of the table as the model holds it now, at the cell's length."""
        if not group.static:
            backend.serve(group.table(cell.length), cell.length)
        return backend.rope_digest(cell.length)

    def fail(self, cells: Sequence[Cell], job: Job, reason: str, device: str) -> None:
        """Failed records for cells."""
        for cell in cells:
            self.session.keep([without_value(cell, job, "failed", reason, device)])
