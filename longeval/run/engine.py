"""The engine: computes what is missing of a plan and stores each cell as soon as it is whole, whatever the study.

Resume, failures, interrupts and storing are here, and nowhere else. A cell that fails (out of memory, a NaN, a document
that went away) becomes a failed record with its reason, and the others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import longeval.metrics  # noqa: F401  (registers all metrics: stored cells are checked against them)
from longeval.backends.base import Backend
from longeval.run.executor import Executor, LocalExecutor
from longeval.run.host import Host, Progress, backend_of
from longeval.run.reuse import Found, find_reusable
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
    """All records of the plan's cells, in the plan's order, stored before or computed now; then what follows from them,
    such as averages of groups."""
    computed: int
    """Cells computed now."""
    reused: int
    """Cells that were stored already."""

    @property
    def failed(self) -> int:
        """Cells that failed."""
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
    """Runs what is missing and returns all records of the plan.

    Args:
        plan: What to compute.
        store: Where records are and go; the request and its plan are written beside them before the first.
        progress: Told about every pass and cell.
        fresh: Compute stored cells again, and take nothing from others.
        under_way: Whether results of the same invocation exist already, so that nothing may end it any more.
        load: Brings a model's weights, called only if one of its cells is missing; None: into the request's backend.
        executor: Where work runs; None: in this process.
        told: Called with each outcome once it is stored.

    Raises:
        LongEvalError: A model can't be loaded or used, and nothing has been computed or found yet; later, that model's
            cells fail.
    """
    running_commit()  # now, not at the first record: the code that runs is the code of this moment
    stored = {} if fresh else stored_cells(plan, store)
    left = plan.left(stored)
    keeper = _Keeper(plan=plan, store=store, progress=progress, fresh=fresh, under_way=under_way or bool(stored))
    load = load or backend_of(plan.request)
    reused, notes = Found({}, []) if fresh else find_reusable(plan, left, store)
    for note in notes:
        progress.note(note)
    host = Host(store=store, progress=progress, load=load, fresh=fresh, reused=reused, before_write=keeper.begin)
    costs = [cost for work in left for cost in work.costs(host)]
    if costs:
        store.check_writable()
    progress.begin(costs)
    try:
        for outcome in (executor or LocalExecutor()).outcomes(plan, left, host):
            keeper.keep(outcome)
            told(outcome)
    finally:
        host.close()
    keeper.begin()
    records = stored | keeper.records
    return RunResult(
        records=(*(record for cell in plan.cells for record in records[cell.id]), *keeper.derived(records)),
        computed=len(keeper.records),
        reused=len(stored),
    )


def stored_cells(plan: Plan, store: Store) -> dict[str, tuple[Record, ...]]:
    """Records of the plan's cells that are done, by cell id."""
    return {cell.id: found for cell in plan.cells if (found := store.finished(cell.id)) is not None}


@dataclass(kw_only=True, slots=True)
class _Keeper:
    """Stores what a run computes."""

    plan: Plan
    store: Store
    progress: Progress
    fresh: bool
    under_way: bool
    """Whether results exist already, so that nothing may end the run any more."""
    records: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    """Records of the cells computed now, by cell id."""
    _begun: bool = False

    def begin(self) -> None:
        """Before the first file of the run: writes the request and its cells, once, unless someone removed them."""
        self.under_way = True
        if not self._begun or not self.store.is_run_folder():
            remember_request(self.store, self.plan.request, self.plan.planned())
        if self.fresh and not self._begun:
            self.plan.clear(self.store)
        self._begun = True

    def keep(self, outcome: Outcome) -> None:
        """Stores a cell."""
        if outcome.error is not None and not self.under_way:
            raise outcome.error
        self.begin()
        self.store.save(outcome.records, outcome.found, outcome.artefact)
        self.records[outcome.cell] = outcome.records
        (metric,) = {cell.metric for cell in self.plan.cells if cell.id == outcome.cell}
        main = [record for record in outcome.records if record.metric == metric]
        self.progress.finished((*main, *outcome.records)[0])

    def derived(self, records: dict[str, tuple[Record, ...]]) -> list[Record]:
        """What follows from the cells' records, stored where it is new."""
        found = []
        for record in self.plan.derived(records):
            stored = self.store.load(record.cell)
            # What is stored stays where the two differ in nothing but where and when they were made.
            if stored and dataclasses.replace(stored.records[0], provenance=record.provenance) == record:
                found.append(stored.records[0])
            else:
                self.store.save([record])
                found.append(record)
        return found
