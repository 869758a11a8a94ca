"""The stored plan: what comes back, a repeated request, and files that are damaged or of something else."""

from __future__ import annotations

import json

import pytest
from fake import FakeBackend
from known import carry_out, log_position

from longeval.store.plan import PlannedCell, PlannedRequest, StoredPlan, plan_from_json


def planned(cell, **changes):
    fields = {"model": "m", "pe": "yarn", "factor": 2.0, "length": 64, "data": "d", "task": None, "protocol": "prefix"}
    return PlannedCell(cell=cell, backend="hf", **fields | changes)


def request(digest, *cells):
    return PlannedRequest(command="ppl", digest=digest, cells=tuple(map(planned, cells)))


def test_a_plan_comes_back_as_it_was(store):
    assert store.plan() is None
    group = planned("c", data=None, task="both", protocol=None, factor=None, params={"members": ["a", "b"]})
    store.remember_plan(PlannedRequest(command="tasks", digest="1", cells=(group, planned("a"))))
    assert store.plan().requests == (PlannedRequest(command="tasks", digest="1", cells=(group, planned("a"))),)
    plain = json.loads(store.read_text("plan.json"))
    assert plain["schema_version"] == 1 and plain["requests"][0]["cells"][0]["params"] == {"members": ["a", "b"]}


def test_a_request_that_is_made_again_takes_its_old_place():
    plan = StoredPlan().with_request(request("1", "a", "b")).with_request(request("2", "b", "c"))
    assert [cell.cell for cell in plan.cells] == ["a", "b", "c"]
    again = plan.with_request(request("1", "d"))
    assert [one.digest for one in again.requests] == ["1", "2"]
    assert [cell.cell for cell in again.cells] == ["d", "b", "c"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"requests": []}',
        '{"schema_version": 2, "requests": []}',
        '{"schema_version": 1, "requests": {}}',
        '{"schema_version": 1, "requests": [{"command": "ppl", "cells": []}]}',
        '{"schema_version": 1, "requests": [{"command": "ppl", "digest": "1", "cells": [{"cell": "a"}]}]}',
        '{"schema_version": 1, "requests": [], "requests": []}',
    ],
)
def test_a_damaged_plan_is_not_known_and_said(store, caplog, text):
    with pytest.raises(ValueError):
        plan_from_json(text)
    store.write_text("plan.json", text)
    assert store.plan() is None
    assert "plan.json" in caplog.text
    store.remember_plan(request("1", "a"))
    assert [cell.cell for cell in store.plan().cells] == ["a"]


def test_a_folder_in_its_place_is_not_known_either(store, tmp_path, caplog):
    (tmp_path / "run" / "plan.json").mkdir(parents=True)
    assert store.plan() is None and "plan.json" in caplog.text


def test_a_run_writes_it_before_its_first_cell(request_spec, store):
    spec = request_spec(pe=("yarn", "none"), lengths=(64, 128))

    class Interrupted(FakeBackend):
        def score(self, tokens_T, first_scored):
            if store.plan() is not None:  # a pass after the first cell
                raise KeyboardInterrupt
            return super().score(tokens_T, first_scored)

    with pytest.raises(KeyboardInterrupt):
        carry_out(spec, store, Interrupted(log_position))
    (found,) = store.plan().requests
    assert (found.command, found.digest) == ("ppl", spec.digest())
    assert [(cell.pe, cell.length) for cell in found.cells] == [(pe, n) for pe in ("yarn", "none") for n in (64, 128)]
    assert {cell.cell for cell in store.cells()} < {cell.cell for cell in found.cells}
