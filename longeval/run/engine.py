"""The engine: computes the missing cells of a plan, for any study, and stores each cell as soon as it is finished.

Resuming, failures, interrupts and storing are handled only here. A cell that fails (out of memory, a NaN, a document
that vanished) becomes a failed record with the reason, and the run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import longeval.metrics  # noqa: F401  (registers all metrics: stored cells are checked against them)
from longeval.backends.base import Backend
from longeval.run.executor import Executor, LocalExecutor
from longeval.run.host import Host, Progress, backend_of
from longeval.run.leases import Leases
from longeval.run.reuse import find_reusable, wholly_taken
from longeval.run.study import Outcome, Plan
from longeval.store.folder import Store
from longeval.store.plan import remember_request
from longeval.store.records import Record, running_commit

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """The outcome of a run."""

    records: tuple[Record, ...]
    """Records of all cells in the plan's order, whether stored before or computed now; then derived records, such as
    averages of groups."""
    computed: int
    """Number of cells finished now, also those that needed no pass."""
    taken: int
    """How many of these were wholly taken from other stored cells."""
    skipped: int
    """How many of them were skipped, averages of groups not counted."""
    reused: int
    """Number of cells that were already stored, or that another command stored meanwhile."""

    @property
    def failed(self) -> int:
        """Number of cells that failed."""
        return len({record.cell for record in self.records if record.status == "failed"})


def run(
    plan: Plan,
    store: Store,
    progress: Progress,
    *,
    fresh: bool = False,
    under_way: bool = False,
    load: Callable[[PreparedModel], Backend] | None = None,
    executor: Executor | None = None,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> RunResult:
    """Computes the missing cells of a plan and returns all its records.

    Args:
        plan: The plan.
        store: The run folder. The request and its plan are written into it before the first record.
        progress: Is told about every pass and cell.
        fresh: Whether to compute stored cells again, and to take nothing from others.
        under_way: Whether the same invocation already has results; then errors of a model only fail its cells.
        load: Loads a model, called only if one of its cells is missing; None: loads it into the request's backend.
        executor: Executes the work; None: in this process.
        told: Called with each outcome after it is stored.

    Raises:
        LongEvalError: A model can't be loaded or used, and there are no results yet. Once there are results, such an
            error only fails that model's cells.
    """
    running_commit()  # read now, because the checkout may change before the first record is written
    stored = {} if fresh else plan.stored(store)
    for note in plan.stored_notes(store, stored):
        progress.note(note)
    left = plan.left(stored)
    load = load or backend_of(plan.request)
    reused, notes = find_reusable(plan, left, store, fresh=fresh)
    for note in notes:
        progress.note(note)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    leases = Leases(
        store,
        progress.note,
        stored=lambda ids: {} if fresh else plan.stored(store, ids),
        all_or_none=launched > 1,
        seconds_left=progress.seconds_left,
    )
    keeper = _Keeper(
        plan=plan, store=store, progress=progress, leases=leases, fresh=fresh, under_way=under_way or bool(stored)
    )
    host = Host(
        store=store,
        progress=progress,
        load=load,
        fresh=fresh,
        reused=reused,
        before_write=keeper.begin,
        clear=keeper.clear,
        claim=leases.claim,
        alone=leases.alone,
        num_workers=leases.set_workers,
    )
    costs = [cost for work in left for cost in work.costs(host)]
    if costs or reused:
        store.check_writable()
    progress.begin(costs)
    try:
        while left:
            # Closed at once, so that workers end before what follows an error.
            with contextlib.closing((executor or LocalExecutor()).outcomes(plan, left, host)) as outcomes:
                for outcome in outcomes:
                    keeper.keep(outcome)
                    leases.release(outcome.cell)
                    told(outcome)
            left = leases.wait()
        keeper.begin()
    finally:
        host.close()
        leases.close()
    records = stored | leases.found | keeper.records
    return RunResult(
        records=(*(record for cell in plan.cells for record in records[cell.id]), *keeper.derived(records)),
        computed=len(keeper.records),
        taken=sum(map(wholly_taken, keeper.records.values())),
        skipped=sum(found[0].status == "skipped" for found in keeper.records.values()),
        reused=len(stored) + len(leases.found),
    )


@dataclass(kw_only=True, slots=True)
class _Keeper:
    """Stores the outcomes of a run."""

    plan: Plan
    store: Store
    progress: Progress
    leases: Leases
    fresh: bool
    under_way: bool
    """Whether results exist already, so that errors of a model only fail its cells."""
    records: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    """Records of the cells computed now, by cell id."""
    _metrics: dict[str, str] = field(default_factory=dict)
    """The main metric of each cell, by id."""
    _begun: bool = False
    _cleared: bool = False

    def __post_init__(self) -> None:
        self._metrics = {cell.id: cell.metric for cell in self.plan.cells}

    def begin(self) -> None:
        """Writes the request and its cells before the first file of the run, and again if they were removed."""
        self.under_way = True
        if not self._begun or not self.store.is_run_folder():
            main = self.plan.parent or self.plan
            with self.leases.alone("plan"):  # other commands add their requests to the same files
                remember_request(self.store, main.request, main.planned())
                self.store.remember_plan(self.plan.planned())
                self.plan.keep(self.store)
        self.clear()
        self._begun = True

    def clear(self) -> None:
        """Removes once what `--fresh` must not use."""
        if self.fresh and not self._cleared:
            self.plan.clear(self.store, self.leases.busy({cell.id for cell in self.plan.cells}))
        self._cleared = True

    def keep(self, outcome: Outcome) -> None:
        """Stores the outcome of a cell and reports it to the progress."""
        if outcome.error is not None and not self.under_way:
            raise outcome.error
        self.begin()
        self.store.save(outcome.records, outcome.found, outcome.artefact)
        self.records[outcome.cell] = outcome.records
        metric = self._metrics[outcome.cell]
        main = [record for record in outcome.records if record.metric == metric]
        self.progress.finished((*main, *outcome.records)[0])

    def derived(self, records: dict[str, tuple[Record, ...]]) -> list[Record]:
        """Records that are derived from those of the cells; new ones are stored."""
        found: list[Record] = []
        for outcome in self.plan.derived(records, self.store):
            stored = self.store.load(outcome.cell)
            # A stored outcome that differs only in its provenance is kept.
            if stored and stored.with_artefact and _same_but_provenance(stored.records, outcome.records):
                found += stored.records
            else:
                self.store.save(outcome.records, outcome.found, outcome.artefact)
                found += outcome.records
        return found


def _same_but_provenance(records: Sequence[Record], others: Sequence[Record]) -> bool:
    """Whether records are equal, wherever and whenever they were computed."""
    provenance = records[0].provenance
    return list(records) == [dataclasses.replace(other, provenance=provenance) for other in others]
