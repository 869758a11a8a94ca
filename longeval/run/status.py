"""The state of a run folder: which cells are done, run now, failed or are left, and which processes compute them.

It is read from the folder alone, so it can be asked for from any machine, while commands compute in it or not. Nothing
is written.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from longeval.run.leases import RUNNERS, Lease, Runner, leases, runners
from longeval.store.folder import Store, StoredCell
from longeval.store.plan import PlannedCell

State = Literal["done", "running", "failed", "skipped", "left"]
"""The state of a cell. `left`: it is not stored, or damaged, and nobody computes it now."""

STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestStatus:
    """One request of a run folder."""

    command: str | None
    """Name of the study; None for stored cells that no request of plan.json names."""
    cells: tuple[PlannedCell, ...]
    """Its cells. Averages of groups are no cells of their own here."""
    states: Mapping[State, int]
    """Number of cells in each state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningCell:
    """A cell that a living process computes now."""

    cell: PlannedCell
    runner: Runner
    since: str
    """When the process took it, ISO 8601 in UTC. Cells that share passes are taken together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A reason for which cells failed."""

    error: str
    cells: tuple[PlannedCell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderStatus:
    """The state of a run folder."""

    path: str
    date: str
    """When it was read, ISO 8601 in UTC."""
    has_plan: bool
    """Whether it has a plan.json. Without one it is not known what is left: a run writes it with its first finished
    cell, and earlier versions wrote none."""
    requests: tuple[RequestStatus, ...]
    """The requests of plan.json, oldest first, and what is stored beside them."""
    states: Mapping[State, int]
    """Number of cells in each state; a cell of several requests counts once."""
    running: tuple[RunningCell, ...]
    failures: tuple[Failure, ...]
    """The most frequent first."""
    damaged: tuple[str, ...]
    """Ids of stored cells that can't be used. They are left."""
    alive: tuple[Runner, ...]
    """The processes that compute in the folder now."""
    dead: tuple[Runner, ...]
    """Those that ended without tidying up, such as by kill -9. The next command removes their files."""

    def to_json(self) -> dict[str, Any]:
        """The object that `longeval status --json` writes; docs/guide.md describes it."""
        return {
            "folder": self.path,
            "date": self.date,
            "has_plan": self.has_plan,
            "cells": dict(self.states),
            "requests": [
                {"command": one.command, **_values(one.cells), "cells": dict(one.states)} for one in self.requests
            ],
            "running": [{**_named(one.cell), "since": one.since, "process": one.runner.id} for one in self.running],
            "failed": [{"error": one.error, "cells": list(map(_named, one.cells))} for one in self.failures],
            "damaged": list(self.damaged),
            "processes": [_process(one, alive=one in self.alive) for one in (*self.alive, *self.dead)],
        }


def has_begun(store: Store) -> bool:
    """Whether a run has begun in a folder; it has no plan.json before its first cell is finished."""
    return bool(store.names(RUNNERS)) or store.plan() is not None or store.is_run_folder()


def read_status(path: str) -> FolderStatus:
    """Reads the state of a run folder.

    Args:
        path: A local folder or an fsspec URL.

    Raises:
        LongEvalError: It is not a run folder, or can't be read.
    """
    store = Store(path)
    if not has_begun(store):
        store = Store(path, create=False)  # which says what a run folder is
    plan = store.plan()
    # In this order: a cell that is finished meanwhile counts as running, and not as left.
    taken, found = leases(store), runners(store)
    stored = {cell.cell: cell for cell in store.cells()}
    alive = tuple(one for one in found if one.alive)
    running = _running(taken, alive, plan.cells if plan else ())
    now_running = {one.cell.cell for one in running}
    states = {cell: "running" if cell in now_running else _state(stored.get(cell)) for cell in (*stored, *now_running)}

    requests: list[tuple[str | None, tuple[PlannedCell, ...]]] = []
    requests += [(request.command, _computed(request.cells)) for request in (plan.requests if plan else ())]
    planned = {cell.cell for _, cells in requests for cell in cells}
    others = {cell: _planned(one) for cell, one in stored.items()} | {one.cell.cell: one.cell for one in running}
    beside = _computed(cell for name, cell in others.items() if name not in planned)
    if beside:
        requests.append((None, beside))
    everything = {cell.cell: cell for _, cells in requests for cell in cells}
    return FolderStatus(
        path=store.path,
        has_plan=plan is not None,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        requests=tuple(
            RequestStatus(command=command, cells=cells, states=_counted(cells, states)) for command, cells in requests
        ),
        states=_counted(everything.values(), states),
        running=running,
        failures=_failures(everything, states, stored),
        damaged=tuple(store.damaged),
        alive=alive,
        dead=tuple(one for one in found if one not in alive),
    )


def _running(
    taken: Mapping[str, Lease], alive: Iterable[Runner], planned: Iterable[PlannedCell]
) -> tuple[RunningCell, ...]:
    """The cells whose leases belong to living processes: the longest first, then in the order of the plan."""
    places = {cell.cell: place for place, cell in enumerate(planned)}
    by_id = {one.id: one for one in alive}
    found = [
        RunningCell(cell=lease.cell, runner=by_id[lease.runner], since=lease.since)
        for lease in taken.values()
        if lease.cell is not None and lease.runner in by_id
    ]
    return tuple(sorted(found, key=lambda one: (one.since, places.get(one.cell.cell, 0), one.cell.pe, one.cell.length)))


def _state(cell: StoredCell | None) -> State:
    if cell is None or (cell.status == "ok" and not cell.with_artefact):  # the next run computes it again
        return "left"
    return {"ok": "done", "failed": "failed", "skipped": "skipped"}[cell.status]  # type: ignore[return-value]


def _counted(cells: Iterable[PlannedCell], states: Mapping[str, str]) -> dict[State, int]:
    counts = Counter(states.get(cell.cell, "left") for cell in cells)
    return {state: counts[state] for state in STATES}


def _computed(cells: Iterable[PlannedCell]) -> tuple[PlannedCell, ...]:
    """Cells without averages of groups, which follow from others."""
    return tuple(cell for cell in cells if cell.params.get("members") is None)


def _planned(cell: StoredCell) -> PlannedCell:
    """A stored cell as an entry of a plan."""
    record = cell.records[0]
    return PlannedCell(**{field.name: getattr(record, field.name) for field in dataclasses.fields(PlannedCell)})


def _failures(
    cells: Mapping[str, PlannedCell], states: Mapping[str, str], stored: Mapping[str, StoredCell]
) -> tuple[Failure, ...]:
    by_reason: dict[str, list[PlannedCell]] = {}
    for name, cell in cells.items():
        if states.get(name) == "failed":
            by_reason.setdefault(stored[name].records[0].error or "", []).append(cell)
    found = [Failure(error=error, cells=tuple(failed)) for error, failed in by_reason.items()]
    return tuple(sorted(found, key=lambda one: -len(one.cells)))


def _values(cells: Iterable[PlannedCell]) -> dict[str, list[Any]]:
    """What cells ask for: the values of each field, each once, in order."""
    cells = tuple(cells)
    names = {"models": "model", "methods": "pe", "lengths": "length", "data": "data", "tasks": "task"}
    found = {plural: list(dict.fromkeys(getattr(cell, name) for cell in cells)) for plural, name in names.items()}
    return {plural: [value for value in values if value is not None] for plural, values in found.items()}


def _named(cell: PlannedCell) -> dict[str, Any]:
    """What tells a cell from others."""
    return {name: getattr(cell, name) for name in ("cell", "model", "pe", "factor", "length", "data", "task", "params")}


def _process(runner: Runner, *, alive: bool) -> dict[str, Any]:
    """A process as plain JSON types."""
    said = datetime.datetime.fromtimestamp(runner.beat, datetime.UTC).isoformat(timespec="seconds")
    kept = ("id", "host", "pid", "command", "workers", "since", "finished", "seconds_left")
    return {**{name: getattr(runner, name) for name in kept}, "last_sign": said, "alive": alive}
