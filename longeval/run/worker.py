"""A worker carries out work for another process, which sends it orders.

Work holds models and texts, which can't be sent. An order holds the request and the ids of cells instead: the worker
plans the same request and takes the work of these cells. It keeps plans, and the model that is loaded, from one order
to the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import longeval
from longeval.errors import LongEvalError
from longeval.plain import canonical_json

if TYPE_CHECKING:  # a worker starts before it needs them
    from longeval.run.host import Host, Progress
    from longeval.run.reuse import Reused
    from longeval.run.study import Outcome, Plan, Work
    from longeval.store.records import Record

logger = logging.getLogger(__name__)

TELL_EVERY_S = 0.5
"""Seconds between two messages about passes."""

SENT = ("LONGEVAL_", "HF_", "AWS_", "TRANSFORMERS_", "TOKENIZERS_", "VLLM_", "FSSPEC_", "OMP_NUM_THREADS")
"""Beginnings of the names of environment variables that workers get from the command."""

Told = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A call of a method of `Progress`, or of `Host.before_write`: its name and arguments."""


def settings() -> dict[str, str]:
    """The settings of this process that are environment variables: where data and caches are, credentials."""
    return {name: value for name, value in os.environ.items() if name.startswith(SENT)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """What a worker has in common with the process that sends orders."""

    name: str
    """The worker's name, such as `worker-1`."""
    version: str = longeval.__version__
    folder: str = field(default_factory=os.getcwd)
    """The current folder, which paths in requests may be relative to."""
    argv: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    """The command line, which records name."""
    environment: dict[str, str] = field(default_factory=settings, repr=False)
    """Environment variables. They are sent like this, because Ray would show those of its own environments."""
    log: str | None = None
    """Local file for what the worker prints; None: nowhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Work for a worker, as plain values that can be sent."""

    request: dict[str, Any]
    """The request in the form of spec.yaml."""
    cells: tuple[str, ...]
    """Ids of the cells to compute."""
    out: str
    """The run folder."""
    fresh: bool
    """Whether stored results are ignored."""
    reused: Mapping[str, Reused]
    """What other stored cells hold of these, by cell id."""


def order_of(plan: Plan, work: Work, host: Host) -> Order:
    """Makes the order for some work of a plan."""
    ids = tuple(cell.id for cell in work.cells)
    return Order(
        request=plan.request.to_mapping(),
        cells=ids,
        out=os.path.abspath(host.store.path) if host.store.is_local else host.store.path,
        fresh=host.fresh,
        reused={cell: host.reused[cell] for cell in ids if cell in host.reused},
    )


class Worker:
    """Carries out orders in this process.

    Args:
        home: What it has in common with the sender.
        tell: Sends what happens, for the sender's progress.

    Raises:
        LongEvalError: This process has another version of longeval than the sender.
    """

    def __init__(self, home: Home, tell: Callable[[str, Sequence[Told]], object] = lambda name, told: None) -> None:
        if home.version != longeval.__version__:
            raise LongEvalError(
                f"longeval on {platform.node()} is of version {longeval.__version__}, and the command is of "
                f"{home.version}",
                "Install the same version on all machines.",
            )
        os.environ.update(home.environment)
        if home.log is not None:
            _print_into(home.log)
        with contextlib.suppress(OSError):  # a machine without that folder: paths in requests must be absolute there
            os.chdir(home.folder)
        sys.argv = list(home.argv)
        self._name = home.name
        self._progress = Messenger(home.name, tell)
        self._plans: dict[str, tuple[Any, dict[str, Work]]] = {}
        """Request and folder of orders, as canonical JSON → the request as planned, and its work by cell id."""
        self._host: Host | None = None
        self._of = ""
        """The request of the host's model, as canonical JSON."""

    def check_in(self) -> str:
        """Says that the worker has started; returns where."""
        logger.info("%s on %s, process %d", self._name, platform.node(), os.getpid())
        return platform.node()

    def carry_out(self, order: Order) -> Iterator[Outcome]:
        """Computes the cells of an order and yields their outcomes, each as soon as it is there.

        Raises:
            LongEvalError: The request is wrong here, or has other cells: texts, weights or task files differ.
        """
        from longeval.run.executor import attempt

        work_of, host = self._prepared(order)
        wanted = set(order.cells)
        if not wanted <= work_of.keys():
            raise LongEvalError(
                f"{order.request['command']}: the request has other cells on {platform.node()} than where it was given",
                "Give all machines the same models, data and task files, and the same kind of device.",
            )
        touched = {id(work_of[cell]): work_of[cell] for cell in order.cells}
        try:
            for work in touched.values():
                mine = work.without({cell.id for cell in work.cells} - wanted)
                assert mine is not None
                for outcome in attempt(mine, host):
                    self._progress.flush()
                    yield dataclasses.replace(outcome, records=tuple(map(self._signed, outcome.records)))
        finally:
            self._progress.flush()

    def _prepared(self, order: Order) -> tuple[dict[str, Work], Host]:
        """The work of an order's request by cell, and a host for it; both are kept for the next order."""
        from longeval.run.host import Host, Silent, backend_of
        from longeval.run.study import find_study, request_from_mapping
        from longeval.store.folder import Store

        of = canonical_json([order.request, order.out])
        if of not in self._plans:
            request = request_from_mapping(order.request, origin="order")
            plan = find_study(request.command).plan(request, Silent())
            self._plans[of] = plan.request, {cell.id: work for work in plan.work for cell in work.cells}
        completed, work_of = self._plans[of]
        if self._host is None or self._of != of:
            if self._host is not None:
                self._host.close()
            store = Store(order.out)
            self._host = Host(
                store=store,
                progress=self._progress,
                load=backend_of(completed),
                before_write=self._progress.before_write,
            )
            self._of = of
        self._host.fresh, self._host.reused = order.fresh, order.reused
        return work_of, self._host

    def _signed(self, record: Record) -> Record:
        """A record that names this worker in its provenance."""
        worker = f"{self._name} on {platform.node()}"
        return dataclasses.replace(record, provenance=dataclasses.replace(record.provenance, worker=worker))


class Messenger:
    """A `Progress` that sends what it is told to another process.

    Args:
        name: The worker's name.
        send: Sends calls of methods of `Progress`, in order.
    """

    def __init__(self, name: str, send: Callable[[str, Sequence[Told]], object]) -> None:
        self._name = name
        self._send = send
        self._told: list[Told] = []
        self._sent = time.monotonic()

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._tell("note", text)

    def begin(self, costs: Sequence[float]) -> None:
        """See `Progress`. The sender of orders knows all costs."""

    def stage(self, what: str, num_passes: int, noun: str, *, details: bool = False) -> None:
        """See `Progress`."""
        logger.info("%s (%d)", what, num_passes)
        self._tell("stage", what, num_passes, noun, details=details)
        self.flush()

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """See `Progress`."""
        self._tell("advance", tokens, cost, detail)
        if time.monotonic() - self._sent > TELL_EVERY_S:
            self.flush()

    def finished(self, record: Record) -> None:
        """See `Progress`. The sender of orders stores records."""

    def of_worker(self, name: str) -> Progress:
        """See `Progress`."""
        return self

    def end_worker(self, name: str) -> None:
        """See `Progress`."""

    def seconds_left(self) -> None:
        """See `Progress`."""

    def before_write(self) -> None:
        """See `Host`. The sender of orders writes the request and its cells when it hears this."""
        self._tell("before_write")
        self.flush()

    def flush(self) -> None:
        """Sends what has not been sent."""
        if self._told:
            self._send(self._name, self._told)
        self._told, self._sent = [], time.monotonic()

    def _tell(self, method: str, *arguments: Any, **named: Any) -> None:
        self._told.append((method, arguments, named))


def _print_into(path: str) -> None:
    """Appends all that this process and its libraries print to a file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
