"""Curves of PosGen cells as files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from longeval.errors import LongEvalError
from longeval.files import _working_name
from longeval.store.curves import Curves, curves_from_json
from longeval.store.folder import Store

CURVES = Curves(
    positions=(4, 5, 6),
    accuracy=(1.0, 0.5, 0.25),
    loss=(0.1, 2.5, math.nan),
    generated=(0.5, 0.0, 0.125),
    epochs=(2, 4),
    valid_loss_in_distribution=(1.5, 0.5),
    valid_loss_ood=(2.0, math.inf),
)
TEXT = CURVES.to_json()


def test_the_file_has_one_list_a_curve_and_null_for_what_is_no_number():
    assert json.loads(TEXT) == {
        "positions": [4, 5, 6],
        "accuracy": [1.0, 0.5, 0.25],
        "loss": [0.1, 2.5, None],
        "generated": [0.5, 0.0, 0.125],
        "epochs": [2, 4],
        "valid_loss_in_distribution": [1.5, 0.5],
        "valid_loss_ood": [2.0, None],
    }


def test_curves_come_back():
    again = curves_from_json(TEXT.encode())
    assert again.positions == (4, 5, 6) and again.epochs == (2, 4)
    assert again.accuracy == CURVES.accuracy and again.generated == CURVES.generated
    assert again.loss[:2] == CURVES.loss[:2] and math.isnan(again.loss[2])
    assert again.valid_loss_ood[0] == 2.0 and math.isnan(again.valid_loss_ood[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"positions": [4]}',
        TEXT.replace("[4, 5, 6]", "[4, 5]"),
        TEXT.replace("[2, 4]", "[2]"),
        TEXT.replace("2.5", '"2.5"'),
        TEXT.replace("2.5", "true"),
        TEXT.replace('"loss"', '"lost"'),
        TEXT.replace("[4, 5, 6]", "4"),
        TEXT.replace("[4, 5, 6]", "[4, 5.5, 6]"),
        TEXT.replace("[2, 4]", "[2, null]"),
    ],
)
def test_what_is_no_curves_is_a_value_error(text):
    with pytest.raises(ValueError):
        curves_from_json(text.encode())


def test_a_store_names_the_file_that_it_cannot_read(tmp_path):
    store = Store(str(tmp_path))
    assert store.curves("abc") is None
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "abc.json").write_text("{}")
    with pytest.raises(LongEvalError, match=r"curves/abc\.json"):
        store.curves("abc")


@pytest.mark.parametrize("where", ["local", "memory"])
def test_files_of_trainings_come_and_go(tmp_path, where):
    store = Store(str(tmp_path / "run") if where == "local" else f"memory://trainings-{tmp_path.name}")
    assert store.training("checkpoints", "t") is None and not store.has_checkpoints()
    store.remove_training("checkpoints", "t")
    store.save_training("checkpoints", "t", b"one")
    store.save_training("checkpoints", "t", b"two")
    store.save_training("checkpoints", "u", b"three")
    assert store.training("checkpoints", "t") == b"two" and store.has_checkpoints()
    assert store.has_training("checkpoints", "t") and not store.has_training("weights", "t")
    store.remove_training("checkpoints", "t")
    assert store.training("checkpoints", "t") is None and store.training("checkpoints", "u") == b"three"
    store.remove_training("checkpoints", "u")
    assert not store.has_checkpoints()
    if where == "local":
        assert not (tmp_path / "run").exists()


def test_what_a_killed_run_left_of_a_checkpoint_goes_with_it_and_counts_as_none(tmp_path):
    store, folder = Store(str(tmp_path)), tmp_path / "checkpoints"
    folder.mkdir()
    Path(_working_name(str(folder))).write_bytes(b"half")
    assert not store.has_checkpoints() and store.training("checkpoints", "t") is None
    store.remove_training("checkpoints", "t")
    assert not folder.exists()
