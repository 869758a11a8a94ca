"""From a PosGen request to cells and trainings: what shares a training, and what must not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from posgen_requests import ALL, BOTH, tiny_request

from longeval.errors import LongEvalError
from longeval.studies.posgen import plan as plan_module
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.data import DataSetting
from longeval.studies.posgen.plan import data_setting, model_config, plan_posgen
from longeval.studies.posgen.request import PosGenRequest


def by_cell(spec):
    """Training ids by (task, regime, method, seed)."""
    return {
        (cell.training.data.task, cell.regime, cell.pe.canonical, cell.training.seed): cell.training.id
        for cell in plan_posgen(spec).cells
    }


def test_every_combination_is_a_cell_in_the_order_asked_for():
    spec = tiny_request(tasks=("recursive", "cot"), pe=("yarn", "none"), regimes=("swapped", "trained"), first_seed=3)
    cells = plan_posgen(spec).cells
    assert [(c.data, c.regime, c.pe.canonical, c.training.seed) for c in cells] == [
        (f"posgen_{task}", regime, pe, seed)
        for task in ("recursive", "cot")
        for regime in ("swapped", "trained")
        for pe in ("yarn", "none")
        for seed in (3, 4)
    ]
    assert len({cell.id for cell in cells}) == len(cells)


def test_all_methods_stand_in_the_request_that_is_stored():
    plan = plan_posgen(tiny_request(pe=("all",)))
    assert len(plan.request.pe) == 18 and set(plan.request.pe) == {cell.pe.canonical for cell in plan.cells}
    assert "longrope" in plan.notes[0]
    other = tiny_request(pe=("yarn",), pe_args={"yarn": {"beta_fast": 2}})
    assert tiny_request(pe=("all",)).differences(other) == ["--pe-arg yarn: none, not beta_fast=2"]


def test_swapped_methods_are_made_from_their_bases_trainings():
    trainings = by_cell(tiny_request(pe=ALL, regimes=BOTH, seeds=1))
    own = {pe: trainings["cot", "trained", pe, 0] for pe in ALL}
    assert len(set(own.values())) == 4
    bases = {"none": "none", "resonance": "resonance", "yarn": "none", "resonance_yarn": "resonance"}
    assert {pe: trainings["cot", "swapped", pe, 0] for pe in ALL} == {pe: own[base] for pe, base in bases.items()}


def test_resonance_keeps_its_longest_period_in_training_where_its_base_is_off():
    def plan(period):
        given = {} if period is None else {"pe_args": {"resonance": {"max_period": period}}}
        return tiny_request(pe=ALL, regimes=BOTH, seeds=1, length=24, test_length=40, **given)

    cells = {period: plan_posgen(plan(period)).cells for period in (None, "rounded", 24, "native")}
    assert cells[None] == cells["rounded"], "the default is in no id"
    for one, other in zip(cells[None], cells["native"], strict=True):
        assert (one.id == other.id) == (not one.pe.resonance)
        assert (one.training.id == other.training.id) == (not one.pe.resonance)
        assert other.params["method"].get("max_period") == ("native" if other.pe.resonance else None)
    # 24 is the native length here: another name of the same table, and of the same training.
    assert [cell.training for cell in cells[24]] == [cell.training for cell in cells["native"]]
    trainings = by_cell(plan("native"))
    own = trainings["cot", "trained", "resonance", 0]
    assert trainings["cot", "swapped", "resonance_yarn", 0] == own != trainings["cot", "trained", "none", 0]
    assert plan(24).differences(plan("native")) == [], "a run folder may hold several"


def test_methods_with_one_table_while_training_share_it_whatever_their_names():
    # Up to the native length, which is the training length, dynamic methods are none.
    plan = plan_posgen(tiny_request(pe=("none", "dynamic_ntk", "pi"), seeds=1))
    (shared, own) = plan.work
    assert shared.trained_with == ("none", "dynamic_ntk")
    assert own.trained_with == ("pi",)
    tables = {e.pe.canonical: e.table for e in shared.evaluations}
    assert not tables["none"].same_as(tables["dynamic_ntk"]), "in evaluation its window is longer"


@pytest.mark.parametrize(
    "change",
    [
        {"num_train": 41}, {"modulus": 7}, {"j": 2}, {"k": 2}, {"length": 13}, {"test_length": 21, "factor": 20 / 12},
        {"num_test": 8}, {"layers": 2}, {"d_model": 16}, {"d_ff": 24}, {"heads": 1}, {"head_dim": 4}, {"theta": 99.0},
        {"tied": False}, {"attention_scale": True}, {"init": "normal"}, {"start_token": True}, {"dropout": 0.1},
        {"frozen_mlp": True}, {"epochs": 5}, {"batch_size": 8}, {"lr": 0.02}, {"weight_decay": 0.0}, {"warmup": 0.2},
        {"precision": "bf16"}, {"first_seed": 1}, {"data_seed": 1}, {"tasks": ("recursive",)},
        {"pe": ("pi",)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_all_that_decides_weights_decides_ids(change):
    base = {"pe": ("yarn",), "seeds": 1}
    (one,), (other,) = plan_posgen(tiny_request(**base)).cells, plan_posgen(tiny_request(**(base | change))).cells
    assert one.training.id != other.training.id
    assert one.id != other.id


@pytest.mark.parametrize(
    "change",
    [{"factor": 3.0}, {"native": 10, "factor": 20 / 12}, {"pe_args": {"yarn": {"beta_fast": 2.0}}}],
    ids=str,
)
def test_what_decides_evaluation_alone_decides_the_cell_and_not_the_training(change):
    base = {"pe": ("yarn",), "regimes": ("swapped",), "seeds": 1}
    (one,), (other,) = plan_posgen(tiny_request(**base)).cells, plan_posgen(tiny_request(**(base | change))).cells
    assert other.training.id == one.training.id and other.id != one.id
    (same,) = plan_posgen(tiny_request(**base, validate_every=3, device="auto")).cells
    assert same == one


def test_the_algorithm_and_with_dropout_the_kind_of_device_decide_weights_too(monkeypatch):
    def trainings(device="cpu", dropout=0.0):
        monkeypatch.setattr(plan_module, "resolve_device", lambda name: device)
        return {training.id for training in plan_posgen(tiny_request(dropout=dropout)).trainings}

    before = trainings("cpu", 0.0)
    assert before == trainings("cuda:0", 0.0)
    assert trainings("cuda:0", 0.1) == trainings("cuda:1", 0.1)
    assert trainings("cpu", 0.1).isdisjoint(trainings("cuda:0", 0.1))
    monkeypatch.setattr(plan_module, "ALGORITHM", plan_module.ALGORITHM + 1)
    assert trainings("cpu", 0.0).isdisjoint(before)


def test_the_seeds_of_a_setting_are_trained_one_after_another_with_all_that_is_made_from_them():
    plan = plan_posgen(tiny_request(pe=ALL, regimes=BOTH, seeds=3))
    assert [(*work.trained_with, work.training.seed) for work in plan.work] == [
        (pe, seed) for pe in ALL for seed in (0, 1, 2)
    ]
    # Of `none`: itself in both regimes and the swapped yarn.
    made = plan.work[1].evaluations
    assert [(one.pe.canonical, one.regime, one.cell.training) for one in made] == [
        ("none", "trained", plan.trainings[1]),
        ("none", "swapped", plan.trainings[1]),
        ("yarn", "swapped", plan.trainings[1]),
    ]
    assert sorted(cell.id for work in plan.work for cell in work.cells) == sorted(cell.id for cell in plan.cells)


def test_ids_stay():
    """Ids of an earlier version: run folders that have them need nothing computed."""
    (cell,) = plan_posgen(tiny_request(pe=("yarn",), regimes=("swapped",), seeds=1)).cells
    assert (cell.id, cell.training.id) == ("7777922c165186e0", "15bc67ea9cbbd126")
    cells = plan_posgen(PosGenRequest(device="cpu")).cells
    assert (cells[-1].id, cells[-1].training.id) == ("f7b7afd30448096e", "c3b8fcc250159b3d")


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"pe": ("none", "resonance"), "regimes": BOTH}, False),
        ({"pe": ("pi",), "factor": 4.0}, False),
        ({"pe": ("abf",), "pe_args": {"abf": {"base": 500000.0}}}, False),
        ({"pe": ("pi",)}, True),
        ({"pe": ("yarn",), "factor": 4.0}, True),
        ({"pe": ("none", "resonance_yarn"), "regimes": ("swapped",)}, True),
        ({"pe": ("resonance_dynamic_yarn",)}, True),
    ],
    ids=str,
)
def test_a_native_length_that_no_method_reads_is_refused(changes, reads):
    spec = tiny_request(**changes, native=100, seeds=1)
    if reads:
        assert plan_posgen(spec).cells[0].params["native_length"] == 100
    else:
        with pytest.raises(LongEvalError, match=rf"--native 100: .*--pe {spec.pe[0]}"):
            plan_posgen(spec)


@pytest.mark.parametrize(("data_seed", "expected"), [(None, [0, 1, 2]), (9, [9, 9, 9])])
def test_seeds_have_data_of_their_own_unless_one_is_asked_for(data_seed, expected):
    trainings = plan_posgen(tiny_request(pe=("none",), seeds=3, data_seed=data_seed)).trainings
    assert [training.data.seed for training in trainings] == expected
    assert len({training.id for training in trainings}) == 3


def test_tables_are_those_of_the_formula():
    def made(pe="yarn", **changes):
        (work,) = plan_posgen(tiny_request(pe=(pe,), seeds=1, **changes)).work
        return work.table, work.evaluations[0].table

    # yarn, s = 4, L = 12, features below one rotation in L tokens divided by s, the others as they were.
    theta_F = 100.0 ** (-np.arange(4) / 4)
    rotations_F = 12 * theta_F / (2 * math.pi)
    assert (rotations_F > 1).any() and (rotations_F < 1).any()
    expected_F = np.where(rotations_F > 1, theta_F, theta_F / 4)
    train_table, table = made(factor=4.0, pe_args={"yarn": {"beta_fast": 1.0001}})
    for one in (train_table, table):
        np.testing.assert_allclose(one.inv_freq_F[[0, 3]], expected_F[[0, 3]], rtol=1e-12)
        assert one.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    train_table, table = made(factor=4.0, pe_args={"yarn": {"attention_factor": 1.5}})
    assert train_table.attention_factor == table.attention_factor == 1.5
    train_table, table = made(factor=4.0, regimes=("swapped",))
    np.testing.assert_allclose(train_table.inv_freq_F, theta_F, rtol=1e-12)
    assert (train_table.attention_factor, table.attention_factor) == (1.0, pytest.approx(0.1 * math.log(4) + 1))
    # A method that depends on length has the table of the window: 12 tokens in training, 20 in the test.
    train_table, table = made("dynamic_yarn")
    assert (train_table.attention_factor, table.attention_factor) == (1.0, pytest.approx(0.1 * math.log(20 / 12) + 1))


def test_the_spec_reaches_the_model_whole():
    spec = tiny_request(layers=3, tied=False, attention_scale=True, init="normal", start_token=True, dropout=0.1)
    spec = spec.replaced(frozen_mlp=True)
    for item in dataclasses.fields(ModelConfig):
        assert getattr(model_config(spec), item.name) == getattr(spec, item.name), item.name


def test_defaults_of_the_request_are_those_of_data_and_model():
    assert model_config(PosGenRequest()) == ModelConfig()
    assert data_setting(PosGenRequest(), "cot", 0) == DataSetting(task="cot")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ("cott",)}, "--task cott"),
        ({"pe": ("yarm",)}, "--pe yarm.*yarn"),
        ({"pe": ("resonance_none",)}, "resonance_none"),
        ({"pe_args": {"pi": {}}}, "--pe-arg pi"),
        ({"pe_args": {"yarn": {"beta": 2}}}, "--pe-arg yarn.beta"),
        ({"pe": ("none", "abf"), "factor": 4.0}, "--factor 4: .*none, abf"),
        ({"j": 0}, "--j 0"),
        ({"num_train": 700}, "625.*713"),
        ({"head_dim": 5}, "--head-dim 5"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"precision": "tf32"}, "--tf32.*cpu"),
    ],
    ids=str,
)
def test_what_is_wrong_is_found_before_anything_is_made(changes, named):
    with pytest.raises(LongEvalError, match=named) as caught:
        plan_posgen(tiny_request(**changes))
    assert caught.value.remedy


@pytest.mark.parametrize(("seeds", "pe", "notes"), [(2, ("none", "pi"), 1), (3, ("none", "pi"), 0), (1, ("pi",), 0)])
def test_a_note_says_that_few_seeds_tell_no_methods_apart(seeds, pe, notes):
    assert len(plan_posgen(tiny_request(seeds=seeds, pe=pe)).notes) == notes


def test_a_note_says_where_nothing_is_stretched():
    assert plan_posgen(tiny_request(seeds=3)).notes == ()
    (note,) = plan_posgen(tiny_request(seeds=3, factor=1.0)).notes
    assert note.startswith("yarn: s = 1")


@pytest.mark.parametrize("preset", ["full", "small", "smoke-test"])
def test_presets_can_be_planned(preset):
    plan = plan_posgen(PosGenRequest.read({"preset": preset, "device": "cpu"}))
    assert len(plan.work) == {"full": 60, "small": 20, "smoke-test": 4}[preset]
    assert len(plan.cells) == {"full": 60, "small": 20, "smoke-test": 8 * plan.request.seeds}[preset]
