"""Cells become records: runs what is not stored yet, group by group, and stores each cell as soon as it is whole.

A cell that fails (out of memory, a NaN, a document that went away) becomes a failed record with its reason, and the
others go on.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from longeval.backends.base import Backend, OutOfMemoryError
from longeval.cells import Cell, Group
from longeval.errors import LongEvalError
from longeval.estimate import ModelSize, model_size
from longeval.evals.perplexity import Window
from longeval.evals.texts import Texts
from longeval.models.prepare import PreparedModel
from longeval.outcome import Measured, Outcome, outcome, why_skipped, without_value
from longeval.plan import Job, Plan
from longeval.provenance import running_commit
from longeval.records import Record, canonical_json
from longeval.spec import PplSpec, requests_from_yaml, requests_to_yaml
from longeval.store import Store

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Told how a run gets on."""

    def begin(self, costs: list[float]) -> None:
        """The operations of each pass that is to be made."""
        ...

    def group(self, group: Group, num_passes: int) -> None:
        """A group starts."""
        ...

    def advance(self, window: Window, cost: float) -> None:
        """A pass is over."""
        ...

    def finished(self, record: Record) -> None:
        """A cell is stored."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run ends with."""

    records: tuple[Record, ...]
    """All records of the plan's cells, in the plan's order, stored before or computed now."""
    computed: int
    """Cells computed now."""
    reused: int
    """Cells that were stored already."""

    @property
    def failed(self) -> int:
        """Cells that failed."""
        return len({record.cell for record in self.records if record.status == "failed"})


def load_backend(model: PreparedModel) -> Backend:
    """Loads a prepared model into the `hf` backend, and makes sure that its frequencies are what its config says."""
    from longeval.backends.hf import HFBackend  # torch and transformers only once there is something to compute

    backend = HFBackend(model.load())
    for length in model.rope.shipped.probes():
        held, planned = backend.shipped.table(length), model.rope.shipped_table(length)
        same = held.inv_freq_F.shape == planned.inv_freq_F.shape and np.allclose(
            held.inv_freq_F, planned.inv_freq_F, rtol=1e-5, atol=0
        )
        if not same or abs(held.attention_factor - planned.attention_factor) > 1e-5:
            raise LongEvalError(
                f"--model {model.name}: its rotary embedding doesn't hold the frequencies that its configuration says",
                "Its RoPE is of a kind that longeval doesn't know; use a model of another family.",
            )
    return backend


def run(
    plan: Plan,
    store: Store,
    progress: Progress,
    *,
    fresh: bool = False,
    under_way: bool = False,
    load: Callable[[PreparedModel], Backend] = load_backend,
) -> RunResult:
    """Runs what is missing and returns all records of the plan.

    Args:
        plan: What to compute.
        store: Where records are and go; the request is written beside them before the first.
        progress: Told about every pass and cell.
        fresh: Compute stored cells again.
        under_way: Whether results of the same invocation exist already, so that nothing may end it any more.
        load: Brings a model's weights; called only if one of its cells is missing.

    Raises:
        LongEvalError: A model can't be loaded or used, and nothing has been computed or found yet; later, that model's
            cells fail.
    """
    running_commit()  # now, not at the first record: the code that runs is the code of this moment
    stored, todo = pending(plan, store, fresh=fresh)
    sizes = {job.model.name: model_size(job.model) for job in todo if job.groups}
    progress.begin([sizes[job.model.name].window_flops(window) for job in todo for window in job.passes()])
    runner = _Runner(
        store=store, progress=progress, spec=plan.spec, load=load, sizes=sizes, under_way=under_way or bool(stored)
    )
    for job in todo:
        runner.job(job)
    for job in todo:
        runner.skip(job)
    if not runner.remembered:
        remember_request(store, plan.spec)
    records = [record for cell in plan.cells for record in stored.get(cell.id) or runner.records[cell.id]]
    return RunResult(records=tuple(records), computed=len(runner.records), reused=len(stored))


class Pending(NamedTuple):
    """A plan held against a store."""

    stored: dict[str, tuple[Record, ...]]
    """Records of the cells that are done, by cell id."""
    jobs: list[Job]
    """The plan's jobs without those cells."""


def pending(plan: Plan, store: Store, *, fresh: bool = False) -> Pending:
    """What of a plan is stored already, and what is left to do; `fresh`: everything is left."""
    stored = {} if fresh else {cell.id: found for cell in plan.cells if (found := _usable(store, cell)) is not None}
    return Pending(stored, [_missing(job, set(stored)) for job in plan.jobs])


def remember_request(store: Store, spec: PplSpec) -> None:
    """Writes the request into the folder's spec.yaml, after those that are there."""
    text = store.read_text("spec.yaml")
    requests = [] if text is None else requests_from_yaml(text, origin=f"{store.path}/spec.yaml")
    if canonical_json(spec.to_mapping()) not in map(canonical_json, requests):
        store.write_text("spec.yaml", requests_to_yaml([*requests, spec.to_mapping()]))


