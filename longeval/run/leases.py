"""Leases: two commands that work in one run folder don't compute the same cell at the same time.

A process that computes cells of a run folder has a file in it that it renews, `runners/<id>.json`. Before it computes
a cell, it makes the file `leases/<cell>`, which only one process can make and which names it. Where that process has
died, another one makes `leases/<cell>.<id of the dead>`, and so on. A process that ends its lease removes the first
file of such a chain first and its own last. So only a chain whose first file is still the same may be continued.

A process counts as dead when its own machine says so, or when it has not renewed its file for STALE_S. So the clocks of
machines that share a run folder must not differ by much more than half of that. Where they do, or where a machine
stands still for so long, two processes may compute the same cell. This costs time and spoils nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from longeval.errors import LongEvalError, WriteError
from longeval.files import this_machine
from longeval.plain import made_from, read_json
from longeval.run.overview import count
from longeval.run.study import Work
from longeval.store.folder import Store
from longeval.store.plan import PlannedCell
from longeval.store.records import Record, command_line

logger = logging.getLogger(__name__)

BEAT_S = 10.0
"""Seconds between two renewals of a runner's file."""
STALE_S = 60.0
"""A runner of another machine that has not renewed its file for so many seconds counts as dead."""
POLL_S = 1.0
"""Seconds between two looks at cells that another process computes."""
CLOCK_S = 60.0
"""A machine's clock may be set by so many seconds, and with it the time at which its processes started."""

