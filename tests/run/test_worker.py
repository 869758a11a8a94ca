"""A worker keeps its plan and its model from one order to the next, and refuses what it can't do alike."""

from __future__ import annotations

import dataclasses

import pytest

from longeval.backends import base
from longeval.errors import LongEvalError
from longeval.run.host import Host, Silent, backend_of
from longeval.run.worker import Home, Worker, order_of
from longeval.studies.ppl import plan as ppl_plan


def test_a_model_is_loaded_once_for_all_its_orders_and_freed_for_another_request(request_spec, store, monkeypatch):
    loaded, closed, planned = [], [], []
    hf = base.capabilities("hf")

    def load(spec, model):
        backend = hf.load(spec, model)
        loaded.append(model.name)
        close = backend.close
        monkeypatch.setattr(backend, "close", lambda: (closed.append(model.name), close()))
        return backend

    monkeypatch.setitem(base.BACKENDS._things, "hf", dataclasses.replace(hf, load=load))
    original = ppl_plan.plan_ppl
    monkeypatch.setattr("longeval.studies.ppl.plan.plan_ppl", lambda *a, **k: (planned.append(1), original(*a, **k))[1])
    worker = Worker(Home(name="w"))
    for number, spec in enumerate(
        (request_spec(factor="each", pe=("yarn",)), request_spec(protocol="sliding", stride=16))
    ):
        plan = original(spec)
        assert len(plan.work) > 1
        host = Host(store=store, progress=Silent(), load=backend_of(spec))
        for work in plan.work:
            outcomes = list(worker.carry_out(order_of(plan, work, host)))
            assert {outcome.records[0].status for outcome in outcomes} == {"ok"}
        assert (len(loaded), len(closed), len(planned)) == (number + 1, number, number + 1)


def test_a_worker_of_another_version_is_refused():
    with pytest.raises(LongEvalError, match="same version"):
        Worker(Home(name="w", version="0.0.0"))
