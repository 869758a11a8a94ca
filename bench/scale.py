"""How long a study takes on several workers: a simulation of how executors hand out work, and a check of it.

    python -m bench.scale check      # units that sleep, on 1, 2 and 8 workers of Ray, against the simulation
    python -m bench.scale study      # the simulation alone: a study of 10,000 cells on 1, 8 and 64 GPUs
    python -m bench.scale overhead   # what Ray adds to a unit of work that does nothing

The simulation knows the rule of `longeval.run.pool`: a worker gets the costliest unit of the model that it holds, or,
where none of that model is left, the costliest of all. The check runs the executor itself with units of known times.
"""

from __future__ import annotations

import heapq
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import longeval.studies
from longeval.run.cluster import installed
from longeval.run.engine import run
from longeval.run.executor import Executor, LocalExecutor
from longeval.run.host import Host, Silent
from longeval.run.pool import RayExecutor
from longeval.run.study import find_study
from longeval.run.worker import Worker
from longeval.store.folder import Store

if TYPE_CHECKING:
    from longeval.run.cost import ModelSize

OVERHEAD_LIMIT_S = 0.2
"""Seconds that Ray's executor may add to a unit of work."""
STUDIES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "studies")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Work for one worker."""

    model: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """When a unit was under way, in seconds since the first unit was handed out."""

    unit: int
    """Its place among the units."""
    worker: int
    start: float
    stop: float


class Waiting:
    """Units that wait, and the rule by which a worker gets one."""

    def __init__(self, units: Sequence[Unit]) -> None:
        ranked = sorted(range(len(units)), key=lambda place: -units[place].seconds)
        self._units = units
        self._rank = {place: rank for rank, place in enumerate(ranked)}
        self._of: defaultdict[str, deque[int]] = defaultdict(deque)
        for place in ranked:
            self._of[units[place].model].append(place)

    def choice(self, held: str) -> int | None:
        """The unit for a worker that holds a model; None if nothing is left."""
        mine = self._of.get(held) or min(
            filter(None, self._of.values()), key=lambda own: self._rank[own[0]], default=None
        )
        return mine[0] if mine else None

    def remove(self, place: int) -> None:
        """Takes a unit out."""
        self._of[self._units[place].model].remove(place)


def simulate(
    units: Sequence[Unit], workers: int, *, load_s: Mapping[str, float] | None = None, overhead_s: float = 0.0
) -> list[Ran]:
    """The schedule of units on workers that all begin at 0, in the order in which units are handed out.

    Args:
        units: The units.
        workers: Number of workers.
        load_s: Model → seconds that a worker needs to load it.
        overhead_s: Seconds that a unit takes beside its own.
    """
    waiting = Waiting(units)
    free = [(0.0, worker, "") for worker in range(workers)]
    ran = []
    while free:
        now, worker, held = heapq.heappop(free)
        place = waiting.choice(held)
        if place is None:
            continue
        waiting.remove(place)
        unit = units[place]
        loading = (load_s or {}).get(unit.model, 0.0) if unit.model != held else 0.0
        stop = now + loading + unit.seconds
        ran.append(Ran(unit=place, worker=worker, start=now, stop=stop))
        heapq.heappush(free, (stop + overhead_s, worker, unit.model))
    return ran


def makespan(ran: Sequence[Ran]) -> float:
    """Seconds from the first start to the last stop."""
    return max(one.stop for one in ran) - min(one.start for one in ran)


def least_makespan(units: Sequence[Unit], workers: int) -> float:
    """No schedule is shorter: all work over all workers, or the longest unit."""
    return max(sum(unit.seconds for unit in units) / workers, max(unit.seconds for unit in units))


def most_makespan(units: Sequence[Unit], workers: int, load_s: float = 0.0) -> float:
    """No schedule of the rule is longer (Graham 1966): nobody idles while work waits, nor loads a model twice."""
    seconds = [unit.seconds for unit in units]
    loading = load_s * len({unit.model for unit in units})
    return sum(seconds) / workers + (1 - 1 / workers) * max(seconds) + loading


def against_rule(units: Sequence[Unit], handed: Sequence[tuple[int, str]]) -> int:
    """How many units, in the order in which they were handed to named workers, are not the rule's choice."""
    waiting, held, others = Waiting(units), {}, 0
    for place, worker in handed:
        others += waiting.choice(held.get(worker, "")) != place
        waiting.remove(place)
        held[worker] = units[place].model
    return others


def known_studies() -> None:
    """Puts bench/studies among the studies."""
    if STUDIES not in longeval.studies.__path__:
        longeval.studies.__path__.append(STUDIES)


