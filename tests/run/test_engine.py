"""The engine with work that only counts: skipped cells, what follows from cells, the order of outcomes, errors."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest

from longeval.backends.base import BackendError, OutOfMemoryError
from longeval.errors import LongEvalError, WriteError
from longeval.rope.build import parse_method_name
from longeval.run.cell import Cell
from longeval.run.engine import run
from longeval.run.host import Host, Silent
from longeval.run.study import Outcome, Plan, SkippedWork
from longeval.store.records import Record, provenance
from longeval.studies.ppl.request import PplRequest


def cell(name: str, length: int = 8) -> Cell:
    fields = {"model": "m", "factor": None, "backend": "hf", "dtype": "float32", "metric": "accuracy"}
    return Cell(id=name, task=name, length=length, pe=parse_method_name("none"), params={"seed": 0}, **fields)


def whole(one: Cell, metric: str = "accuracy", value: float = 0.5) -> Record:
    return Record(**one.fields(), metric=metric, value=value, status="ok", provenance=provenance(""))


@dataclass(frozen=True)
class CountedWork:
    """Yields a record a cell; cells longer than `room` run out of memory, and `error` comes after the first cell."""

    cells: tuple[Cell, ...]
    room: int = 1 << 20
    error: Exception | None = None
    ran: list[str] = field(default_factory=list)

    def costs(self, host):
        return [1.0 for _ in self.cells]

    def run(self, host):
        for one in self.cells:
            if one.length > self.room:
                raise OutOfMemoryError("no room")
            self.ran.append(one.id)
            yield Outcome(records=(whole(one, "loss", 1.0), whole(one)))
            if self.error is not None:
                raise self.error

    def without(self, ids):
        left = tuple(one for one in self.cells if one.id not in ids)
        return dataclasses.replace(self, cells=left) if left else None

    def smaller(self):
        return self.without({self.cells[-1].id})

    def no_memory(self, reason):
        return f"out of memory: {reason}"

    def memory(self, host):
        return None


def plan_of(*work: Any, kind: type[Plan] = Plan, cells: tuple[Cell, ...] | None = None) -> Plan:
    request = PplRequest(model=("m",), pe=("none",), lengths=(8,))
    found = tuple(one for part in work for one in part.cells)
    return kind(request=request, cells=cells or found, work=tuple(work), notes=())


SIZES = (cell("a", 8), cell("b", 16), cell("c", 32))
TWO = (cell("a"), cell("b"))


@pytest.fixture(autouse=True)
def without_artefacts(monkeypatch):
    """Records of these cells are made from nothing."""
    monkeypatch.setattr("longeval.store.folder.artefact_of", lambda record: None)


class Heard(Silent):
    """Remembers the metric of each record that it is told of."""

    def __init__(self):
        self.metrics = []

    def finished(self, record):
        self.metrics.append((record.cell, record.metric))


def statuses(result):
    return {record.cell: record.status for record in result.records}


def test_records_come_in_the_plans_order_and_progress_hears_of_the_main_metric(store):
    a, b = TWO
    heard = Heard()
    result = run(plan_of(CountedWork((b,)), CountedWork((a,)), cells=(a, b)), store, heard)
    assert [(r.cell, r.metric) for r in result.records] == [
        (name, metric) for name in ("a", "b") for metric in ("loss", "accuracy")
    ]
    assert heard.metrics == [("b", "accuracy"), ("a", "accuracy")]


def test_memory_runs_out_once_for_each_size_that_is_too_large(store):
    work = CountedWork(SIZES, room=8)
    result = run(plan_of(work), store, Silent())
    assert statuses(result) == {"a": "ok", "b": "failed", "c": "failed"}
    assert work.ran == ["a"] and result.failed == 2  # a finished cell is not computed again


def test_what_a_failed_work_held_is_free_when_smaller_work_is_tried(store):
    class Tensors:
        """Stands for what a pass holds."""

    held, alive = [], []

    class Holding(CountedWork):
        def run(self, host):
            alive.append([ref() is not None for ref in held])
            tensors = Tensors()
            held.append(weakref.ref(tensors))
            yield from CountedWork.run(self, host)

    gc.disable()
    try:
        run(plan_of(Holding(SIZES, room=4)), store, Silent())
    finally:
        gc.enable()
    assert alive == [[], [False], [False, False]]


def test_cells_that_are_done_before_an_error_stay_done(store):
    result = run(plan_of(CountedWork(TWO, error=BackendError("lost"))), store, Silent())
    assert statuses(result) == {"a": "ok", "b": "failed"}


def test_a_folder_that_cannot_be_written_ends_the_run_whatever_is_there(store):
    with pytest.raises(WriteError):
        run(plan_of(CountedWork(TWO, error=WriteError("disk full"))), store, Silent(), under_way=True)
    assert store.finished("a") is not None and store.load("b") is None


def test_what_has_nothing_to_compute_is_skipped_without_asking_for_room_to_write(store, monkeypatch):
    monkeypatch.setattr(store, "check_writable", lambda: pytest.fail("nothing is computed"))
    skipped = SkippedWork(cells=(cell("a"),), reason="too short")
    (record,) = run(plan_of(skipped), store, Silent()).records
    assert (record.status, record.error, record.metric) == ("skipped", "too short", "accuracy")


def test_what_follows_from_cells_is_stored_once(store):
    group = cell("group")

    class WithAverage(Plan):
        def derived(self, records, store):
            average = sum(found[-1].value for found in records.values()) / len(records)
            yield Outcome(records=(whole(group, value=average),))

    plan = plan_of(CountedWork(TWO), kind=WithAverage)
    first, again = run(plan, store, Silent()), run(plan, store, Silent())
    assert first.records[-1].value == 0.5 and again.records == first.records
    assert (first.computed, again.computed) == (2, 0)


def test_a_fresh_start_clears_once_and_before_the_first_file(store):
    seen = []

    class Cleared(Plan):
        def clear(self, store, busy):
            seen.append(sorted(found.cell for found in store.cells()))

    plan = plan_of(CountedWork(TWO), kind=Cleared)
    run(plan, store, Silent())
    assert seen == []
    store._fs.rm(f"{store.path}/cells", recursive=True)
    run(plan, store, Silent(), fresh=True)
    assert seen == [[]]


def test_a_host_has_one_model_at_a_time_and_one_instance_of_what_is_kept(store):
    events = []

    class Loaded:
        device = "cpu (x)"

        def __init__(self, model):
            events.append(f"load {model}")
            self.model = model

        def close(self):
            events.append(f"close {self.model}")

    host = Host(store=store, progress=Silent(), load=Loaded)
    assert host.backend("a") is host.backend("a") and host.device == "cpu (x)"
    host.backend("b")
    host.close()
    assert events == ["load a", "close a", "load b", "close b"] and host.device == ""
    assert host.kept(list) is host.kept(list)


def test_a_model_that_cannot_be_loaded_is_an_error_of_the_backend(store):
    def refuse(model):
        raise LongEvalError("--model x: damaged", "Get another one.")

    with pytest.raises(BackendError) as caught:
        Host(store=store, progress=Silent(), load=refuse).backend("x")
    assert (caught.value.problem, caught.value.remedy) == ("--model x: damaged", "Get another one.")


@pytest.mark.parametrize("kind", [LongEvalError, BackendError, WriteError])
def test_errors_travel_between_processes_with_problem_and_remedy(kind):
    error = pickle.loads(pickle.dumps(kind("--x 1: too small", "Give 2.")))
    assert (type(error), error.problem, error.remedy) == (kind, "--x 1: too small", "Give 2.")
