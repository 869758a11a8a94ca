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
from longeval.backends.vllm.options import OWNED, parse_vllm_args, remedy_for_family
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


def test_options_of_the_engine_are_read_as_yaml():
    args = parse_vllm_args(["tensor-parallel-size=2", "gpu_memory_utilization=0.8", "enforce_eager=false", "a=b=c"])
    assert args == {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8, "enforce_eager": False, "a": "b=c"}


@pytest.mark.parametrize("text", ["x", "x=", "=1", "2x=1", "x y=1", "x=[1"])
def test_what_is_no_option(text):
    with pytest.raises(LongEvalError, match="--vllm-arg"):
        parse_vllm_args([text])


def test_an_option_given_twice():
    with pytest.raises(LongEvalError, match="twice"):
        parse_vllm_args(["max-num-seqs=1", "max_num_seqs=2"])


@pytest.mark.parametrize("name", ["max_model_len", "hf_overrides", "dtype", "seed", "load_format", "disable_log_stats"])
def test_options_that_other_flags_decide(name):
    flag, _, why = OWNED[name].partition(": ")
    told = f"--vllm-arg {name}: " + (f"can't be changed .{why}." if why else f"is set by {flag.split()[0]}")
    with pytest.raises(LongEvalError, match=told):
        parse_vllm_args([f"{name}=1"])
    with pytest.raises(LongEvalError, match=name):
        check_request(request_from_mapping({"backend": "vllm", **asked({name: 1})}, origin="f.yaml"))


def test_a_token_is_no_option_that_records_would_show():
    with pytest.raises(LongEvalError, match=r"--vllm-arg hf_token: is set by HF_TOKEN in the environment") as caught:
        parse_vllm_args(["hf_token=secret"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
@pytest.mark.parametrize("value", ["abc", "1.5", "0", "true", "null"])
def test_counts_that_are_none(name, value):
    with pytest.raises(LongEvalError, match=f"--vllm-arg {name}=.*whole number"):
        parse_vllm_args([f"{name}={value}"])
    read = {"abc": "abc", "1.5": 1.5, "0": 0, "true": True, "null": None}[value]
    with pytest.raises(LongEvalError, match=f"--vllm-arg {name}=.*whole number"):
        check_request(request_from_mapping({"backend": "vllm", **asked({name: read})}, origin="f.yaml"))
    assert parse_vllm_args([f"{name}=64"]) == {name: 64}


def asked(vllm_args):
    return {"model": "m", "pe": "none", "lengths": "4k", "data": "stdlib", "vllm_args": vllm_args}


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--vllm-arg", {"backend": "hf", "vllm_args": {"max_num_seqs": 1}}),
        ("--pin-length", {"backend": "hf", "pin_length": 64}),
        ("--base-url", {"base_url": "http://localhost/v1"}),
        ("--served-model", {"backend": "hf", "served_model": "x"}),
        ("--attn", {"attn": "eager"}),
        ("--device-map", {"device_map": "auto"}),
        ("--dtype", {"backend": "openai", "base_url": "http://localhost/v1", "dtype": "float32"}),
        ("--device", {"backend": "openai", "base_url": "http://localhost/v1", "device": "cpu"}),
    ],
)
def test_settings_that_a_backend_would_ignore(flag, changes):
    with pytest.raises(LongEvalError, match=f"^{flag}: would be ignored"):
        check_request(spec(**changes))


def test_vllm_takes_the_first_gpu_alone():
    with pytest.raises(LongEvalError, match="--device cuda:1: vLLM takes the first GPU") as caught:
        check_request(spec(device="cuda:1"))
    assert "CUDA_VISIBLE_DEVICES=1" in caught.value.remedy
    for device in ("auto", "cpu", "cuda", "cuda:0"):
        check_request(spec(device=device))
    check_request(spec(device="cuda:1", backend="hf"))


def test_an_unknown_backend():
    with pytest.raises(LongEvalError, match="--backend tgi"):
        check_request(spec(backend="tgi"))


def test_a_server_has_to_be_named():
    with pytest.raises(LongEvalError, match="no server named"):
        check_request(spec(backend="openai"))


def test_requests_come_back_from_yaml():
    for one in (
        spec(vllm_args={"max_num_seqs": 2}, pin_length=4096),
        spec(backend="openai", base_url="http://localhost/v1", served_model="x"),
    ):
        (plain,) = requests_from_yaml(requests_to_yaml([one.to_mapping()]), origin="spec.yaml")
        assert request_from_mapping(plain, origin="spec.yaml") == one


def test_a_method_that_depends_on_length_has_to_be_pinned(request_spec):
    with pytest.raises(LongEvalError, match="--pe dynamic_ntk: has another table at every length") as caught:
        plan_ppl(request_spec(pe=("dynamic_ntk",), backend="vllm"))
    assert "--pin-length" in caught.value.remedy
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


def test_a_pin_that_is_shorter_than_a_window_is_told(request_spec):
    def told(pin):
        notes = plan_ppl(request_spec(pe=("none", "dynamic_ntk"), backend="vllm", pin_length=pin)).notes
        return [note for note in notes if "--pin-length" in note]

    (note,) = told(96)
    assert "--pin-length 96: is shorter than the longest window, 128;" in note and note.endswith("(dynamic_ntk)")
    assert not told(128)


