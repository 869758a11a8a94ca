"""What every study must do: a test class that a study's tests inherit, with a request and what loads its model.

The engine has its own tests (`test_engine.py`); here a study's plan and work are held to what the engine relies on.
"""

from __future__ import annotations

import dataclasses
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longeval.backends.base import BackendError, OutOfMemoryError
from longeval.errors import LongEvalError
from longeval.run.engine import run
from longeval.run.host import Host, Silent, backend_of
from longeval.run.study import find_study
from longeval.run.worker import Home, Worker, order_of
from longeval.store.folder import Store
from longeval.store.records import record_from_json

IN_ANOTHER_PROCESS = """
import pickle, sys
from longeval.run.worker import Home, Worker

outcomes = list(Worker(Home(name="w")).carry_out(pickle.load(sys.stdin.buffer)))
sys.stdout.buffer.write(pickle.dumps(outcomes))
"""


@dataclasses.dataclass
class Made:
    """A request of a study with several works, and what loads its model (None: as always)."""

    request: Any
    load: Callable[[Any], Any] | None = None


class Told(Silent):
    """A progress that remembers; `interrupt_after` cells are stored, Ctrl-C comes."""

    def __init__(self, interrupt_after: int | None = None):
        self.costs: list[float] = []
        self.advanced: list[float] = []
        self.passes = 0
        self.cells: list[str] = []
        self.interrupt_after = interrupt_after

    def begin(self, costs):
        self.costs = list(costs)

    def stage(self, what, num_passes, noun, *, details=False):
        self.passes += num_passes

    def advance(self, tokens, cost, detail):
        self.advanced.append(cost)

    def finished(self, record):
        self.cells.append(record.cell)
        if len(self.cells) == self.interrupt_after:
            raise KeyboardInterrupt


@dataclasses.dataclass
class Broken:
    """A work that raises instead of computing, as long as it has all its cells."""

    inner: Any
    error: BaseException

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run(self, host):
        raise self.error
        yield

    def without(self, ids):
        left = self.inner.without(ids)
        return None if left is None else Broken(left, self.error)


