"""The files that PosGen runs leave, and how later runs go on from them: kills, checkpoints, a fresh start."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from posgen_requests import BOTH, Told, carry_out, same_weights, tiny_request, value, weights_of, with_seed_axis

from longeval.request import requests_from_yaml, requests_to_yaml
from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen.plan import check_settings, plan_posgen
from longeval.studies.posgen.state import from_bytes


def test_a_seed_is_stored_before_the_next_begins(store, often, trained):
    request = tiny_request(pe=("none",), regimes=BOTH, seeds=3)
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=14 + 1 + 8))  # 12 steps, 2 validations; an evaluation; in epoch 3
    assert [cell.records[0].params["seed"] for cell in store.cells()] == [0, 0]
    trained.clear()
    result = carry_out(request, store)
    assert (result.computed, result.reused, result.failed) == (4, 2, 0)
    assert trained == [(1, 2), (2, 0)]
    assert all(store.has_training("weights", training.id) for training in plan_posgen(request).trainings)


def test_a_killed_training_goes_on_from_its_checkpoint(store, often, trained, whole):
    request = tiny_request(pe=("yarn",))
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=9))  # in the third of four epochs
    assert store.has_checkpoints() and store.read_text("spec.yaml") is not None and list(store.cells()) == []
    result = carry_out(request, store)
    assert trained == [(0, 0), (0, 2), (1, 0)]
    assert not store.has_checkpoints()
    for training in plan_posgen(request).trainings:
        assert same_weights(weights_of(store, training.id), weights_of(whole[0], training.id), rtol=1e-4, atol=1e-5)
    curves = [one.curves(value(result, "yarn", "accuracy_ood").cell) for one in (store, whole[0])]
    assert curves[0].epochs == (2, 4) and curves[0].valid_loss_ood == pytest.approx(curves[1].valid_loss_ood, rel=1e-4)


def test_checkpoints_and_weights_of_the_version_that_stacked_seeds_are_gone_on_from(store, often, trained, whole):
    """It left a checkpoint of each seed after the same epoch, or of one a little later if a kill came in between."""
    request = tiny_request(pe=("yarn",), seeds=3)
    done, ahead, behind = plan_posgen(request).trainings
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=14 + 1 + 14 + 1 + 5))
    for kind, training in (("weights", done), ("weights", ahead), ("checkpoints", behind)):
        store.save_training(kind, training.id, with_seed_axis(store.training(kind, training.id)))
    for cell in list(store.cells()):
        store._fs.rm_file(store._at("cells", f"{cell.cell}.json"))
    trained.clear()
    result = carry_out(request, store)
    assert (result.computed, result.failed) == (3, 0)
    assert trained == [(2, 1)]
    for training in (done, ahead):
        assert same_weights(weights_of(store, training.id), weights_of(whole[0], training.id), rtol=1e-4, atol=1e-5)


def test_only_what_is_missing_is_trained(store, trained):
    carry_out(tiny_request(pe=("none",)), store)
    more = carry_out(tiny_request(pe=("none", "yarn"), regimes=BOTH, seeds=3), store)
    assert (more.computed, more.reused) == (10, 2)
    assert trained == [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0), (2, 0)]
    assert [plain["seeds"] for plain in requests_from_yaml(store.read_text("spec.yaml"), origin="f")] == [2, 3]


def test_checkpoints_are_written_by_the_clock(store, monkeypatch):
    saved = []
    monkeypatch.setattr(Store, "save_training", lambda self, kind, training, content: saved.append(kind))
    carry_out(tiny_request(pe=("none",)), store)
    assert saved == ["weights"] * 2
    saved.clear()
    monkeypatch.setattr(train_posgen, "CHECKPOINT_EVERY_S", 0.0)
    carry_out(tiny_request(pe=("yarn",)), store)
    assert saved == [*["checkpoints"] * 3, "weights"] * 2


@pytest.mark.parametrize("kind", ["weights", "checkpoints"])
def test_a_damaged_file_is_made_again(store, trained, kind, caplog):
    (training,) = plan_posgen(tiny_request(pe=("none",), seeds=1)).trainings
    store.save_training(kind, training.id, b"PK damaged")
    assert carry_out(tiny_request(pe=("none",), seeds=1), store).failed == 0
    assert trained == [(0, 0)]
    assert f"{kind}/{training.id}.npz" in caplog.text
    assert from_bytes(store.training("weights", training.id)).epoch == 4


@pytest.mark.parametrize("wrong", [{"seed": 7}, {"epoch": 3}, {"config": {"layers": 10**9}}, {"weights": math.nan}])
def test_weights_of_another_training_are_made_again(store, trained, wrong, caplog):
    request = tiny_request(pe=("none",), seeds=1)
    carry_out(request, store)
    (training,) = plan_posgen(request).trainings
    content = store.training("weights", training.id)
    with np.load(io.BytesIO(content)) as arrays:
        arrays = dict(arrays)
    about = json.loads(arrays["about"].tobytes())
    if "weights" in wrong:
        arrays["weights/norm"] = arrays["weights/norm"] * wrong["weights"]
    else:
        config = about["config"] | wrong.get("config", {})
        about |= wrong | {"config": config}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    store.save_training("weights", training.id, buffer.getvalue())
    for cell in list(store.cells()):
        store._fs.rm_file(store._at("cells", f"{cell.cell}.json"))
    trained.clear()
    assert carry_out(request, store).failed == 0
    assert trained == [(0, 0)] and f"weights/{training.id}.npz" in caplog.text
    assert store.training("weights", training.id) == content


def test_a_fresh_start_that_was_killed_does_not_go_on_with_what_was_there_before(store, often, trained):
    request = tiny_request(pe=("none", "yarn"))
    carry_out(request, store)
    ids = [training.id for training in plan_posgen(request).trainings]
    store.save_training("checkpoints", ids[3], store.training("weights", ids[3]))  # as an earlier kill may leave it
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=8), fresh=True)  # in the third epoch of the first
    assert [store.has_training("weights", training) for training in ids] == [False] * 4
    assert [store.has_training("checkpoints", training) for training in ids] == [True, False, False, False]
    for cell in list(store.cells()):  # so that all of them are to be made again
        store._fs.rm_file(store._at("cells", f"{cell.cell}.json"))
    trained.clear()
    carry_out(request, store)
    assert trained == [(0, 2), (1, 0), (0, 0), (1, 0)]


@pytest.mark.parametrize("stack", [None, True, False])
def test_a_request_of_a_version_that_could_stack_seeds_is_taken_for_the_same(store, stack):
    request = tiny_request(pe=("none",))
    carry_out(request, store)
    plan = store.read_text("plan.json")
    store.write_text("spec.yaml", requests_to_yaml([request.to_mapping() | {"stack": stack}]))
    check_settings([request], store)
    assert carry_out(request, store).reused == 2
    assert requests_from_yaml(store.read_text("spec.yaml"), origin="spec.yaml") == [request.to_mapping()]
    assert store.read_text("plan.json") == plan
