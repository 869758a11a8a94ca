"""vLLM with our tables computes what transformers computes with them: real engines, in processes of their own.

An engine takes half a minute to start. Most questions go to the one of the fixture `vllm`; what needs an engine of
its own is `weekly`, unless a user's numbers depend on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from adapters import save_adapter
from contract import check_backend
from own_tasks import CHOICE, write_data, write_task
from tiny import make_text, save_tiny_llama

from longeval.backends.base import BackendError, ChoicesRequest, GenerateRequest
from longeval.backends.hf.backend import HFBackend, load_backend
from longeval.cli.app import run_app
from longeval.errors import LongEvalError
from longeval.models.prepare import prepare
from longeval.rope.base import CosSin
from longeval.rope.build import parse_method_name

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LENGTH = 512
"""Eight times the native 64."""
RANDOM_T = np.random.default_rng(0).integers(1, 290, 400).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny", head_dim=32, hidden_size=64)


@pytest.fixture(scope="module")
def model(folder):
    return prepared(folder)


@pytest.fixture(scope="module")
def hf(model):
    return HFBackend(model.load())


@pytest.fixture(scope="module")
def vllm(model):
    """The backend, with Resonance YaRN's engine at the first test that uses it."""
    from longeval.backends.vllm.backend import VLLMBackend

    backend = VLLMBackend(model, length=LENGTH, share_prefixes=True)
    try:
        backend.serve(table_of(model, "resonance_yarn"), LENGTH)
        yield backend
    finally:
        backend.close()
        assert engines() == []


def prepared(folder, dtype="float32", **settings):
    usual = {"revision": None, "native": None, "bos": None, "device_map": None, "attn": None}
    return prepare(str(folder), dtype=dtype, device="cpu", trust_remote_code=False, **(usual | settings))


def table_of(model, pe, factor=8.0, **arguments):
    geometry = dataclasses.replace(model.geometry, factor=factor)
    return model.rope.tables(parse_method_name(pe), geometry, arguments)(LENGTH)


def engines(process=None):
    """Processes of vLLM's below this one that still run."""
    found = []
    for child in (process or psutil.Process()).children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "VLLM" in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def kill_engine():
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, killed before
            if "VLLM::EngineCore" in " ".join(child.cmdline()):
                child.kill()


def everything(backend, model, table):
    """Digest, scores, choices, answers."""
    text_T = np.array(model.tokenizer(make_text(60)).input_ids, dtype=np.int32)
    questions = [
        ChoicesRequest(context_T=RANDOM_T, continuations=(text_T[:1], text_T[1:5], text_T[:40], text_T[:41])),
        ChoicesRequest(context_T=np.concatenate([RANDOM_T, text_T[:6]]), continuations=(text_T[6:9], text_T[8:9])),
        ChoicesRequest(context_T=text_T[:3], continuations=()),
        # The answer repeats the end of the prompt's beginning: a prefix cache holds what is to be scored.
        ChoicesRequest(context_T=RANDOM_T[:32], continuations=(RANDOM_T[32:300], RANDOM_T[32:310])),
    ]
    prompts = [
        GenerateRequest(prompt_T=text_T[:size], max_new_tokens=20, stop=stop)
        for size in (5, 20, 60)
        for stop in ((), ("a",), ("the", " r"))
    ]
    backend.serve(table, LENGTH)
    return (
        backend.rope_digest(500),
        backend.score(text_T, 1),
        backend.score(RANDOM_T, 300),
        sorted(backend.choices(questions)),
        sorted(backend.generate(prompts, model.tokenizer)),
    )


def assert_same(hf, vllm, atol=5e-4):
    assert vllm[0] == hf[0]
    np.testing.assert_allclose(vllm[1], hf[1], atol=atol)
    np.testing.assert_allclose(vllm[2], hf[2], atol=atol)
    for (index, expected), (place, found) in zip(hf[3], vllm[3], strict=True):
        assert index == place
        np.testing.assert_allclose([s.log_likelihood for s in found], [s.log_likelihood for s in expected], atol=5e-3)
        assert [score.greedy for score in found] == [score.greedy for score in expected]
    assert vllm[4] == hf[4]


