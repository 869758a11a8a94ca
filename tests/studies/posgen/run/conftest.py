"""Runs of PosGen that tests share, and spies on its trainings."""

from __future__ import annotations

import pytest
from posgen_requests import ALL, BOTH, Told, carry_out, tiny_request

from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen.train import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four methods in both regimes, two seeds: the store and what the run said."""
    store, told = Store(str(tmp_path_factory.mktemp("whole") / "run")), Told()
    result = carry_out(tiny_request(pe=ALL, regimes=BOTH), store, told)
    return store, told, result


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every epoch."""
    monkeypatch.setattr(train_posgen, "CHECKPOINT_EVERY_S", 0.0)


@pytest.fixture
def trained(monkeypatch):
    """The trainings from now on: (seed, epochs done before)."""
    calls = []

    def spy(state, *arguments, **options):
        calls.append((state.seed, state.epoch))
        return train(state, *arguments, **options)

    monkeypatch.setattr(train_posgen, "train", spy)
    return calls
