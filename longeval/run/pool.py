"""The executor with several processes: workers that Ray starts, on one machine or on a cluster.

Ray decides where workers run, which devices they get, and when there is room for one. This executor gives each worker
work: the costliest first, and of those that are left the costliest of the model that it holds. A worker that dies costs
its unit of work, without the cells that it has finished; another worker does the rest. A unit under which MOST_DEATHS
workers have died gets failed records.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import heapq
import itertools
import logging
import math
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from longeval.backends.base import capabilities
from longeval.errors import LongEvalError, check_word, reason
from longeval.request import ModelRequest
from longeval.run.cluster import Cluster, Node, installed, ray_cluster
from longeval.run.executor import Executor, LocalExecutor
from longeval.run.host import Host
from longeval.run.overview import count
from longeval.run.study import Outcome, Plan, SkippedWork, Work, failed
from longeval.run.worker import Home, Told, Worker, order_of
from longeval.store.folder import Store
from longeval.values import parse_count, parse_number

logger = logging.getLogger(__name__)

MOST_DEATHS = 3
"""A unit is given up after so many workers died under it."""
ROOM_S = 60.0
"""Seconds without any worker after which the command says that it waits for room."""
MOST_PENDING = 8
"""Workers that Ray is asked for at a time, beyond those that it has started."""
WAIT_S = 0.2
"""Seconds between two looks at what workers have told."""
GPU_SHARE = 0.9
"""Part of a GPU's memory that cells on it may be estimated to need together."""
SMALLEST_SHARE = 8
"""At most so many workers share a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a worker gets of its machine."""

    cpus: float
    gpus: float
    memory: int
    """Bytes of the machine's memory; 0: not reserved."""

    def holds(self, needed: Room) -> bool:
        """Whether a worker that has this does work that needs as many devices, and no more memory."""
        return (self.cpus, self.gpus) == (needed.cpus, needed.gpus) and self.memory >= needed.memory


@dataclass(kw_only=True, slots=True, eq=False)
class Unit:
    """Work that is given to one worker."""

    work: Work
    cost: float
    room: Room
    deaths: list[str] = field(default_factory=list)
    """Why workers died under it."""

    @property
    def model(self) -> str:
        """The model that it needs."""
        return self.work.cells[0].model


@dataclass(kw_only=True, slots=True, eq=False)
class Member:
    """A worker of the pool."""

    name: str
    room: Room
    actor: Any
    started: Any
    """Ray's reference to the answer of `check_in`; None once it is there."""
    unit: Unit | None = None
    stream: Any = None
    """Ray's generator of the outcomes of its unit."""
    model: str = ""
    """The model that it holds."""
    kept: set[str] = field(default_factory=set)
    """Cells of its unit that are finished."""

    @property
    def awaited(self) -> Any:
        """What it is to tell next; None if it has nothing to do."""
        return self.started if self.started is not None else self.stream


EXECUTORS = ("local", "ray")


