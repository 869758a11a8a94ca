"""Two commands that train in one run folder at the same time: each training is made once, by one of them."""

from __future__ import annotations

import threading

import pytest
from posgen_requests import Told, tiny_request
from tiny import make_text

from longeval.run import leases
from longeval.run.engine import run
from longeval.run.study import find_study
from longeval.store.folder import Store
from longeval.studies.finetune.request import FinetuneRequest


class Slow(Told):
    """Stops at its first step until the other command has begun and waits."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def advance(self, tokens, cost, detail):
        if not self.advanced:
            self.other.start()
            assert self.other.waits.wait(60)
        super().advance(tokens, cost, detail)


class Other(Told):
    """The progress of the second command, which runs in a thread of its own."""

    def __init__(self, plan, path):
        super().__init__()
        self.waits = threading.Event()
        self.result = None
        self.plan, self.path = plan, path
        self.thread = threading.Thread(target=self.run)

    def start(self):
        self.thread.start()

    def run(self):
        self.result = run(self.plan, Store(self.path), self)

    def note(self, text):
        assert "another command" in text
        self.waits.set()


def both(first, second, store):
    """Carries out two plans, the second while the first trains; returns results and progress of both."""
    other = Other(second, store.path)
    slow = Slow(other)
    result = run(first, store, slow)
    other.thread.join(60)
    assert other.result is not None and result.failed == other.result.failed == 0
    assert store.names(leases.LEASES) == store.names(leases.RUNNERS) == []
    return result, slow, other.result, other


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "POLL_S", 0.05)


def plan_posgen(**changes):
    return find_study("posgen").plan(tiny_request(seeds=1, **changes), Told())


def test_the_same_cells_are_computed_by_one_of_two(store):
    first, second = (plan_posgen(pe=("none", "yarn")) for _ in range(2))
    result, slow, found, other = both(first, second, store)
    assert slow.steps() + other.steps() == 2 * 4 * 3  # two trainings of four epochs of three steps
    assert result.computed + found.computed == 2 and len(result.records) == len(found.records)
    assert {r.cell: r.value for r in result.records} == {r.cell: r.value for r in found.records}


def test_other_cells_of_the_same_training_take_its_weights(store):
    """`swapped`: yarn is measured with the weights that plain RoPE was trained with."""
    first, second = (plan_posgen(pe=(pe,), regimes=("swapped",)) for pe in ("none", "yarn"))
    assert first.work[0].training == second.work[0].training and first.cells[0].id != second.cells[0].id
    result, slow, found, other = both(first, second, store)
    assert (slow.steps(), other.steps()) == (4 * 3, 0)
    assert result.computed == found.computed == 1


def test_a_model_is_trained_on_by_one_of_two(store, tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(make_text(600))
    asked = FinetuneRequest(
        model=(str(tiny_llama),), pe=("yarn",), length=128, steps=3, batch_size=1, data=(str(text),), dtype="float32"
    ).replaced(evaluates=False)
    first, second = (find_study("finetune").plan(asked, Told()) for _ in range(2))
    result, slow, found, other = both(first, second, store)
    assert (len(slow.advanced), len(other.advanced)) == (3, 0)
    assert (result.computed, found.computed, found.reused) == (1, 0, 1) and result.records == found.records
