"""Leases: two commands that work in one run folder don't compute the same cell at the same time.

A process that computes cells of a run folder has a file in it that it renews, `runners/<id>.json`. Before it computes a
cell, it makes the file `leases/<cell>.0`, which only one process can make. Where the process that made it has died,
another one makes `leases/<cell>.1`, and so on. Both files are removed once the cell is stored.

A process counts as dead when its own machine says so, or when it has not renewed its file for STALE_S. So the clocks of
machines that share a run folder must not differ by much more than half of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from longeval.errors import LongEvalError
from longeval.files import this_machine
from longeval.plain import made_from, read_json
from longeval.run.overview import count
from longeval.run.study import Work
from longeval.store.folder import Store
from longeval.store.records import Record, command_line

logger = logging.getLogger(__name__)

BEAT_S = 10.0
"""Seconds between two renewals of a runner's file."""
STALE_S = 60.0
"""A runner of another machine that has not renewed its file for so many seconds counts as dead."""
POLL_S = 1.0
"""Seconds between two looks at cells that another process computes."""

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
    cells: tuple[str, ...] = ()
    """Ids of the cells that it computes now."""
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

        if self.machine != _machine():
            return time.time() - self.beat < STALE_S
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 2.0)
        except psutil.NoSuchProcess:
            return False


def runners(store: Store) -> list[Runner]:
    """The processes that say that they compute cells of a run folder, also those that have died since."""
    return [found for name in store.names(RUNNERS) if (found := _read(store, name.removesuffix(".json"))) is not None]