def choose_executor(
    name: str = "local", workers: str | int | None = None, gpus_per_worker: str | float | None = None
) -> Executor:
    """The executor for the values of `--executor`, `--workers` and `--gpus-per-worker`.

    Raises:
        LongEvalError: A value is refused, Ray isn't installed, or `accelerate launch` runs several processes already.
    """
    check_word("--executor", name, EXECUTORS)
    number = None if workers is None else parse_count(str(workers), flag="--workers")
    gpus = None if gpus_per_worker is None else parse_number(str(gpus_per_worker), flag="--gpus-per-worker")
    if name == "local" and number in (None, 1):
        if gpus is not None:
            raise LongEvalError(
                f"--gpus-per-worker {gpus:g}: would be ignored, there is one process with all devices",
                "Give --workers N or --executor ray too, or leave it out.",
            )
        return LocalExecutor()
    flag = "--executor ray" if name == "ray" else f"--workers {number}"
    if gpus is not None and (gpus <= 0 or (gpus > 1 and gpus != int(gpus))):
        raise LongEvalError(
            f"--gpus-per-worker {gpus:g}: must be a whole number, or a part of one GPU", "Such as 2, or 0.5."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LongEvalError(
            f"{flag}: the launcher has started several processes for this command already",
            "Start longeval without accelerate launch or torchrun, or leave the flag out.",
        )
    if not installed():
        raise LongEvalError(f"{flag}: the Python package ray is missing", "pip install 'longeval-rope[ray]'")
    return RayExecutor(join=name == "ray", workers=number, gpus_per_worker=gpus)


class RayExecutor:
    """See `Executor`. Ray is started, or joined, when there is the first work.

    Args:
        join: Whether RAY_ADDRESS is heeded.
        workers: Most workers; None: as many as there is room for.
        gpus_per_worker: GPUs of each worker; None: what its work is estimated to need.
        kind: The class of workers.
    """

    def __init__(
        self,
        *,
        join: bool,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        kind: type[Any] = Worker,
    ) -> None:
        self._join = join
        self._workers = workers
        self._gpus_per_worker = gpus_per_worker
        self._kind = kind
        self._open = contextlib.ExitStack()
        self._cluster: Cluster | None = None

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster = None
        self._open.close()

    def outcomes(self, plan: Plan, work: Sequence[Work], host: Host) -> Generator[Outcome]:
        """See `Executor`.

        Raises:
            LongEvalError: Workers can't be started, or see another request.
        """
        computed = [one for one in work if not isinstance(one, SkippedWork)]
        if computed:
            yield from self._computed(plan, computed, host)
        # In this process and last: no cell may be stored before it is known that a model can be loaded.
        skipped = [one for one in work if isinstance(one, SkippedWork)]
        yield from LocalExecutor().outcomes(plan, skipped, host)

    def _computed(self, plan: Plan, work: Sequence[Work], host: Host) -> Iterator[Outcome]:
        """The outcomes of work that workers do."""
        if self._cluster is None:
            self._cluster = self._open.enter_context(
                ray_cluster(host.store, join=self._join, workers=self._workers, gpus_per_worker=self._gpus_per_worker)
            )
        rooms = functools.partial(room_of, plan.request, self._cluster, host=host, units=len(work))
        units = [Unit(work=one, cost=sum(one.costs(host)), room=rooms(one)) for one in work]
        host.clear()  # later it would remove what workers have made meanwhile
        pool = _Pool(self._cluster, self._kind, plan, units, host)
        try:
            while not pool.done:
                pool.hire()
                for member in pool.heard():
                    yield from pool.follow(member)
        finally:
            pool.close()


class _Pool:
    """The workers of a run, and the work that waits for them."""

    def __init__(self, cluster: Cluster, kind: type[Any], plan: Plan, units: Sequence[Unit], host: Host) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._cluster = cluster
        self._plan = plan
        self._host = host
        self._waiting: dict[Room, list[Unit]] = defaultdict(list)
        """By what they need, the costliest first."""
        for unit in units:
            self._wait(unit)
        self._members: list[Member] = []
        self._numbers = itertools.count(1)
        self._failed_starts = 0
        self._waits_since: float | None = time.monotonic()
        """Since when there was no worker; None after the first one has started, or the wait was told."""
        self._kind = ray.remote(kind)
        # Beside this process: on any other machine it would end with that one.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not any(self._waiting.values()) and all(member.unit is None for member in self._members)

    def hire(self) -> None:
        """Gives work to workers that have none, ends those that no work fits, and asks Ray for more if work waits."""
        for member in [one for one in self._members if one.awaited is None]:
            self._employ(member)
            if member.unit is None:
                self._dismiss(member)
        most = MOST_PENDING if self._cluster.workers is None else self._cluster.workers - len(self._members)
        pending = Counter(member.room for member in self._members if member.started is not None)
        costliest = heapq.nlargest(
            MOST_PENDING,
            (unit for units in self._waiting.values() for unit in units[:MOST_PENDING]),
            key=lambda unit: unit.cost,
        )
        wanted = Counter(unit.room for unit in costliest) - pending
        for room in itertools.islice(wanted.elements(), max(0, most)):
            self._start(room)
        for member in [one for one in self._members if one.started is not None]:
            if next(self._fitting(member.room), None) is None:
                self._dismiss(member)
        self._tell_wait()
        self._host.num_workers(sum(member.unit is not None for member in self._members))

    def _tell_wait(self) -> None:
        """Says once that no worker has started for long, since others may use the cluster for hours."""
        if self._waits_since is not None and time.monotonic() - self._waits_since > ROOM_S:
            self._waits_since = None
            self._host.progress.note(
                f"no worker has started for {ROOM_S:g} s; the command waits until there is room for one on the "
                "cluster (ray status says what is in use)"
            )

    def _start(self, room: Room) -> None:
        name = f"worker-{next(self._numbers)}"
        log = os.path.abspath(self._host.store.local_path("logs", f"{name}.log")) if self._host.store.is_local else None
        home = Home(name=name, log=log)
        options = {"num_cpus": room.cpus, "num_gpus": room.gpus, "max_restarts": 0, "max_task_retries": 0}
        if room.memory:
            options["memory"] = room.memory
        actor = self._kind.options(**options).remote(home, functools.partial(_tell, self._board))
        self._members.append(Member(name=name, room=room, actor=actor, started=actor.check_in.remote()))

    def heard(self) -> list[Member]:
        """The workers that have something to tell; waits a moment for it, and passes on what was told of passes."""
        import ray

        awaited = {member.awaited: member for member in self._members if member.awaited is not None}
        ready = []
        if awaited:
            # As soon as one has something; then whatever else is there.
            ray.wait(list(awaited), num_returns=1, timeout=WAIT_S, fetch_local=False)
            ready, _ = ray.wait(list(awaited), num_returns=len(awaited), timeout=0, fetch_local=False)
        living = {member.name for member in self._members}
        for name, told in ray.get(self._board.take.remote()):
            of = self._host.progress.of_worker(name) if name in living else self._host.progress
            for method, arguments, named in told:
                if method == "before_write":
                    self._host.before_write()
                elif name in living or method == "advance":  # passes of a worker that has ended since still count
                    getattr(of, method)(*arguments, **named)
        return [awaited[one] for one in ready]

    def follow(self, member: Member) -> Iterator[Outcome]:
        """Yields what a worker has finished, and gives it work when it has none."""
        import ray

        try:
            if member.started is not None:
                ray.get(member.started)
                member.started, self._failed_starts, self._waits_since = None, 0, None
            else:
                assert member.unit is not None
                outcome = ray.get(next(member.stream))
                member.kept.add(outcome.cell)
                yield outcome
                return
        except StopIteration:
            member.unit = member.stream = None  # `hire` gives it more
        except ray.exceptions.RayTaskError as error:
            raise _told(error) from error
        except ray.exceptions.RayError as error:
            yield from self._bury(member, error)

    def _employ(self, member: Member) -> None:
        """Gives a worker its next unit: of its model if there is one, else the costliest."""
        while member.unit is None and (fitting := [*self._fitting(member.room)]):
            unit = next((one for one in fitting if one.model == member.model), fitting[0])
            self._waiting[unit.room].remove(unit)
            mine = self._host.claim(unit.work)
            if mine is None:
                continue
            unit.work = mine
            member.unit, member.model, member.kept = unit, unit.model, set()
            order = order_of(self._plan, mine, self._host)
            member.stream = member.actor.carry_out.options(num_returns="streaming").remote(order)

    def _fitting(self, room: Room) -> Iterator[Unit]:
        """The units that a worker with some room can do, the costliest first."""
        units = [found for needed, found in self._waiting.items() if room.holds(needed)]
        return heapq.merge(*units, key=lambda unit: -unit.cost)

    def _bury(self, member: Member, error: Exception) -> Iterator[Outcome]:
        """Forgets a worker that died; its unit waits again, or fails if too many died under it."""
        self._dismiss(member)  # it still lives where only the connection to it failed
        why, unit = _last_line(error), member.unit
        logger.warning("%s died: %s", member.name, why)
        if unit is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_DEATHS:
                raise LongEvalError(
                    f"{count(MOST_DEATHS, 'worker')} of the cluster died before they had any work ({why})",
                    "Install longeval with the same packages on all machines of the cluster, or see their logs.",
                )
            return
        unit.deaths.append(why)
        rest = unit.work.without(member.kept)
        if rest is None:
            return
        if len(unit.deaths) >= MOST_DEATHS:
            said = f"{count(MOST_DEATHS, 'worker')} died while they computed it, the last one because: {why}"
            for cell in rest.cells:
                yield failed(cell, said, "")
            return
        unit.work = rest
        self._wait(unit)

    def _wait(self, unit: Unit) -> None:
        """Puts a unit among those that wait."""
        bisect.insort(self._waiting[unit.room], unit, key=lambda one: -one.cost)

    def _dismiss(self, member: Member) -> None:
        """Ends a worker, so that Ray has room for another one."""
        import ray

        self._members.remove(member)
        self._host.progress.end_worker(member.name)
        with contextlib.suppress(Exception):  # it may be gone already
            ray.kill(member.actor)

    def close(self) -> None:
        """Ends all workers."""
        import ray

        for member in list(self._members):
            self._dismiss(member)
        with contextlib.suppress(Exception):
            ray.kill(self._board)
        _forget_logs(self._host.store)


class Board:
    """Keeps what workers tell of their passes until the command takes it. Ray runs it in a process of its own."""

    def __init__(self) -> None:
        self._told: list[tuple[str, Sequence[Told]]] = []

    def tell(self, name: str, told: Sequence[Told]) -> None:
        """Leaves what a worker tells."""
        self._told.append((name, told))

    def take(self) -> list[tuple[str, Sequence[Told]]]:
        """All that was left since the last call."""
        told, self._told = self._told, []
        return told


def _tell(board: Any, name: str, told: Sequence[Told]) -> None:
    board.tell.remote(name, told)


def room_of(request: Any, cluster: Cluster, work: Work, host: Host, units: int) -> Room:
    """What a worker needs for some work of a request.

    Without GPUs a worker gets the processors of a machine, or its part of them if there are several workers. With GPUs
    it gets as many as `--gpus-per-worker` says or as its engine is split over; else one, or a part of one where the
    estimated memory of several such cells fits into it, and where there are more workers than GPUs: Ray fills one GPU
    before it takes the next.

    Args:
        request: The request.
        cluster: Where it is carried out.
        work: Some of its work.
        host: The process that gives orders.
        units: How many units of work there are.
    """
    memory = work.memory(host)
    nodes = [node for node in cluster.nodes if node.gpus]
    if not nodes or not _on_gpu(request):
        # Heads of clusters are often set to compute nothing.
        nodes = [node for node in cluster.nodes if node.cpus] or list(cluster.nodes)
        on_one = 1 if cluster.workers is None else math.ceil(cluster.workers / len(nodes))
        cpus = max(1.0, min(node.cpus for node in nodes) // on_one)
        return Room(cpus=cpus, gpus=0.0, memory=min(memory or 0, max(node.memory for node in nodes)))
    if cluster.gpus_per_worker is not None:
        gpus = cluster.gpus_per_worker
        if gpus < (split := _split(request)) > 1:
            raise LongEvalError(
                f"--gpus-per-worker {gpus:g}: --backend {request.backend} is split over {split} GPUs",
                f"Give at least {split}, or leave it out.",
            )
    else:
        gpus = _gpus(request, memory, nodes)
        if gpus < 1:
            number = min(units, cluster.workers or units)
            gpus = max(gpus, 1 / math.ceil(number / sum(node.gpus for node in nodes)))
    cpus = min(node.cpus / node.gpus for node in nodes) * gpus
    # Rounded down, so that all parts of a GPU find processors.
    return Room(
        cpus=max(1.0, math.floor(cpus)) if gpus >= 1 else max(0.1, math.floor(100 * cpus) / 100), gpus=gpus, memory=0
    )


def _on_gpu(request: Any) -> bool:
    """Whether a request runs on a GPU where there is one."""
    if isinstance(request, ModelRequest) and capabilities(request.backend).remote:
        return False
    return str(getattr(request, "device", "auto")) != "cpu"


def _split(request: Any) -> int:
    """Over how many GPUs the engine of a request is split."""
    return capabilities(request.backend).devices(request) if isinstance(request, ModelRequest) else 1


def _gpus(request: Any, memory: int | None, nodes: Sequence[Node]) -> float:
    """GPUs of a worker whose work needs some bytes of memory, on machines that have GPUs.

    Raises:
        LongEvalError: The engine is split over more GPUs than any machine has.
    """
    most = max(node.gpus for node in nodes)
    if (split := _split(request)) > 1:
        if split > most:
            raise LongEvalError(
                f"--backend {request.backend}: is split over {split} GPUs, and no machine that Ray sees has more than "
                f"{most:g}",
                "Split it over fewer.",
            )
        return float(split)
    of_gpu = min(node.gpu_memory or 0 for node in nodes)
    if not memory or not of_gpu:
        return 1.0
    fitting = int(GPU_SHARE * of_gpu // memory)
    if fitting >= 2:
        return 1.0 / min(SMALLEST_SHARE, fitting)
    splits = getattr(request, "device_map", None) is not None
    return float(min(math.ceil(memory / (GPU_SHARE * of_gpu)), int(most))) if splits else 1.0


def _told(error: Any) -> Exception:
    """The error that a worker raised: what the user can correct as such, anything else as it is."""
    cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
    return cause if isinstance(cause, LongEvalError) else error


def _last_line(error: Exception) -> str:
    """What Ray says of a worker's death, without the ids and addresses that it lists."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("The actor")), lines[0] if lines else reason(error))
    return said.partition(" Some common causes")[0][:300]


def _forget_logs(store: Store) -> None:
    """Removes the logs of workers where the run left nothing else, since the request was wrong."""
    if store.is_local and not store.is_run_folder():
        shutil.rmtree(store.local_path("logs"), ignore_errors=True)