class Sleeper(Worker):
    """A worker that knows the study of the bench."""

    def __init__(self, *arguments: Any) -> None:
        known_studies()
        super().__init__(*arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A schedule of Ray's executor beside the simulation of it."""

    workers: int
    units: int
    work_s: float
    """Seconds of all units together."""
    longest_s: float
    measured_s: float
    """From the first start to the last stop."""
    simulated_s: float
    least_s: float
    most_s: float
    against_rule: int
    """Units that were handed out against the rule."""
    idle_s: float
    """Mean seconds between two units of a worker."""
    began_s: float
    """From the start of Ray to that of the first unit."""


def check_schedule(request: Any, workers: int) -> Checked:
    """Lets Ray's executor carry out sleeping units, and compares what it did with the simulation."""

    plan = find_study("sleeps").plan(request, Silent())
    units = [Unit(model=work.cells[0].model, seconds=work.seconds) for work in plan.work]
    place_of = {cell.id: place for place, cell in enumerate(plan.cells)}
    handed: list[int] = []

    def claim(work: Any) -> Any:
        handed.append(place_of[work.cells[0].id])
        return work

    worker_of: dict[int, str] = {}
    ran: list[Ran] = []
    with tempfile.TemporaryDirectory() as folder, RayExecutor(join=False, workers=workers, kind=Sleeper) as executor:
        host = Host(store=Store(folder), progress=Silent(), load=_no_model, claim=claim)
        began = time.time()
        for outcome in executor.outcomes(plan, plan.work, host):
            record, (start, stop) = outcome.records[0], outcome.found
            place, worker = place_of[outcome.cell], str(record.provenance.worker)
            worker_of[place] = worker
            ran.append(Ran(unit=place, worker=int(worker.split()[0].partition("-")[2]), start=start, stop=stop))
    simulated = simulate(units, workers, load_s=dict.fromkeys({unit.model for unit in units}, request.load))
    return Checked(
        workers=workers,
        units=len(units),
        work_s=sum(unit.seconds for unit in units),
        longest_s=max(unit.seconds for unit in units),
        measured_s=makespan(ran),
        simulated_s=makespan(simulated),
        least_s=least_makespan(units, workers),
        most_s=most_makespan(units, workers, request.load),
        against_rule=against_rule(units, [(place, worker_of[place]) for place in handed]),
        idle_s=_mean_idle(ran),
        began_s=min(one.start for one in ran) - began,
    )


def _mean_idle(ran: Sequence[Ran]) -> float:
    """Mean seconds between two units of the same worker."""
    idle = []
    for worker in {one.worker for one in ran}:
        own = sorted((one for one in ran if one.worker == worker), key=lambda one: one.start)
        idle += [after.start - before.stop for before, after in itertools.pairwise(own)]
    return statistics.fmean(idle) if idle else 0.0


def _no_model(model: Any) -> Any:
    raise AssertionError("sleeping units need no model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """Seconds that executors add to a unit that does nothing, from claim to stored record."""

    units: int
    workers: int
    local_s: float
    """Seconds per unit in this process."""
    ray_s: float
    """Seconds per unit with Ray, from the first stored cell to the last."""
    start_s: float
    """Seconds until Ray's first cell is stored."""

    @property
    def ratio(self) -> float:
        """How many times as long Ray takes."""
        return self.ray_s / self.local_s


def measure_overhead(units: int, workers: int) -> Overhead:
    """Runs units that do nothing with both executors, through the engine: leases, records and artefacts on disk."""

    local, _ = _timed_run(units, LocalExecutor())
    ray, start_s = _timed_run(units, RayExecutor(join=False, workers=workers, kind=Sleeper))
    return Overhead(units=units, workers=workers, local_s=local, ray_s=ray, start_s=start_s)


def measure_overheads() -> list[Overhead]:
    """`measure_overhead` with one and two workers; nothing where Ray isn't installed."""
    known_studies()
    return [measure_overhead(200, workers) for workers in (1, 2)] if installed() else []


def _timed_run(units: int, executor: Executor) -> tuple[float, float]:
    """Seconds per unit after the first, and seconds until the first is stored."""

    study = find_study("sleeps")
    stored: list[float] = []
    with tempfile.TemporaryDirectory() as folder, executor:
        plan = study.plan(study.Request(units=units), Silent())
        began = time.perf_counter()
        run(plan, Store(folder), Silent(), executor=executor, told=lambda outcome: stored.append(time.perf_counter()))
    return (stored[-1] - stored[0]) / (units - 1), stored[0] - began


GEMM_RATE = 789e12
"""Operations per second of a large bfloat16 matrix product on an H200 (reports/gpu)."""
OF_GEMM = 0.68
"""The part of it that a forward pass of a 7B model reaches at 32k tokens (reports/gpu)."""
READ_BYTES = 1e9
"""Bytes per second at which a worker loads weights: an assumption, a good disk or object storage."""
WEIGHTS = {"7B": 13.5e9, "70B": 70.6e9}
"""Bytes of the weights: bfloat16, and 8 bits a weight, which fits one H200."""
METHODS, MODELS = 10, 5
"""Methods of the study, and models of each size."""
SAMPLES = tuple(round(20 * 25 ** (task / 19)) for task in range(20))
"""Samples of each task: from 20 to 500."""
LENGTHS = (4096, 8192, 16384, 32768, 65536)


def sizes() -> dict[str, ModelSize]:
    """The sizes of Llama 2 7B and Llama 3.1 70B, from their configurations."""
    from longeval.run.cost import ModelSize  # imports torch, which workers of the bench must not

    def size(hidden: int, intermediate: int, layers: int, heads: int, key_value: int, vocab: int) -> ModelSize:
        width, key_value_width = hidden, key_value * (hidden // heads)
        layer = 2 * hidden * width + 2 * hidden * key_value_width + 3 * hidden * intermediate + 2 * hidden
        return ModelSize(
            num_parameters=layers * layer + 2 * vocab * hidden + hidden,
            num_embedding=vocab * hidden,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_layers=layers,
            num_heads=heads,
            attention_width=width,
            key_value_width=key_value_width,
            vocab_size=vocab,
            tied=False,
        )

    return {"7B": size(4096, 11008, 32, 32, 32, 32000), "70B": size(8192, 28672, 80, 64, 8, 128256)}


def study_units() -> list[Unit]:
    """10,000 units: a method, length and task of a model is one. Every sample fills the window and is read anew."""
    units = []
    for name, size in sizes().items():
        for length in LENGTHS:
            flops = size.flops_per_token * length + size.attention_flops(length) + size.head_flops(1)
            for samples in SAMPLES:
                seconds = samples * flops / (OF_GEMM * GEMM_RATE)
                units += [Unit(model=f"{name}-{model}", seconds=seconds) for model in range(MODELS)] * METHODS
    return units


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """A study on so many GPUs, each with one worker."""

    units: int
    gpus: int
    seconds: float
    least_s: float
    longest_s: float
    loads: int
    """How many times a worker loads a model."""


def simulate_study(gpus: int, *, start_s: float, overhead_s: float) -> Simulated:
    """The study of `study_units` on some GPUs, where workers start within `start_s`."""
    units = study_units()
    load_s = {unit.model: WEIGHTS[unit.model.partition("-")[0]] / READ_BYTES for unit in units}
    ran = simulate(units, gpus, load_s=load_s, overhead_s=overhead_s)
    held: dict[int, str] = {}
    loads = 0
    for one in ran:
        loads += held.get(one.worker) != units[one.unit].model
        held[one.worker] = units[one.unit].model
    return Simulated(
        units=len(units),
        gpus=gpus,
        seconds=start_s + makespan(ran),
        least_s=least_makespan(units, gpus),
        longest_s=max(unit.seconds for unit in units),
        loads=loads,
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Workers = Annotated[str, typer.Option(help="Comma list of numbers of workers.")]


@app.command()
def check(workers: Workers = "1,2,8", units: int = 100, median: float = 0.5, seed: int = 0) -> None:
    """Ray's executor with units that sleep, against the simulation."""
    known_studies()
    request = find_study("sleeps").Request(units=units, models=4, median=median, load=0.5, seed=seed)
    rows = [check_schedule(request, number) for number in _numbers(workers)]
    _print_table(
        ("workers", "units", "work", "longest", "least", "simulated", "measured", "most", "idle", "against the rule"),
        [
            (
                f"{row.workers}",
                f"{row.units}",
                *(f"{value:.1f} s" for value in (row.work_s, row.longest_s, row.least_s, row.simulated_s)),
                *(f"{value:.1f} s" for value in (row.measured_s, row.most_s)),
                f"{row.idle_s:.3f} s",
                f"{row.against_rule}",
            )
            for row in rows
        ],
    )


@app.command()
def study(gpus: Workers = "1,8,64", start: float = 20.0, overhead: float = 0.02) -> None:
    """A study of 10,000 cells, simulated; --start and --overhead in seconds."""
    rows = [simulate_study(number, start_s=start, overhead_s=overhead) for number in _numbers(gpus)]
    _print_table(
        ("GPUs", "units", "time", "least possible", "longest unit", "models loaded"),
        [
            (
                f"{row.gpus}",
                f"{row.units:,}",
                *(f"{value / 3600:,.1f} h" for value in (row.seconds, row.least_s, row.longest_s)),
                f"{row.loads}",
            )
            for row in rows
        ],
    )


@app.command()
def overhead(workers: Workers = "1,2", units: int = 200) -> None:
    """What Ray's executor adds to a unit of work that does nothing."""
    known_studies()
    _print_table(
        ("units", "workers", "this process", "Ray", "ratio", "first cell"),
        [
            (
                f"{row.units:,}",
                f"{row.workers}",
                f"{row.local_s:.4f} s",
                f"{row.ray_s:.4f} s",
                f"{row.ratio:.1f}×",
                f"{row.start_s:.0f} s",
            )
            for row in (measure_overhead(units, number) for number in _numbers(workers))
        ],
    )


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    print(f"| {' | '.join(columns)} |")
    print(f"|{'--:|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    app()