def _read(store: Store, runner: str) -> Runner | None:
    """A runner; None if its file is absent or damaged."""
    try:
        text = store.read_text(f"{RUNNERS}/{runner}.json")
        return None if text is None else made_from(Runner, read_json(text.encode()))
    except (LongEvalError, ValueError) as error:
        logger.debug("%s: %s", runner, error)
        return None


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
        fresh: Whether cells are computed that are stored already.
        all_or_none: Whether another process that computes the same is an error, because several processes carry out
            this run together and could not wait for it in step.
    """

    def __init__(
        self,
        store: Store,
        note: Callable[[str], None],
        *,
        fresh: bool = False,
        all_or_none: bool = False,
        seconds_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.found: dict[str, tuple[Record, ...]] = {}
        """Records of cells that another process has stored meanwhile, by cell id."""
        self._workers = 1
        self._store = store
        self._note = note
        self._fresh = fresh
        self._all_or_none = all_or_none
        self._seconds_left = seconds_left
        self._held: dict[str, int] = {}
        """Cell id → generation of its lease."""
        self._postponed: list[Work] = []
        self._known: dict[str, tuple[float, bool]] = {}
        """Id of a runner → when it was last looked at, and whether it was alive then."""
        self._told = False
        self._finished = 0
        self._begun = False
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._me = Runner(
            id=uuid.uuid4().hex[:16],
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(),
            command=command_line(),
            since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
        not_mine, stored = set(), set()
        for cell in work.cells:
            if not self._take(cell.id):
                not_mine.add(cell.id)
            elif not self._fresh and (records := self._store.finished(cell.id)) is not None:
                self.found[cell.id] = records
                stored.add(cell.id)
                self._give_back(cell.id)
        if not_mine and self._all_or_none:
            raise LongEvalError(
                f"--out {self._store.path}: another command computes {count(len(not_mine), 'cell')} of this one now",
                "Wait until it has ended, or choose another folder.",
            )
        if not_mine:
            later = work.without({cell.id for cell in work.cells} - not_mine)
            assert later is not None
            self._postponed.append(later)
        return work.without(not_mine | stored) if not_mine | stored else work

    def release(self, cell: str) -> None:
        """Ends the lease of a cell that has been stored."""
        if cell in self._held:
            self._finished += 1
            self._give_back(cell)

    def wait(self) -> list[Work]:
        """Waits until work that `claim` kept back can be claimed, and returns that; nothing if nothing was kept."""
        while self._postponed:
            ready = [work for work in self._postponed if not any(self._holder(cell.id) for cell in work.cells)]
            if ready:
                self._postponed = [work for work in self._postponed if work not in ready]
                return ready
            self._tell_holder()
            time.sleep(POLL_S)
        return []

    def close(self) -> None:
        """Ends all leases of this process, and removes those of processes that died."""
        if not self._begun:
            return
        self._ended.set()
        assert self._beating is not None
        self._beating.join()
        with contextlib.suppress(Exception):  # a store that fails now has failed before, and that was told
            for cell in list(self._held):
                self._give_back(cell)
            self._store.remove(f"{RUNNERS}/{self._me.id}.json")
            self._sweep()
            self._store.remove_empty(LEASES, RUNNERS)
        self._begun = False

    def _begin(self) -> None:
        """Makes this process known in the run folder."""
        if self._begun:
            return
        self._begun = True
        self._beat()
        self._ended.clear()
        self._beating = threading.Thread(target=self._keep_beating, name="longeval-leases", daemon=True)
        self._beating.start()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._beat()
            except LongEvalError as error:  # storing the next cell will say so
                logger.debug("%s", error)

    def _beat(self) -> None:
        now = dataclasses.replace(
            self._me,
            beat=time.time(),
            cells=tuple(self._held),
            finished=self._finished,
            workers=self._workers,
            seconds_left=self._seconds_left(),
        )
        self._store.write_text(f"{RUNNERS}/{now.id}.json", json.dumps(dataclasses.asdict(now)) + "\n")

    def _take(self, cell: str) -> bool:
        """Takes the lease of a cell unless a living process has it."""
        if cell in self._held:
            return True
        generation, before = 0, None
        while not self._store.create_text(_lease(cell, generation), self._me.id):
            holder = self._store.read_text(_lease(cell, generation))
            if holder is None or self._is_alive(holder):  # None: it has just been given back, so try later
                return False
            generation, before = generation + 1, holder
        self._held[cell] = generation
        # Between the look at the dead process's lease and ours, another one may have done the cell and removed both.
        if before is not None and self._store.read_text(_lease(cell, generation - 1)) != before:
            self._give_back(cell)
            return False
        return True

    def _give_back(self, cell: str) -> None:
        """Removes the lease of a cell, and before it those of dead processes that it follows."""
        generation = self._held[cell]
        for number in range(generation + 1):
            self._store.remove(_lease(cell, number))
        del self._held[cell]

    def _holder(self, cell: str) -> str | None:
        """The living process that has the lease of a cell."""
        generation = 0
        while (holder := self._store.read_text(_lease(cell, generation))) is not None:
            if self._is_alive(holder):
                return holder
            generation += 1
        return None

    def _is_alive(self, runner: str) -> bool:
        if runner == self._me.id:
            return True
        now = time.monotonic()
        when, alive = self._known.get(runner, (-STALE_S, False))
        if now - when >= POLL_S / 2:
            found = _read(self._store, runner)
            alive = found is not None and found.alive
            self._known[runner] = now, alive
        return alive

    def _tell_holder(self) -> None:
        """Says once who computes what is waited for."""
        if self._told:
            return
        self._told = True
        cells = [cell.id for work in self._postponed for cell in work.cells]
        holder = next((one for cell in cells if (one := self._holder(cell)) is not None), None)
        found = None if holder is None else _read(self._store, holder)
        if found is not None:
            self._note(
                f"waiting for {count(len(cells), 'cell')} that another command computes in {self._store.path} "
                f"({found.command}, process {found.pid} on {found.host})"
            )

    def _sweep(self) -> None:
        """Removes what dead processes left: the last lease of each chain, and their own files."""
        dead = {found.id for found in runners(self._store) if not found.alive}
        if not dead:
            return
        names = self._store.names(LEASES)
        for name in names:
            cell, _, generation = name.rpartition(".")
            is_last = _lease(cell, int(generation) + 1).rpartition("/")[2] not in names
            if is_last and self._store.read_text(f"{LEASES}/{name}") in dead:
                self._store.remove(f"{LEASES}/{name}")
        for runner in dead:
            self._store.remove(f"{RUNNERS}/{runner}.json")


def _lease(cell: str, generation: int) -> str:
    return f"{LEASES}/{cell}.{generation}"
