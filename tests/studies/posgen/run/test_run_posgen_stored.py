"""What PosGen runs leave, and how they go on from it: seeds stacked or alone, kills, checkpoints, a fresh start."""

from __future__ import annotations

import pytest
from posgen_requests import ALL, BOTH, Told, carry_out, same_weights, tiny_request, value, weights_of

from longeval.request import requests_from_yaml
from longeval.run.study import request_from_mapping
from longeval.store.folder import Store
from longeval.studies.posgen import work as train_posgen
from longeval.studies.posgen.plan import plan_posgen
from longeval.studies.posgen.state import from_bytes


def test_seeds_one_after_another_give_what_stacked_ones_give(store, whole):
    told = Told()
    apart = carry_out(tiny_request(pe=ALL, regimes=BOTH, stack=False), store, told)
    stacked_store, _, stacked = whole
    assert [cost for *_, cost in told.advanced] == pytest.approx(told.costs)
    trainings = [what for what, _, noun in told.stages if noun == "step"]
    assert trainings[:2] == [f"cot, trained with none · seed {seed}, epochs 1 … 4" for seed in (0, 1)]
    assert len(trainings) == 8
    for training in plan_posgen(tiny_request(pe=ALL, regimes=BOTH)).trainings:
        one, other = (weights_of(folder, training.id) for folder in (store, stacked_store))
        assert same_weights(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(apart.records, stacked.records, strict=True):
        assert (one.cell, one.metric, one.rope_digest) == (other.cell, other.metric, other.rope_digest)
        assert one.value == pytest.approx(other.value, abs=0.05)  # a token in 56 may be another by rounding
        assert (one.params.pop("stacked"), other.params["stacked"]) == (1, 2)
        assert one.params == {name: value for name, value in other.params.items() if name != "stacked"}
        losses = [folder.curves(one.cell).valid_loss_ood for folder in (store, stacked_store)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_seed_alone_is_stored_before_the_next_begins(store, often, trained):
    request = tiny_request(pe=("none",), regimes=BOTH, seeds=3, stack=False)
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=14 + 1 + 8))  # 12 steps, 2 validations; an evaluation; in epoch 3
    assert [cell.records[0].params["seed"] for cell in store.cells()] == [0, 0]
    trained.clear()
    result = carry_out(request, store)
    assert (result.computed, result.reused, result.failed) == (4, 2, 0)
    assert trained == [((1,), 2, 4), ((2,), 0, 4)]
    assert all(store.has_training("weights", training.id) for training in plan_posgen(request).trainings)


@pytest.mark.parametrize("stack", [True, False])
def test_a_training_that_began_stacked_goes_on_stacked_or_alone(store, often, trained, whole, stack):
    request = tiny_request(pe=("yarn",))
    with pytest.raises(KeyboardInterrupt):
        carry_out(request, store, Told(interrupt=9))  # in the third of four epochs
    assert store.has_checkpoints() and store.read_text("spec.yaml") is not None and list(store.cells()) == []
    result = carry_out(request.replaced(stack=stack), store)
    assert trained == [((0, 1), 0, 4), *([((0, 1), 2, 4)] if stack else [((0,), 2, 4), ((1,), 2, 4)])]
    assert not store.has_checkpoints()
    assert {record.params["stacked"] for record in result.records} == {2}, "of the first epochs"
    for training in plan_posgen(request).trainings:
        assert same_weights(weights_of(store, training.id), weights_of(whole[0], training.id), rtol=1e-4, atol=1e-5)
    curves = [one.curves(value(result, "yarn", "accuracy_ood").cell) for one in (store, whole[0])]
    assert curves[0].epochs == (2, 4) and curves[0].valid_loss_ood == pytest.approx(curves[1].valid_loss_ood, rel=1e-4)


def test_only_what_is_missing_is_trained(store, trained):
    carry_out(tiny_request(pe=("none",)), store)
    more = carry_out(tiny_request(pe=("none", "yarn"), regimes=BOTH, seeds=3), store)
    assert (more.computed, more.reused) == (10, 2)
    assert trained == [((0, 1), 0, 4), ((2,), 0, 4), ((0, 1, 2), 0, 4)]
    assert [plain["seeds"] for plain in requests_from_yaml(store.read_text("spec.yaml"), origin="f")] == [2, 3]


def test_seeds_that_are_behind_catch_up_and_go_on_together(store, often, trained, whole):
    (stack,) = plan_posgen(tiny_request(pe=("yarn",))).work
    ahead, behind = (training.id for training in stack.trainings)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tiny_request(pe=("yarn",)), store, Told(interrupt=4))
    old = store.training("checkpoints", behind)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tiny_request(pe=("yarn",)), store, Told(interrupt=9))
    store.save_training("checkpoints", behind, old)  # as if killed between the two files
    assert from_bytes(old).epoch == 1 and from_bytes(store.training("checkpoints", ahead)).epoch == 3
    trained.clear()
    told = Told()
    carry_out(tiny_request(pe=("yarn",)), store, told)
    assert trained == [((1,), 1, 3), ((1, 0), 3, 4)]
    assert [cost for *_, cost in told.advanced] == pytest.approx(told.costs)
    for training in (ahead, behind):
        assert same_weights(weights_of(store, training), weights_of(whole[0], training), rtol=1e-4, atol=1e-5)


def test_checkpoints_are_written_by_the_clock(store, monkeypatch):
    saved = []
    monkeypatch.setattr(Store, "save_training", lambda self, kind, training, content: saved.append(kind))
    carry_out(tiny_request(pe=("none",)), store)
    assert saved == ["weights"] * 2
    saved.clear()
    monkeypatch.setattr(train_posgen, "CHECKPOINT_EVERY_S", 0.0)
    carry_out(tiny_request(pe=("yarn",)), store)
    assert saved == ["checkpoints"] * 6 + ["weights"] * 2


@pytest.mark.parametrize("kind", ["weights", "checkpoints"])
def test_a_damaged_file_is_made_again(store, trained, kind, caplog):
    (training,) = plan_posgen(tiny_request(pe=("none",), seeds=1)).work[0].trainings
    store.save_training(kind, training.id, b"PK damaged")
    assert carry_out(tiny_request(pe=("none",), seeds=1), store).failed == 0
    assert trained == [((0,), 0, 4)]
    assert f"{kind}/{training.id}.npz" in caplog.text
    assert from_bytes(store.training("weights", training.id)).epoch == 4


def test_a_fresh_start_that_was_killed_does_not_go_on_with_what_was_there_before(store, often, trained):
    request = tiny_request(pe=("none", "yarn"), stack=False)
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
    assert trained == [((0,), 2, 4), ((1,), 0, 4), ((0,), 0, 4), ((1,), 0, 4)]


def test_the_request_is_written_down_once_as_it_was_asked_last(store):
    for stack in (None, True, False):
        carry_out(tiny_request(pe=("none",), stack=stack), store)
        (plain,) = requests_from_yaml(store.read_text("spec.yaml"), origin="spec.yaml")
        assert request_from_mapping(plain, origin="spec.yaml") == tiny_request(pe=("none",), stack=stack)
