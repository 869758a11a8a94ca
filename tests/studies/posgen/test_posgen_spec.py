"""Requests of `posgen train`: presets, YAML both ways, what they refuse, and what one run folder can't hold."""

from __future__ import annotations

import pytest

from longeval.errors import LongEvalError
from longeval.request import requests_from_yaml, requests_to_yaml
from longeval.run.study import request_from_mapping
from longeval.studies.posgen.request import PosGenRequest


def read(text):
    (plain,) = requests_from_yaml(text, origin="f")
    return request_from_mapping(plain, origin="f")


def test_the_full_preset_is_the_papers():
    spec = PosGenRequest.read({"preset": "full"})
    assert spec == PosGenRequest()
    assert spec.tasks == ("recursive", "cot", "semi_recursive")
    assert spec.pe == ("none", "resonance", "yarn", "resonance_yarn")
    assert (spec.modulus, spec.j, spec.k, spec.length, spec.test_length) == (17, 1, 3, 64, 256)
    assert (spec.num_train, spec.num_valid, spec.num_test) == (10000, 1000, 1000)
    assert (spec.layers, spec.d_model, spec.d_ff, spec.heads, spec.head_dim, spec.theta) == (2, 512, 2048, 8, 64, 1e4)
    assert (spec.epochs, spec.batch_size, spec.lr, spec.weight_decay, spec.warmup) == (150, 128, 2e-4, 0.01, 0.1)
    assert (spec.precision, spec.regimes, spec.seed_values()) == ("float32", ("trained",), (0, 1, 2, 3, 4))
    assert (spec.scaling_factor, spec.native_length) == (4.0, 64)
    assert spec.model_name == "posgen-2x512"


def test_what_is_given_goes_before_a_preset_and_the_rest_is_the_presets():
    smoke = PosGenRequest.read({"preset": "smoke-test"})
    assert (smoke.tasks, smoke.regimes, smoke.model_name) == (("cot",), ("trained", "swapped"), "posgen-2x128")
    changed = PosGenRequest.read({"preset": "smoke-test", "epochs": 3, "tasks": ("recursive",)})
    assert changed == smoke.replaced(epochs=3, tasks=("recursive",)) != smoke


def test_the_former_name_of_a_preset_is_still_read():
    assert PosGenRequest.read({"preset": "smoke"}) == PosGenRequest.read({"preset": "smoke-test"}) != PosGenRequest()


def test_requests_survive_yaml_with_every_number():
    method = {"pe_args": {"yarn": {"beta_fast": 2.0}}, "data_seed": 3, "factor": 3.95}
    requests = [
        PosGenRequest(),
        PosGenRequest.read({"preset": "smoke-test"} | method),
        PosGenRequest(native=257, start_token=True, tied=False, init="normal", precision="tf32", first_seed=7),
    ]
    text = requests_to_yaml([request.to_mapping() for request in requests])
    assert "command: posgen" in text and "d_model: 128" in text and "preset" not in text
    assert [request_from_mapping(plain, origin="f") for plain in requests_from_yaml(text, origin="f")] == requests
    assert len({request.digest() for request in requests}) == 3


@pytest.mark.parametrize("stack", ["null", "true", "false"])
def test_files_that_say_whether_seeds_are_stacked_are_read_as_if_they_did_not(stack):
    found = read(f"command: posgen\nseeds: 2\nstack: {stack}\n")
    assert found == PosGenRequest(seeds=2) and "stack" not in found.to_mapping()
    with pytest.raises(LongEvalError, match="stack"):
        PosGenRequest.read({"stack": True})


