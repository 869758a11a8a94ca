"""Losses of trainings as files, and against their records."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from finetune_records import make_losses, make_training

from longeval.errors import LongEvalError
from longeval.store.folder import Store
from longeval.store.losses import LOSSES, Losses, losses_from_json

PLAIN = Losses(
    steps=(1, 2),
    loss=(2.5, 2.25),
    lr=(0.0, 1e-5),
    gradient_norm=(3.0, 0.5),
    seconds=(1.5, 1.25),
    tokens=(128, 128),
)
WEIGHTED = dataclasses.replace(PLAIN, plain_loss=(2.0, 1.75))


def test_the_file_has_one_list_for_each_field_and_none_for_a_loss_without_weights():
    assert json.loads(PLAIN.to_json()) == {
        "steps": [1, 2],
        "loss": [2.5, 2.25],
        "lr": [0.0, 1e-5],
        "gradient_norm": [3.0, 0.5],
        "seconds": [1.5, 1.25],
        "tokens": [128, 128],
    }
    assert json.loads(WEIGHTED.to_json())["plain_loss"] == [2.0, 1.75]


@pytest.mark.parametrize("losses", [PLAIN, WEIGHTED])
def test_losses_come_back(losses):
    assert losses_from_json(losses.to_json().encode()) == losses


def test_cross_entropy_is_the_loss_without_weights():
    assert PLAIN.cross_entropy == (2.5, 2.25)
    assert WEIGHTED.cross_entropy == (2.0, 1.75)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"steps": [1]}',
        PLAIN.to_json().replace("[1, 2]", "[1]"),
        PLAIN.to_json().replace("2.25", "null"),
        PLAIN.to_json().replace("2.25", "NaN"),
        PLAIN.to_json().replace("[128, 128]", "[128, 128.5]"),
        WEIGHTED.to_json().replace("[2.0, 1.75]", "[2.0]"),
    ],
)
def test_what_is_no_losses_is_a_value_error(text):
    with pytest.raises(ValueError):
        losses_from_json(text.encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": (2, 3)},
        {"loss": (2.5, math.inf)},
        {"plain_loss": (math.nan, 1.0)},
        {"lr": (0.0, -1e-5)},
        {"gradient_norm": (math.inf, 1.0)},
        {"seconds": (-1.0, 1.0)},
        {"tokens": (128, 0)},
    ],
)
def test_values_that_no_training_has_are_refused(changes):
    with pytest.raises(ValueError):
        LOSSES.check(dataclasses.replace(PLAIN, **changes), [])


def test_losses_of_no_step_are_refused():
    empty = Losses(steps=(), loss=(), lr=(), gradient_norm=(), seconds=(), tokens=())
    with pytest.raises(ValueError):
        LOSSES.check(empty, [])


def test_a_training_is_stored_with_its_losses_and_comes_back(tmp_path):
    losses = make_losses([3.0, 2.0])
    records = make_training("yarn", losses)
    store = Store(str(tmp_path))
    store.save(records, losses, LOSSES)
    assert json.loads((tmp_path / "cells" / f"{records[0].cell}.json").read_text())["digest"] is not None
    (found,) = Store(str(tmp_path)).cells()
    assert found.artefact is LOSSES and found.with_artefact
    assert found.records == tuple(records)
    assert store.losses(records[0].cell) == losses
    assert store.losses("another") is None


@pytest.mark.parametrize("changes", [{"tokens": 1}, {"value": 1.0}, {"params": {"steps": 3}}])
def test_a_record_that_does_not_follow_from_its_losses_is_damaged(tmp_path, changes):
    losses = make_losses([3.0, 2.0])
    records = make_training("yarn", losses)
    changes = {name: records[0].params | value if name == "params" else value for name, value in changes.items()}
    store = Store(str(tmp_path))
    store.save([dataclasses.replace(records[0], **changes)], losses, LOSSES)
    assert list(store.cells()) == []
    assert list(store.damaged) == [records[0].cell]


def test_a_store_names_the_file_that_it_cannot_read(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "abc.json").write_text("{}")
    with pytest.raises(LongEvalError, match=r"losses/abc\.json"):
        Store(str(tmp_path)).losses("abc")


def test_trackers_get_loss_and_learning_rate_by_step():
    assert LOSSES.by_epoch(WEIGHTED) == {"training_loss": {1: 2.5, 2: 2.25}, "learning_rate": {1: 0.0, 2: 1e-5}}