def _usable(store: Store, cell: Cell) -> tuple[Record, ...] | None:
    """A cell's stored records if it is done, with its token values."""
    found = store.load(cell.id)
    if found is None or found.status != "ok" or not store.has_nll(cell.id):
        return None
    return found.records


def _missing(job: Job, stored: set[str]) -> Job:
    """The job without the cells that are stored."""
    groups = []
    for group in job.groups:
        cells = tuple(cell for cell in group.cells if cell.id not in stored)
        if cells:
            groups.append(dataclasses.replace(group, cells=cells))
    return dataclasses.replace(job, groups=tuple(groups))


@dataclass(kw_only=True, slots=True)
class _Runner:
    """One run under way: the loaded model, and the records so far."""

    store: Store
    progress: Progress
    spec: PplSpec
    load: Callable[[PreparedModel], Backend]
    sizes: dict[str, ModelSize]
    under_way: bool
    records: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    remembered: bool = False
    _loaded: tuple[PreparedModel, Backend] | None = None

    def job(self, job: Job) -> None:
        """All missing cells of one model and data set."""
        if not job.groups:
            return
        texts = Texts(
            job.corpus.selection, joined=job.protocol.joined, bos_id=job.model.bos_id() if job.model.bos else None
        )
        for group in job.groups:
            runnable = tuple(cell for cell in group.cells if cell.windows)
            if not runnable:
                continue
            try:
                backend = self.backend(job.model)
            except LongEvalError as error:
                if not self.under_way:
                    raise
                self.fail(runnable, job, str(error), "")
                continue
            self.progress.group(group, len(group.passes()))
            self.group(dataclasses.replace(group, cells=runnable), job, backend, texts)

    def skip(self, job: Job) -> None:
        """Records of the cells with nothing to score; last, so that a model that can't be loaded leaves nothing."""
        for cell in job.cells:
            if not cell.windows:
                self.keep(cell, Outcome([without_value(cell, job, "skipped", why_skipped(job, cell), "")], None))

    def backend(self, model: PreparedModel) -> Backend:
        """The loaded model; the one before it is let go first."""
        if self._loaded is None or self._loaded[0] is not model:
            self._loaded = None
            self._loaded = (model, self.load(model))
        return self._loaded[1]

    def group(self, group: Group, job: Job, backend: Backend, texts: Texts) -> None:
        """Runs a group's passes; where the longest doesn't fit into memory, the shorter cells go on without it."""
        too_large = ""
        backend.reset_peak_memory()
        try:
            wholes = self.outcomes(group, job, backend, texts)
        except (OutOfMemoryError, MemoryError) as error:
            too_large = str(error) or "MemoryError"
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
        for cell, whole in zip(group.cells, wholes, strict=True):
            self.keep(cell, whole)

    def outcomes(self, group: Group, job: Job, backend: Backend, texts: Texts) -> list[Outcome]:
        """A group's passes, and what they mean for each of its cells."""
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
        """Runs all passes of a group and hands each cell its part."""
        measured = {cell.id: Measured() for cell in group.cells}
        wanted: dict[tuple[int, int], list[tuple[Cell, Window]]] = {}
        for cell in group.cells:
            for window in cell.windows:
                wanted.setdefault((window.document, window.start), []).append((cell, window))
        served = 0
        for window in group.passes():
            if group.static and not served:
                served = group.cells[-1].length
                backend.serve(group.table(served), served)
            elif not group.static and served != window.length:
                served = window.length
                backend.serve(group.table(served), served)
            nll_S = backend.score(texts.window(window), window.context)
            for cell, own in wanted[window.document, window.start]:
                assert own.context == window.context and own.num_scored <= window.num_scored
                measured[cell.id].nlls.append(nll_S[: own.num_scored])
                measured[cell.id].windows.append(own)
            self.progress.advance(window, self.sizes[group.cells[0].model].window_flops(window))
        return measured

    def digest(self, group: Group, cell: Cell, backend: Backend) -> str:
        """The digest of the table as the model holds it now, at the cell's length."""
        if not group.static:
            backend.serve(group.table(cell.length), cell.length)
        return backend.rope_digest(cell.length)

    def fail(self, cells: Sequence[Cell], job: Job, reason: str, device: str) -> None:
        """Failed records for cells."""
        for cell in cells:
            self.keep(cell, Outcome([without_value(cell, job, "failed", reason, device)], None))

    def keep(self, cell: Cell, whole: Outcome) -> None:
        """Stores a cell; the request goes before the first one."""
        if not self.remembered:
            remember_request(self.store, self.spec)
            self.remembered = self.under_way = True
        self.store.save(whole.records, whole.nll)
        self.records[cell.id] = tuple(whole.records)
        self.progress.finished(whole.records[0])