def test_resonance_yarn_gives_what_transformers_gives(hf, vllm, model):
    expected = everything(hf, model, table_of(model, "resonance_yarn"))
    assert_same(expected, everything(vllm, model, table_of(model, "resonance_yarn")))
    for pe, least in (("none", 0.05), ("yarn", 0.005)):  # else nothing would be shown
        hf.serve(table_of(model, pe), LENGTH)
        assert np.abs(hf.score(RANDOM_T, 300) - expected[2]).mean() > least


def test_features_that_turn_several_times_give_what_transformers_gives(hf, vllm, model):
    table = table_of(model, "resonance_yarn", max_period="native")
    assert table.turns_F.max() > 1
    expected = everything(hf, model, table)
    assert_same(expected, everything(vllm, model, table))
    hf.serve(table_of(model, "resonance_yarn"), LENGTH)
    assert np.abs(hf.score(RANDOM_T, 300) - expected[2]).mean() > 0.005
    vllm.serve(table_of(model, "resonance_yarn"), LENGTH)


def test_it_keeps_the_contract(vllm, model):
    check_backend(vllm, model.tokenizer, table_of(model, "resonance_yarn"), LENGTH, ids=range(1, 290), atol=5e-4)


def test_a_table_that_isnt_the_asked_one_is_told(vllm, model, monkeypatch):
    monkeypatch.setattr(vllm, "_table", table_of(model, "yarn"))  # which the engine wasn't given
    with pytest.raises(BackendError, match="it holds another table"):
        vllm.rope_digest(LENGTH)


def test_an_unknown_option_is_refused_before_anything_starts(model):
    from longeval.backends.vllm.backend import VLLMBackend

    with pytest.raises(LongEvalError, match="tensor_paralel_size") as caught:
        VLLMBackend(model, length=LENGTH, args={"tensor_paralel_size": 2})
    assert "tensor_parallel_size" in caught.value.remedy


def test_an_engine_that_didnt_start_isnt_started_again(model, monkeypatch):
    from longeval.backends.vllm import backend as module

    started = []

    def start(name, arguments):
        started.append(name)
        raise BackendError("it didn't start")

    monkeypatch.setattr(module, "start_engine", start)
    backend = module.VLLMBackend(model, length=LENGTH)
    for pe in ("yarn", "yarn", "none", "yarn"):
        with pytest.raises(BackendError, match="it didn't start"):
            backend.serve(table_of(model, pe), LENGTH)
    assert len(started) == 2


def test_a_killed_engine_is_told_and_replaced(hf, vllm, model):
    """The last test of the shared engine; the one that takes its place has another table."""
    threading.Timer(1.0, kill_engine).start()  # while it works: the requests are for far longer
    prompts = [GenerateRequest(prompt_T=RANDOM_T[: 5 + i], max_new_tokens=490, stop=()) for i in range(200)]
    with pytest.raises(RuntimeError, match="engine died: its process ended without a message"):
        list(vllm.generate(prompts, model.tokenizer))
    table = table_of(model, "none")
    assert_same(everything(hf, model, table), everything(vllm, model, table))
    kill_engine()
    with pytest.raises(RuntimeError, match="engine died"):
        vllm.rope_digest(LENGTH)


def test_the_table_goes_where_the_model_is_built():
    import torch

    from longeval.backends.vllm.rotary import VLLMTableRotaryEmbedding

    table = CosSin(np.ones((4, 2), dtype=np.float32), np.zeros((4, 2), dtype=np.float32))
    module = SimpleNamespace(longeval_table=table)
    with torch.device("meta"):
        assert VLLMTableRotaryEmbedding._compute_cos_sin_cache(module).device.type == "meta"
    found = VLLMTableRotaryEmbedding._compute_cos_sin_cache(module)
    assert found.device.type == "cpu" and found.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 4