RUNNERS, LEASES = "runners", "leases"


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """What a process that computes cells of a run folder says of itself: the content of `runners/<id>.json`."""

    id: str
    host: str
    """Name of its machine."""
    machine: str
    """Tells this boot of that machine, and what can see its processes, from others."""
    pid: int
    started: float
    """When the process started, in seconds since 1970: its number may belong to another process later."""
    command: str
    """The command line."""
    since: str
    """When it began with this folder, ISO 8601 in UTC."""
    beat: float
    """When it last renewed this file, in seconds since 1970."""
    finished: int = 0
    """Number of cells that it has finished."""
    workers: int = 1
    """Number of its processes that compute."""
    seconds_left: float | None = None
    """How much longer it will take; None while nothing is known."""

    @property
    def alive(self) -> bool:
        """Whether the process still works."""
        import psutil

        if self.is_here:
            if not psutil.pid_exists(self.pid):
                return False
            with contextlib.suppress(psutil.Error):  # some systems hide the processes of other users
                process = psutil.Process(self.pid)
                is_same = abs(process.create_time() - self.started) < CLOCK_S
                return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
        return self.silent_s < STALE_S

    @property
    def is_here(self) -> bool:
        """Whether this process can see that one."""
        return self.machine == _machine()

    @property
    def silent_s(self) -> float:
        """Seconds since it last renewed its file."""
        return max(0.0, time.time() - self.beat)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The content of a file of a lease."""

    runner: str
    """Id of the process that has it."""
    since: str
    """When it took it, ISO 8601 in UTC."""
    cell: PlannedCell | None = None
    """What is computed under it: plan.json comes only with the first finished cell."""


def runners(store: Store) -> list[Runner]:
    """The processes that say that they compute cells of a run folder, also those that have died since."""
    return [found for name in store.names(RUNNERS) if (found := _read(store, name.removesuffix(".json"))) is not None]


def leases(store: Store) -> dict[str, Lease]:
    """The last lease of each cell that has one, by cell id; its process may be dead."""
    names = store.names(LEASES)
    with ThreadPoolExecutor() as threads:
        found = dict(zip(names, threads.map(lambda name: _read_lease(store, name), names), strict=True))
    last = {}
    for name in names:
        lease = found.pop(name, None) if "." not in name else None  # other files continue one of these
        while lease is not None:
            last[name] = lease
            lease = found.pop(f"{name}.{lease.runner}", None)
    return last


def _read(store: Store, runner: str) -> Runner | None:
    """A runner; None if its file is absent or damaged."""
    text = store.read_text(f"{RUNNERS}/{runner}.json")
    try:
        return None if text is None else made_from(Runner, read_json(text.encode()))
    except ValueError as error:
        logger.debug("%s: %s", runner, error)
        return None


def _read_lease(store: Store, name: str) -> Lease | None:
    """A file of a lease; None if it is absent."""
    for wait_s in (POLL_S, 0.0):
        text = store.read_text(f"{LEASES}/{name}")
        try:
            return None if text is None else made_from(Lease, read_json(text.encode()))
        except ValueError:  # without hard links, a file is there before its content is
            time.sleep(wait_s)
    return Lease(runner="", since="")  # whoever made it died before it had written into it


def _started() -> float:
    import psutil

    return float(psutil.Process().create_time())


def _machine() -> str:
    """See `Runner.machine`. Containers of one machine have one boot, and each sees only its own processes."""
    with contextlib.suppress(OSError):
        return f"{this_machine()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return this_machine()


class Leases:
    """The leases of this process in a run folder. Nothing is written before the first `claim`.

    Args:
        store: The run folder. In one that is read-only, every cell may be computed.
        note: Is told once what is waited for.
        stored: Ids of cells → the records of those that need not be computed; None: of those that are finished.
        all_or_none: Whether another process that computes the same is an error, because several processes carry out
            this run together and could not wait for it in step.
    """

    def __init__(
        self,
        store: Store,
        note: Callable[[str], None],
        *,
        stored: Callable[[Sequence[str]], Mapping[str, tuple[Record, ...]]] | None = None,
        all_or_none: bool = False,
        seconds_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.found: dict[str, tuple[Record, ...]] = {}
        """Records of cells that another process has stored meanwhile, by cell id."""
        self._workers = 1
        self._store = store
        self._note = note
        self._stored = store.finished_among if stored is None else stored
        self._all_or_none = all_or_none
        self._seconds_left = seconds_left
        self._held: dict[str, tuple[str, ...]] = {}
        """Cell id → the files of its lease: those of dead processes, then that of this one."""
        self._postponed: list[Work] = []
        self._known: dict[str, tuple[float, bool]] = {}
        """Id of a runner → when it was last looked at, and whether it was alive then."""
        self._told = False
        self._finished = 0
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._me = Runner(
            id=uuid.uuid4().hex[:16],
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(),
            command=command_line(),
            since=_now(),
            beat=0.0,
        )

    def set_workers(self, number: int) -> None:
        """Says how many processes compute (`Runner.workers`)."""
        self._workers = number

    def claim(self, work: Work) -> Work | None:
        """The part of some work that this process may compute now; None if that is nothing.

        Cells that another process has stored meanwhile are put into `found`; those that one computes now are kept for
        `wait`.

        Raises:
            LongEvalError: Another process computes one of the cells, and `all_or_none` is set.
            WriteError: The run folder can't be written.
        """
        if self._store.read_only:
            return work
        self._begin()
        taken = [cell.id for cell in work.cells if self._take(cell.id, cell.planned())]
        not_mine = {cell.id for cell in work.cells} - set(taken)
        stored = self._stored(taken)
        self.found |= stored
        for cell in stored:
            self._give_back(cell)
        elsewhere = not_mine | stored.keys()
        if elsewhere and self._all_or_none:
            raise LongEvalError(
                f"--out {self._store.path}: another command computes {count(len(elsewhere), 'cell')} of this "
                "one at the same time",
                "Wait until it has ended, or choose another folder.",
            )
        if not_mine:
            later = work.without({cell.id for cell in work.cells} - not_mine)
            assert later is not None
            self._postponed.append(later)
        return work.without(elsewhere) if elsewhere else work

    def release(self, cell: str) -> None:
        """Ends the lease of a cell that has been stored."""
        if cell in self._held:
            self._finished += 1
            self._give_back(cell)

    def wait(self) -> list[Work]:
        """Waits until work that `claim` kept back can be claimed, and returns that; nothing if nothing was kept."""
        while self._postponed:
            busy = self.busy({cell.id for work in self._postponed for cell in work.cells})
            waiting = [any(cell.id in busy for cell in work.cells) for work in self._postponed]
            ready = [work for work, waits in zip(self._postponed, waiting, strict=True) if not waits]
            if ready:
                self._postponed = [*itertools.compress(self._postponed, waiting)]
                return ready
            self._tell_holder(busy)
            time.sleep(POLL_S)
        return []

    def busy(self, cells: Collection[str]) -> dict[str, str]:
        """Those of some cells that other living processes compute now, with the ids of these processes."""
        found = leases(self._store).items()
        return {cell: lease.runner for cell, lease in found if cell in cells and self._is_alive(lease.runner)}

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keeps other processes out of a block of the same name, such as one that changes a file."""
        if self._store.read_only:
            yield
            return
        self._begin()
        wait_s = POLL_S / 20
        while not self._take(what):
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, POLL_S)
            if wait_s == POLL_S:
                self._tell_holder(self.busy({what}))
        try:
            yield
        finally:
            self._give_back(what)

    def close(self) -> None:
        """Ends all leases of this process, and removes those of processes that died."""
        if self._beating is None:
            return
        self._ended.set()
        self._beating.join()
        with contextlib.suppress(Exception):  # a store that fails now has failed before, and that was told
            for cell in list(self._held):
                self._give_back(cell)
            self._sweep()  # before the own file goes, since it takes leases
            self._store.remove(f"{RUNNERS}/{self._me.id}.json")
            self._store.remove_empty(LEASES, RUNNERS)
        self._beating = None

    def _begin(self) -> None:
        """Makes this process known in the run folder."""
        if self._beating is not None:
            return
        try:
            self._beat()
        except WriteError:
            self._store.remove_empty(RUNNERS)
            raise
        self._ended.clear()
        self._beating = threading.Thread(target=self._keep_beating, name="longeval-leases", daemon=True)
        self._beating.start()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._beat()
            except Exception as error:  # storing the next cell will say so; a silent process would count as dead
                logger.debug("%s", error)

    def _beat(self) -> None:
        now = dataclasses.replace(
            self._me,
            beat=time.time(),
            finished=self._finished,
            workers=self._workers,
            seconds_left=self._seconds_left(),
        )
        self._store.write_text(f"{RUNNERS}/{now.id}.json", json.dumps(dataclasses.asdict(now)) + "\n")

    def _take(self, cell: str, what: PlannedCell | None = None) -> bool:
        """Takes the lease of a cell unless a living process has it."""
        if cell in self._held:
            return True
        mine = json.dumps(dataclasses.asdict(Lease(runner=self._me.id, since=_now(), cell=what))) + "\n"
        dead: list[str] = []
        """The files of dead processes."""
        name, first = cell, None
        while not self._store.create_text(f"{LEASES}/{name}", mine):
            lease = _read_lease(self._store, name)
            if lease is not None and lease.runner == self._me.id:  # an interrupt came before it was noted in `_held`
                break
            if lease is None or self._is_alive(lease.runner):  # None: it has just been given back, so try later
                return False
            first = first or lease
            dead.append(name)
            name = f"{cell}.{lease.runner}"
        self._held[cell] = (*dead, name)
        # After the look at the first file, another process may have continued the chain, done the cell and removed it.
        if dead and _read_lease(self._store, cell) != first:
            self._held[cell] = (name,)
            self._give_back(cell)
            return False
        return True

    def _give_back(self, cell: str) -> None:
        """Removes the lease of a cell: first the first file of its chain, see `_take`."""
        for name in self._held[cell]:
            self._store.remove(f"{LEASES}/{name}")
        del self._held[cell]

    def _is_alive(self, runner: str) -> bool:
        if runner == self._me.id:  # what it really holds isn't looked up
            return False
        now = time.monotonic()
        when, alive = self._known.get(runner, (-STALE_S, False))
        if now - when >= POLL_S / 2:
            found = _read(self._store, runner)
            alive = found is not None and found.alive
            self._known[runner] = now, alive
        return alive

    def _tell_holder(self, busy: dict[str, str]) -> None:
        """Says once who computes what is waited for."""
        found = None if self._told else _read(self._store, next(iter(busy.values()), ""))
        if found is not None:
            self._told = True
            self._note(
                f"waiting for {count(len(busy), 'cell')} that another command computes in {self._store.path} "
                f"({found.command}, process {found.pid} on {found.host})"
            )

    def _sweep(self) -> None:
        """Removes what dead processes left."""
        dead = [found.id for found in runners(self._store) if not found.alive]
        if dead:
            self._store.sweep()
        names = self._store.names(LEASES)
        for name in names:
            cell, _, _ = name.partition(".")
            lease = _read_lease(self._store, name)
            if lease is None or self._is_alive(lease.runner):
                continue
            if cell not in names:  # the rest of a chain whose first file is gone: nobody continues it
                self._store.remove(f"{LEASES}/{name}")
            elif self._take(cell):
                self._give_back(cell)
        for runner in dead:
            self._store.remove(f"{RUNNERS}/{runner}.json")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