class StudyContract:
    """Inherit it and give `made`."""

    @pytest.fixture
    def made(self) -> Made:
        raise NotImplementedError

    @pytest.fixture
    def plan(self, made):
        return find_study(made.request.command).plan(made.request, Silent())

    def carry_out(self, made, plan, store, told=None, **options):
        return run(plan, store, told or Told(), load=made.load, **options)

    def test_every_cell_is_in_one_work_and_named_once(self, plan):
        ids = [cell.id for cell in plan.cells]
        assert sorted(ids) == sorted(cell.id for work in plan.work for cell in work.cells)
        assert len(set(ids)) == len(ids) and len(plan.work) > 1
        assert [cell.cell for cell in plan.planned().cells][: len(ids)] == ids

    def test_the_same_request_has_the_same_cells(self, made, plan):
        again = find_study(made.request.command).plan(made.request, Silent())
        assert [cell.id for cell in again.cells] == [cell.id for cell in plan.cells]

    def test_progress_is_told_as_much_as_was_announced(self, made, plan, store):
        told = Told()
        result = self.carry_out(made, plan, store, told)
        assert sorted(told.advanced) == pytest.approx(sorted(told.costs))
        assert told.passes == len(told.costs) > 0
        assert sorted(told.cells) == sorted(cell.id for cell in plan.cells)
        assert (result.computed, result.reused, result.failed) == (len(plan.cells), 0, 0)

    def test_what_is_stored_is_not_computed_again_unless_it_is_to_be(self, made, plan, store):
        first = self.carry_out(made, plan, store)
        told = Told()
        again = self.carry_out(made, plan, store, told)
        assert (again.computed, again.reused, told.costs) == (0, len(plan.cells), [])
        assert again.records == first.records
        fresh = self.carry_out(made, plan, store, fresh=True)
        assert (fresh.computed, fresh.reused) == (len(plan.cells), 0)
        values = [[(record.cell, record.metric, record.value) for record in one.records] for one in (first, fresh)]
        assert values[0] == values[1]

    def test_a_cell_whose_artefact_is_lost_is_computed_again(self, made, plan, store):
        self.carry_out(made, plan, store)
        lost = plan.cells[0].id
        (artefact,) = (path for path in Path(store.path).glob(f"*/{lost}.*") if path.parent.name != "cells")
        artefact.unlink()
        assert self.carry_out(made, plan, store).computed == 1
        assert artefact.exists()

    def test_an_interrupt_keeps_finished_cells_and_the_next_run_goes_on(self, made, plan, store):
        with pytest.raises(KeyboardInterrupt):
            self.carry_out(made, plan, store, Told(interrupt_after=1))
        assert len(plan.stored(store)) == 1
        result = self.carry_out(made, plan, store)
        assert (result.computed, result.reused) == (len(plan.cells) - 1, 1)

    def test_a_work_that_fails_says_why_and_the_others_go_on(self, made, plan, store):
        broken = dataclasses.replace(plan, work=(Broken(plan.work[0], ZeroDivisionError("a bug")), *plan.work[1:]))
        result = self.carry_out(made, broken, store)
        failed = [record for record in result.records if record.status == "failed"]
        lost = {cell.id: cell.metric for cell in plan.work[0].cells}
        own = [record for record in failed if record.cell in lost]
        assert {record.cell: record.metric for record in own} == lost
        assert {record.error for record in own} == {"ZeroDivisionError: a bug"}
        assert [record_from_json(record.to_json()) for record in failed] == failed
        assert len(plan.stored(store)) == len(plan.cells) - len(lost)
        assert self.carry_out(made, plan, store).computed == len(lost)

    def test_where_memory_runs_out_what_is_smaller_goes_on(self, made, plan, store):
        work = max(plan.work, key=lambda one: len(one.cells))
        broken = [Broken(one, OutOfMemoryError("no room")) if one is work else one for one in plan.work]
        result = self.carry_out(made, dataclasses.replace(plan, work=tuple(broken)), store)
        smaller = work.smaller()
        kept = {cell.id for cell in smaller.cells} if smaller else set()
        assert kept < {cell.id for cell in work.cells}
        own = {cell.id for cell in work.cells}
        failed = {r.cell: r.error for r in result.records if r.status == "failed" and r.cell in own}
        assert set(failed) == own - kept
        assert all(reason.startswith("out of memory") and reason.endswith("no room") for reason in failed.values())

    def test_a_model_that_cannot_be_run_ends_the_run_only_where_nothing_is_there(self, made, plan, store):
        error = BackendError("no weights", "Get them.")
        broken = dataclasses.replace(plan, work=tuple(Broken(one, error) for one in plan.work))
        with pytest.raises(BackendError) as caught:
            self.carry_out(made, broken, store)
        assert caught.value is error
        assert not store.is_run_folder()
        result = self.carry_out(made, broken, store, under_way=True)
        cells = {cell.id for cell in plan.cells}
        assert {record.error for record in result.records if record.cell in cells} == {str(error)}

    def test_work_is_carried_out_in_another_process(self, made, plan, store, tmp_path):
        """An order travels by pickle, and so do the outcomes."""
        own = run(plan, store, Silent())
        work = plan.work[-1]
        elsewhere = Host(store=Store(str(tmp_path / "elsewhere")), progress=Silent(), load=backend_of(made.request))
        sent = pickle.dumps(order_of(plan, work, elsewhere))
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
        answer = subprocess.run(command, input=sent, capture_output=True, check=False)
        assert answer.returncode == 0, answer.stderr.decode()
        found = {outcome.cell: outcome for outcome in pickle.loads(answer.stdout)}
        assert set(found) == {cell.id for cell in work.cells}
        for cell, outcome in found.items():
            assert store.load(cell).status == "ok" and outcome.found is not None
            here = [(r.metric, pytest.approx(r.value, rel=1e-6)) for r in own.records if r.cell == cell]
            assert [(record.metric, record.value) for record in outcome.records] == here
            assert {record.provenance.worker for record in outcome.records} == {f"w on {platform.node()}"}

    def test_a_worker_computes_one_order_after_another_and_tells_its_passes(self, made, plan, store):
        told = []
        worker = Worker(Home(name="w"), lambda name, calls: told.extend(calls))
        host = Host(store=store, progress=Silent(), load=backend_of(made.request))
        costs = [cost for work in plan.work for cost in work.costs(host)]
        cells = [outcome.cell for work in plan.work for outcome in worker.carry_out(order_of(plan, work, host))]
        assert sorted(cells) == sorted(cell.id for cell in plan.cells)
        assert sum(len(arguments) == 3 for name, arguments, _ in told if name == "advance") == len(costs)

    def test_memory_of_work_is_bytes_or_not_known(self, made, plan, store):
        host = Host(store=store, progress=Silent(), load=backend_of(made.request))
        for work in plan.work:
            memory = work.memory(host)
            assert memory is None or memory >= 0

    def test_an_order_of_cells_that_are_not_here_is_refused(self, made, plan, store):
        host = Host(store=store, progress=Silent(), load=backend_of(made.request))
        order = dataclasses.replace(order_of(plan, plan.work[0], host), cells=("0" * 16,))
        with pytest.raises(LongEvalError, match="other cells"):
            list(Worker(Home(name="w")).carry_out(order))
