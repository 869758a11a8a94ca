"""Executors carry out work and yield its outcomes. The local executor does so in this process.

Work holds models and texts, which can't be sent to other processes. An executor with other processes sends an `Order`,
which holds the request and the ids of cells. The other process plans the same request and takes the work of these
cells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from longeval.backends.base import BackendError, OutOfMemoryError
from longeval.errors import LongEvalError, WriteError
from longeval.run.host import Host, Progress, Silent, backend_of
from longeval.run.reuse import find_reusable
from longeval.run.study import Outcome, Plan, Work, failed, find_study, request_from_mapping
from longeval.store.folder import Store

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Carries out work."""

    def outcomes(self, plan: Plan, work: Sequence[Work], host: Host) -> Iterator[Outcome]:
        """Carries out work of a plan; yields an outcome for every cell as it finishes, in any order."""
        ...


class LocalExecutor:
    """Carries out work in this process, one after another."""

    def outcomes(self, plan: Plan, work: Sequence[Work], host: Host) -> Iterator[Outcome]:
        """See `Executor`."""
        for one in work:
            yield from attempt(one, host)


def attempt(work: Work, host: Host) -> Iterator[Outcome]:
    """Carries out one work. A cell that can't be computed gets a failed record with the reason.

    If memory runs out, the work goes on with `Work.smaller`, and the other cells fail.

    Raises:
        WriteError: The run folder can't be written.
    """
    left: Work | None = work
    while left is not None:
        done: set[str] = set()
        reason, error, rest = "", None, None
        try:
            for outcome in left.run(host):
                done.add(outcome.cell)
                yield outcome
        except WriteError:
            raise
        except BackendError as problem:
            reason, error = str(problem), problem
        except (OutOfMemoryError, MemoryError) as problem:
            rest = left.smaller()
            reason = left.no_memory(str(problem) or type(problem).__name__)
        except Exception as problem:
            # A vanished file, a model that fails at this length, or a bug: these cells fail, and the run goes on.
            logger.debug("%s", problem, exc_info=True)
            reason = f"{type(problem).__name__}: {problem}"
        # After the except blocks, because the exception keeps the failed pass's tensors in memory.
        kept = done | {cell.id for cell in (rest.cells if rest else ())}
        for cell in left.cells:
            if cell.id not in kept:
                yield failed(cell, reason, host.device, error)
        left = rest.without(done) if rest is not None and done else rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Work for another process, as plain values that can be sent. The local executor doesn't need it."""

    request: dict[str, Any]
    """The request in the form of spec.yaml."""
    cells: tuple[str, ...]
    """Ids of the cells to compute."""
    out: str
    """The run folder."""
    fresh: bool
    """Whether stored results are ignored."""


def order_of(plan: Plan, work: Work, host: Host) -> Order:
    """Makes the order for a work."""
    return Order(
        request=plan.request.to_mapping(),
        cells=tuple(cell.id for cell in work.cells),
        out=host.store.path,
        fresh=host.fresh,
    )


def carry_out(order: Order, progress: Progress | None = None) -> Iterator[Outcome]:
    """Plans the request of an order again and computes its cells, without the process that sent it.

    Raises:
        LongEvalError: The request has other cells in this process, because texts, weights or task files differ.
    """
    request = request_from_mapping(order.request, origin="order")
    plan = find_study(request.command).plan(request, Silent())
    wanted = set(order.cells)
    others = {cell.id for cell in plan.cells} - wanted
    if len(others) + len(wanted) != len(plan.cells):
        raise LongEvalError(
            f"{request.command}: the same request has other cells in this process",
            "Give every process the same models, data and task files.",
        )
    store, load = Store(order.out), backend_of(plan.request)
    left = plan.left(others)
    reused = find_reusable(plan, left, store, fresh=order.fresh).reused
    host = Host(store=store, progress=progress or Silent(), load=load, fresh=order.fresh, reused=reused)
    try:
        for work in left:
            yield from attempt(work, host)
    finally:
        host.close()