@pytest.mark.parametrize("layers", [pytest.param("global", marks=pytest.mark.weekly), "all"])
def test_layers_with_a_window_of_their_own(tmp_path, layers):
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    from longeval.backends.vllm.backend import VLLMBackend

    folder = save_tiny_llama(tmp_path / "gemma", head_dim=32, hidden_size=64)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        intermediate_size=48, vocab_size=300, max_position_embeddings=64, sliding_window=32, initializer_range=0.3,
        layer_types=["sliding_attention", "full_attention"] * 2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = prepared(folder, layers=layers)
    table = table_of(model, "resonance_yarn")
    assert (table.local is not None) == (layers == "all")
    hf = HFBackend(model.load())
    hf.serve(table, LENGTH)
    backend = VLLMBackend(model, length=LENGTH)
    try:
        backend.serve(table, LENGTH)
        assert backend.rope_digest(LENGTH) == hf.rope_digest(LENGTH)
        np.testing.assert_allclose(backend.score(RANDOM_T[:300], 1), hf.score(RANDOM_T[:300], 1), atol=5e-3)
    finally:
        backend.close()


@pytest.mark.weekly
def test_an_engine_without_memory_says_so(model):
    from longeval.backends.vllm.backend import VLLMBackend

    length = 4 * 2**20  # 1 KiB of keys and values a token, and the engine has 1 GiB
    backend = VLLMBackend(model, length=length)
    with pytest.raises(BackendError, match="didn't start") as caught:
        backend.serve(table_of(model, "none"), length)
    assert "KV cache" in caught.value.problem
    assert "gpu_memory_utilization" in caught.value.remedy
    assert "\n" not in caught.value.problem
    assert engines() == []


def save_words(folder):
    """A tokenizer of whole words that begin with a blank, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0} | {f"▁w{i}": i for i in range(1, 300)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>", unk_token="<s>").save_pretrained(folder)


@pytest.mark.weekly
def test_a_stop_text_with_a_blank_ends_no_answer_at_its_first_word(folder, tmp_path):
    from longeval.backends.vllm.backend import VLLMBackend

    shutil.copytree(folder, tmp_path / "words")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "words" / name).unlink(missing_ok=True)
    save_words(tmp_path / "words")
    model = prepared(tmp_path / "words")
    hf, backend = HFBackend(model.load()), VLLMBackend(model, length=LENGTH)
    table = table_of(model, "none")
    hf.serve(table, LENGTH)

    def answers(backend, stops):
        requests = [
            GenerateRequest(prompt_T=RANDOM_T[: 20 + i], max_new_tokens=12, stop=stop) for i, stop in enumerate(stops)
        ]
        return sorted(backend.generate(requests, model.tokenizer))

    plain = answers(hf, [()] * 4)
    stops = [(f" {answer.text.split()[0]}",) for _, answer in plain]
    expected = answers(hf, stops)
    assert any(answer.num_tokens > 1 for _, answer in expected)
    try:
        backend.serve(table, LENGTH)
        assert answers(backend, [()] * 4) == plain
        assert answers(backend, stops) == expected
    finally:
        backend.close()


REQUEST = """
command: ppl
model: [{folder}]
pe: [yarn]
lengths: [{length}]
factor: 8
data: [{text}]
backend: vllm
dtype: float32
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.weekly),
    ],
)
def test_no_process_is_left(folder, tmp_path, how):
    (tmp_path / "book.txt").write_text(make_text(4000))
    (tmp_path / "request.yaml").write_text(REQUEST.format(folder=folder, length=4096, text=tmp_path / "book.txt"))
    command = [sys.executable, "-m", "longeval", "run", "request.yaml", "--out", "run"]
    run = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        # A shell's background processes ignore Ctrl-C, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    process = psutil.Process(run.pid)
    try:
        # Killed, an engine ends once it has bound itself to its parent, as it has when there is a worker; before, it
        # waits five minutes for the parent's greeting.
        sign = "VLLM::EngineCore" if how == signal.SIGINT else "VLLM::Worker"
        for _ in range(1200):
            below = process.children(recursive=True)
            if any(sign in " ".join(engine.cmdline()) for engine in engines(process)):
                break
            assert run.poll() is None, run.stdout.read().decode()
            time.sleep(0.1)
        else:
            pytest.fail("no engine started")
        if how == signal.SIGINT:
            os.killpg(run.pid, how)  # as a terminal does
        else:
            run.kill()
        code = run.wait(timeout=60)
        _, alive = psutil.wait_procs(below, timeout=30)
        assert alive == []
        assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    finally:
        for left in [*process.children(recursive=True)] if process.is_running() else []:
            left.kill()
        run.stdout.close()