def test_yaml_may_name_a_preset_and_understands_what_flags_do():
    text = (
        "command: posgen\npreset: smoke-test\ntask: cot,recursive\nregime: [swapped]\nlr: 2e-4\nd-model: 64\n"
        "data_seed: null\ntest_length: 1k\ntied: false\npe_args: {yarn: {beta_fast: 2}}\n"
    )
    sizes = {"lr": 2e-4, "d_model": 64, "test_length": 1024, "tied": False, "pe_args": {"yarn": {"beta_fast": 2}}}
    kinds = {"preset": "smoke-test", "tasks": ("cot", "recursive"), "regimes": ("swapped",)}
    assert read(text) == PosGenRequest.read(kinds | sizes)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("preset: smok", "--preset smok.*smoke"),
        ("epoch: 3", "epoch.*epochs"),
        ("epochs: 1.5", "f: epochs '1.5'"),
        ("epochs: true", "f: epochs 'True'"),
        ("lr: .nan", "f: lr 'nan'"),
        ("tied: 1", "f: tied 1"),
        ("factor: each", "f: factor each"),
        ("regimes: on", "f: regimes"),
        ("init: 3", "f: init 3"),
        ("modulus: null", "f: modulus 'None'"),
    ],
)
def test_bad_yaml_names_file_and_key(line, named):
    with pytest.raises(LongEvalError, match=named):
        read(f"command: posgen\n{line}\n")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ()}, "--task"),
        ({"pe": ()}, "--pe"),
        ({"regimes": ("on",)}, "--regime on"),
        ({"precision": "fp8"}, "--precision fp8"),
        ({"init": "xavier"}, "--init xavier"),
        ({"modulus": 1}, "--modulus 1"),
        ({"seeds": 0}, "--seeds 0"),
        ({"first_seed": -1}, "--first-seed -1"),
        ({"seeds": 10**24}, "--seeds 10"),
        ({"first_seed": 2**63 - 1, "seeds": 2}, "--first-seed 9223372036854775807"),
        ({"data_seed": 2**63}, "--data-seed 9223372036854775808"),
        ({"num_valid": 0}, "--num-valid 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"native": 1}, "--native 1"),
        ({"length": 64, "test_length": 64}, "--test-length 64"),
        ({"lr": 0.0}, "--lr 0"),
        ({"theta": float("inf")}, "--theta 'inf'"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1"),
        ({"warmup": 1.0}, "--warmup 1"),
        ({"warmup": 0.0}, "--warmup 0"),
        ({"dropout": 1.0}, "--dropout 1"),
        ({"factor": 0.5}, "--factor 0.5"),
        ({"head_dim": 7}, "--head-dim 7"),
        ({"epochs": 1, "num_train": 128}, "--epochs 1, --num-train 128, --batch-size 128"),
    ],
    ids=str,
)
def test_requests_validate_themselves(changes, named):
    with pytest.raises(LongEvalError, match=f"^{named}") as caught:
        PosGenRequest(**changes)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 2, "num_train": 128},
        {"epochs": 1, "num_train": 129},
    ],
    ids=str,
)
def test_what_is_just_enough_is_taken(changes):
    spec = PosGenRequest(**changes)
    assert {name: getattr(spec, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"start_token": True}, 257 / 65),
        ({"start_token": True, "native": 257}, 1.0),
        ({"native": 128}, 2.0),
        ({"native": 512}, 1.0),
        ({"native": 128, "factor": 3.0}, 3.0),
    ],
    ids=str,
)
def test_s_is_that_of_the_published_code_whose_windows_count_the_start_token(changes, factor):
    spec = PosGenRequest(**changes)
    more = int(spec.start_token)
    assert (spec.train_window, spec.test_window, spec.scaling_factor) == (64 + more, 256 + more, factor)


@pytest.mark.parametrize("field", PosGenRequest.model_fields)
def test_requests_of_one_folder_may_differ_in_what_tells_cells_apart_and_in_nothing_else(field):
    other = {
        "tasks": ("cot",),
        "pe": ("pi",),
        "regimes": ("swapped",),
        "init": "normal",
        "precision": "tf32",
        "device": "cpu",
        "pe_args": {"yarn": {"beta_fast": 2.0}},
        "warmup": 0.2,
        "dropout": 0.1,
        "data_seed": 1,
        "factor": 3.0,
        "native": 32,
        "length": 32,
        "head_dim": 32,
    }
    value = getattr(PosGenRequest(), field)
    if field not in other:
        other[field] = not value if isinstance(value, bool) else value + 1
    changed = PosGenRequest().replaced(**{field: other[field]})
    found = changed.differences(PosGenRequest())
    if field in ("tasks", "pe", "regimes", "seeds", "first_seed", "device"):
        assert found == []
    else:
        expected = "--pe-arg yarn: beta_fast=2, not none" if field == "pe_args" else f"{PosGenRequest.flag(field)} "
        assert any(text.startswith(expected) for text in found)


def test_defaults_written_out_are_no_difference():
    yarn = PosGenRequest(pe=("yarn",), pe_args={"yarn": {"beta_fast": 2.0}})
    assert PosGenRequest(factor=4.0, native=64).differences(PosGenRequest()) == []
    assert read("command: posgen\npe: yarn\npe_args: {yarn: {beta_fast: 2}}\n").differences(yarn) == []
    # Parameters of a method that only one of them has can't be confused.
    assert PosGenRequest(pe=("pi",)).differences(yarn) == []
    assert PosGenRequest(pe=("resonance_yarn",)).differences(yarn) == ["--pe-arg yarn: none, not beta_fast=2"]