def test_options_that_decide_nothing_are_no_part_of_a_cell(request_spec):
    def ids(**args):
        return [cell.id for cell in plan_ppl(request_spec(backend="vllm", vllm_args=args)).cells]

    assert ids() == ids(gpu_memory_utilization=0.5, max_num_seqs=3)
    assert set(ids()).isdisjoint(ids(kv_cache_dtype="fp8"))
    assert set(ids()).isdisjoint(cell.id for cell in plan_ppl(request_spec()).cells)


class OneTable(FakeBackend):
    """Counts the engines that it would have built."""

    def __init__(self, engines):
        super().__init__(log_position)
        self.engines, self.held, self.closed = engines, None, 0

    def serve(self, table, length):
        if self.held is None or not self.held.same_as(table):
            self.engines.append(table)
        self.held = table
        super().serve(table, length)

    def close(self):
        self.closed += 1


def test_one_engine_serves_all_cells_of_a_method(request_spec, store, tmp_path, documents):
    second = tmp_path / "more.jsonl"
    second.write_text(documents.read_text())
    wanted = request_spec(
        pe=("yarn", "none", "resonance_yarn"), data=(str(documents), str(second)), backend="vllm", factor=2.0
    )
    engines = []
    backend = OneTable(engines)
    result = run(plan_ppl(wanted), store, RunProgress(quiet=True, verbose=False), load=lambda model: backend)
    assert len(engines) == 3
    assert backend.closed == 1
    assert result.failed == 0
    assert {(r.data, r.pe) for r in result.records} == {
        (data, pe) for data in wanted.data for pe in ("yarn", "none", "resonance_yarn")
    }


def test_the_start_of_an_engine_is_no_part_of_a_cells_time(request_spec, store, monkeypatch):
    backend = SlowStart(log_position)
    monkeypatch.setattr("longeval.studies.ppl.work.time", backend.clock)
    plan = plan_ppl(request_spec(pe=("none", "yarn"), lengths=(64, 128), factor=2.0, backend="vllm"))
    result = run(plan, store, backend.progress(), load=lambda model: backend)
    groups = {id(group): group for group in plan.work}.values()
    passes = {cell.id: len(group.passes()) for group in groups for cell in group.cells}
    assert {record.cell: record.elapsed_s for record in result.records} == {
        cell: number * PASS_S for cell, number in passes.items()
    }
    assert [event if event == "start" else event.split()[0] for event in backend.events] == [
        "start",
        "none",
        "start",
        "yarn",
    ]


def test_the_order_is_kept_otherwise(request_spec):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), lengths=(32, 64), factor=2.0))
    model = plan.work[0].model
    tables = {group.cells[0].pe.canonical: group.table(64) for group in plan.work}
    turns = [("yarn", 1), ("none", 1), ("yarn", 2), ("none", 2)]
    assert by_engine(turns, lambda turn: (model, tables[turn[0]])) == [
        ("yarn", 1),
        ("yarn", 2),
        ("none", 1),
        ("none", 2),
    ]
    other = dataclasses.replace(model)
    models = {1: model, 2: other}
    assert by_engine(turns, lambda turn: (models[turn[1]], tables[turn[0]])) == turns


class Broken(FakeBackend):
    """An engine that doesn't start for one of the tables."""

    def __init__(self, good=None):
        super().__init__(log_position)
        self.good, self.closed = good, 0

    def serve(self, table, length):
        if self.good is None or not self.good.same_as(table):
            raise BackendError("--backend vllm: the engine didn't start", "Give it more room.")
        super().serve(table, length)

    def close(self):
        self.closed += 1


def test_an_engine_that_doesnt_start_ends_the_run_before_anything_is_computed(request_spec, store):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), backend="vllm"))
    backend = Broken()
    with pytest.raises(BackendError):
        run(plan, store, RunProgress(quiet=True, verbose=False), load=lambda model: backend)
    assert backend.closed == 1
    assert store.load(plan.cells[0].id) is None


def test_later_it_is_a_failed_record(request_spec, store):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), backend="vllm"))
    backend = Broken(plan.work[0].table(64))
    result = run(plan, store, RunProgress(quiet=True, verbose=False), load=lambda model: backend)
    status = {(r.pe, r.status) for r in result.records}
    assert status == {("none", "ok"), ("yarn", "failed")}
    assert all("didn't start" in r.error for r in result.records if r.pe == "yarn")


def test_what_loads_a_model(monkeypatch):
    monkeypatch.setattr("longeval.backends.vllm.backend.VLLMBackend", lambda model, **settings: settings)
    made = backend_of(spec(lengths=(64, 128), vllm_args={"max_num_seqs": 2}))(None)
    assert made == {"length": 128, "args": {"max_num_seqs": 2}, "share_prefixes": False}
    monkeypatch.setattr("longeval.backends.hf.backend.load_backend", lambda model: "loaded")
    assert backend_of(spec(backend="hf"))(None) == "loaded"