def run_request(folder, name, **settings):
    """Records of one request in the current folder, by (pe, length, metric)."""
    plain = {"model": [str(folder)], "lengths": [128, 256], "factor": 4, "dtype": "float32"}
    with open(f"{name}.yaml", "w") as file:
        json.dump(plain | settings, file)
    assert run_app(["run", f"{name}.yaml", "--out", name, "--json", f"{name}.json", "-q"]) == 0
    with open(f"{name}.json") as file:
        return {(r["pe"], r["length"], r["metric"]): r for r in json.load(file)}


@pytest.mark.parametrize("command", ["ppl", pytest.param("tasks", marks=pytest.mark.weekly)])
def test_requests_give_what_hf_gives_and_say_what_ran(folder, tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(make_text(2000))
    asked = {"data": ["book.txt"], "pe": ["resonance_yarn"]}
    if command == "tasks":
        task = write_task(tmp_path, CHOICE, write_data(tmp_path), "which_word")
        asked = {"command": "tasks", "tasks": [str(task)], "pe": ["none", "resonance_yarn"]}
    hf = run_request(folder, "hf", **asked)
    capfd.readouterr()
    vllm = run_request(folder, "vllm", **asked, backend="vllm", vllm_args={"max_num_batched_tokens": 96})
    assert capfd.readouterr().out == ""  # nothing of vLLM's gets there
    assert hf.keys() == vllm.keys()
    for key, record in vllm.items():
        assert record["status"] == "ok"
        assert (record["backend"], record["dtype"]) == ("vllm", "float32")
        assert record["rope_digest"] == hf[key]["rope_digest"]
        assert record["value"] == pytest.approx(hf[key]["value"], rel=1e-4)
        assert record["cell"] != hf[key]["cell"]
        assert record["params"]["vllm_args"] == {"max_num_batched_tokens": 96}
        assert any(name.startswith("vllm") for name in record["provenance"]["versions"])


@pytest.mark.weekly
def test_parity_tells_a_wrong_table_from_the_right_one(folder):
    from longeval.backends.vllm.backend import VLLMBackend
    from longeval.cli.progress import RunProgress
    from longeval.doctor.parity import parity
    from longeval.studies.ppl.plan import plan_ppl
    from longeval.studies.ppl.request import PplRequest

    plan = plan_ppl(
        PplRequest(
            model=(str(folder),), pe=("resonance_yarn",), lengths=(300,), factor=8.0, data=("stdlib",), docs=1,
            backend="vllm", dtype="float32",
        )
    )  # fmt: skip
    (right,) = parity(plan, RunProgress(quiet=True, verbose=False))
    assert (right.verdict, right.reasons) == ("same", ())
    assert right.digest_hf == right.digest_vllm
    assert right.mean_difference < 1e-4
    assert right.answer_hf == right.answer_vllm

    class Wrong(VLLMBackend):
        """Unrounded YaRN, which differs little."""

        def serve(self, table, length):
            model = self._model
            super().serve(table_of(model, "yarn"), length)

    wrong = functools.partial(Wrong, length=300)
    (told,) = parity(plan, RunProgress(quiet=True, verbose=False), load_vllm=wrong)
    assert told.verdict == "different"
    assert len(told.reasons) == 3  # the table, by more than rounding the log-probabilities, the continuation


def test_an_adapter_is_merged_for_the_engine_as_it_is_in_memory(folder, tmp_path):
    from longeval.backends.vllm.backend import VLLMBackend

    adapted = prepared(folder, adapter=str(save_adapter(folder, tmp_path / "lora")))
    table = table_of(adapted, "resonance_yarn")
    scores = {}
    backends = {
        "vllm": VLLMBackend(adapted, length=LENGTH, args={"gpu_memory_utilization": 0.3}),
        "hf": load_backend(adapted),
        "base": None,
    }
    backends["base"] = load_backend(prepared(folder))
    for name, backend in backends.items():
        try:
            backend.serve(table, LENGTH)
            scores[name] = backend.score(RANDOM_T, 1)
        finally:
            backend.close()
    np.testing.assert_allclose(scores["vllm"], scores["hf"], atol=5e-4)
    assert np.abs(scores["hf"] - scores["base"]).max() > 0.1