def test_without_vllm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LongEvalError, match="vLLM isn't installed") as caught:
        check_installed()
    assert "make setup-vllm-cpu" in caught.value.remedy


@pytest.mark.parametrize("allowed", ["", "other", "other,longeval2"])
def test_a_vllm_without_our_plugin_is_refused(monkeypatch, allowed):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    check_installed()
    monkeypatch.setenv("VLLM_PLUGINS", "other,longeval")
    check_installed()
    monkeypatch.setenv("VLLM_PLUGINS", allowed)
    with pytest.raises(LongEvalError, match=f"VLLM_PLUGINS={allowed} keeps longeval's plugin"):
        check_installed()
    monkeypatch.delenv("VLLM_PLUGINS")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **asked: ())
    with pytest.raises(LongEvalError, match="without being installed"):
        check_installed()


def test_what_to_do_about_an_engine_that_takes_no_table():
    assert "use --backend hf" in remedy_for_family("KeyError: 'longeval_table'")
    assert "plugin" in remedy_for_family("ValueError: Unknown RoPE scaling type longeval_table")
    for other in ("KeyError: 'other'", "ValueError: longeval_table without inv_freq", "No available memory"):
        assert remedy_for_family(other) is None


def platform(monkeypatch, kind, name):
    """As if a vLLM for this kind of device were installed."""
    here = types.SimpleNamespace(device_type=kind, get_device_name=lambda: name)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", types.SimpleNamespace(current_platform=here))


def test_the_device_that_vllm_computes_on(monkeypatch):
    platform(monkeypatch, "cuda", "NVIDIA H100 80GB HBM3")
    assert vllm_options.engine_device("cuda:0") == "cuda (NVIDIA H100 80GB HBM3, vLLM)"
    with pytest.raises(LongEvalError, match="--device cpu: the vLLM that is installed computes on cuda") as caught:
        vllm_options.engine_device("cpu")
    assert "--device cuda" in caught.value.remedy
    with pytest.raises(LongEvalError, match="--device cuda:2: vLLM takes the first GPU"):
        vllm_options.engine_device("cuda:2")
    platform(monkeypatch, "cpu", "cpu")
    assert vllm_options.engine_device("cpu") == "cpu (vLLM)"
    for device in ("cuda:0", "mps"):
        with pytest.raises(LongEvalError, match=f"--device {device}: the vLLM that is installed computes on cpu"):
            vllm_options.engine_device(device)
    platform(monkeypatch, "", "")
    with pytest.raises(LongEvalError, match="no device of this machine"):
        vllm_options.engine_device("cpu")


def test_models_of_the_hub_are_read_at_the_commit_that_the_record_names(request_spec, monkeypatch):
    snapshot = hub.HubSnapshot(hub_id="a/b", commit="c" * 40, config_path="/x/config.json", local_only=False)
    monkeypatch.setattr(hub, "open_hub", lambda ref: snapshot)
    plan = plan_ppl(request_spec(backend="vllm"))
    for revision in (None, "main"):
        ref = ModelRef(name="b", kind="hub", location="a/b", revision=revision)
        model = dataclasses.replace(plan.work[0].model, ref=ref)
        table = plan.work[0].table(64)
        engine = vllm_options.engine_arguments(model, table, 65, {}, share_prefixes=False)
        assert (engine["model"], engine["tokenizer"]) == ("a/b", "a/b")
        assert engine["revision"] == engine["tokenizer_revision"] == snapshot.commit


def test_an_engine_gets_a_tokenizer_of_ours_where_transformers_would_make_another(request_spec, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text = "Numbers and some words."
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    for named, is_own in (("PreTrainedTokenizerFast", False), ("LlamaTokenizer", True)):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": named}))
        assert (transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids != expected) is is_own
        plan = plan_ppl(request_spec(model=(str(folder),), backend="vllm"))
        table = plan.work[0].table(64)
        engine = vllm_options.engine_arguments(plan.work[0].model, table, 65, {}, share_prefixes=False)
        assert (engine["model"], engine["tokenizer"] != engine["model"]) == (str(folder), is_own)
        assert transformers.AutoTokenizer.from_pretrained(engine["tokenizer"])(text).input_ids == expected


def test_engine_arguments(request_spec):
    plan = plan_ppl(request_spec(backend="vllm"))
    model = plan.work[0].model
    table = plan.work[0].table(64)
    engine = vllm_options.engine_arguments(model, table, 129, {"max_num_seqs": 3}, share_prefixes=False)
    assert (engine["max_model_len"], engine["dtype"], engine["max_num_seqs"]) == (129, model.dtype, 3)
    assert engine["load_format"] == "safetensors"
    assert not engine["trust_remote_code"]
    assert engine["hf_overrides"]["max_position_embeddings"] == 129  # the model's own is 64
    assert engine["hf_overrides"]["rope_parameters"]["table_length"] == 129
    assert np.array_equal(engine["hf_overrides"]["rope_parameters"]["inv_freq"], table.inv_freq_F)
    assert engine["enforce_eager"]
    assert not vllm_options.engine_arguments(model, table, 129, {"enforce_eager": False}, share_prefixes=True)[
        "enforce_eager"
    ]
