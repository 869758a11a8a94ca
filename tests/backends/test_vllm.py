"""vLLM with our tables computes what transformers computes with them: real engines, in processes of their own."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from own_tasks import CHOICE, write_data, write_task
from tiny import make_text, save_tiny_llama

from longeval.backends.base import BackendError, ChoicesRequest, GenerateRequest
from longeval.backends.hf.backend import HFBackend
from longeval.models.prepare import prepare
from longeval.rope.build import parse_method_name

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LENGTH = 512
"""Eight times the native 64."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny", head_dim=32, hidden_size=64)


@pytest.fixture(scope="module")
def model(folder):
    return prepared(folder)


def prepared(folder, dtype="float32", **settings):
    usual = {"revision": None, "native": None, "bos": None, "device_map": None, "attn": None}
    return prepare(str(folder), dtype=dtype, device="cpu", trust_remote_code=False, **(usual | settings))


def table_of(model, pe, factor=8.0):
    geometry = dataclasses.replace(model.geometry, factor=factor)
    return model.rope.tables(parse_method_name(pe), geometry, {})(LENGTH)


def everything(backend, model, table):
    """Digest, scores, choices, answers."""
    random_T = np.random.default_rng(0).integers(1, 290, 400).astype(np.int32)
    text_T = np.array(model.tokenizer(make_text(60)).input_ids, dtype=np.int32)
    questions = [
        ChoicesRequest(context_T=random_T, continuations=(text_T[:1], text_T[1:5], text_T[:40], text_T[:41])),
        ChoicesRequest(context_T=np.concatenate([random_T, text_T[:6]]), continuations=(text_T[6:9], text_T[8:9])),
        ChoicesRequest(context_T=text_T[:3], continuations=()),
        # The answer repeats the end of the prompt's beginning: a prefix cache holds what is to be scored.
        ChoicesRequest(context_T=random_T[:32], continuations=(random_T[32:300], random_T[32:310])),
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
        backend.score(random_T, 300),
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


def test_every_method_gives_what_transformers_gives(model):
    from longeval.backends.vllm.backend import VLLMBackend

    tables = {pe: table_of(model, pe) for pe in ("none", "yarn", "resonance_yarn")}
    hf = HFBackend(model.load())
    expected = {pe: everything(hf, model, table) for pe, table in tables.items()}
    assert np.abs(expected["none"][2] - expected["yarn"][2]).mean() > 0.05  # else nothing would be shown
    assert np.abs(expected["resonance_yarn"][2] - expected["yarn"][2]).mean() > 0.005
    vllm = VLLMBackend(model, length=LENGTH, share_prefixes=True)
    try:
        for pe, table in tables.items():
            assert_same(expected[pe], everything(vllm, model, table))
    finally:
        vllm.close()
    assert engines() == []


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


def test_layers_with_a_window_of_their_own(tmp_path):
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
    for layers in ("global", "all"):
        model = prepared(folder, layers=layers)
        table = table_of(model, "resonance_yarn")
        assert (table.local is not None) == (layers == "all")
        tokens_T = np.random.default_rng(0).integers(1, 290, 300).astype(np.int32)
        hf = HFBackend(model.load())
        hf.serve(table, LENGTH)
        vllm = VLLMBackend(model, length=LENGTH)
        try:
            vllm.serve(table, LENGTH)
            assert vllm.rope_digest(LENGTH) == hf.rope_digest(LENGTH)
            np.testing.assert_allclose(vllm.score(tokens_T, 1), hf.score(tokens_T, 1), atol=5e-3)
        finally:
            vllm.close()


def test_a_table_that_isnt_the_asked_one_is_told(model, monkeypatch):
    from longeval.backends.vllm import backend as module

    wrong = table_of(model, "none")
    real = module.engine_arguments
    monkeypatch.setattr(
        module, "engine_arguments", lambda model, table, *rest, **named: real(model, wrong, *rest, **named)
    )
    backend = module.VLLMBackend(model, length=LENGTH)
    with pytest.raises(BackendError, match="another one is there"):
        backend.serve(table_of(model, "yarn"), LENGTH)
    assert engines() == []


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


def test_an_unknown_option_is_refused_before_anything_starts(model):
    from longeval.backends.vllm.backend import VLLMBackend
    from longeval.errors import LongEvalError

    with pytest.raises(LongEvalError, match="tensor_paralel_size") as caught:
        VLLMBackend(model, length=LENGTH, args={"tensor_paralel_size": 2})
    assert "tensor_parallel_size" in caught.value.remedy


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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
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


def run_request(folder, tmp_path, name, **changes):
    """Records of one request, by (pe, length, metric)."""
    plain = {"model": [str(folder)], "pe": ["none", "resonance_yarn"], "lengths": [128, 256], "dtype": "float32"}
    (tmp_path / f"{name}.yaml").write_text(json.dumps(plain | changes))
    out = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", "longeval", "run", f"{name}.yaml", "--out", name, "--json", str(out), "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # nothing of vLLM's gets there
    return {(r["pe"], r["length"], r["metric"]): r for r in json.loads(out.read_text())}


def test_requests_give_what_hf_gives_and_say_what_ran(folder, tmp_path):
    (tmp_path / "book.txt").write_text(make_text(2000))
    task = write_task(tmp_path, CHOICE, write_data(tmp_path), "which_word")
    asked = {"ppl": {"data": [str(tmp_path / "book.txt")]}, "tasks": {"command": "tasks", "tasks": [str(task)]}}
    for command, extra in asked.items():
        hf = run_request(folder, tmp_path, f"{command}-hf", **extra)
        vllm = run_request(
            folder, tmp_path, f"{command}-vllm", **extra, backend="vllm", vllm_args={"max_num_batched_tokens": 96}
        )
        assert hf.keys() == vllm.keys()
        for key, record in vllm.items():
            assert record["status"] == "ok"
            assert (record["backend"], record["dtype"]) == ("vllm", "float32")
            assert record["rope_digest"] == hf[key]["rope_digest"]
            assert record["value"] == pytest.approx(hf[key]["value"], rel=1e-4)
            assert record["cell"] != hf[key]["cell"]
            assert record["params"]["vllm_args"] == {"max_num_batched_tokens": 96}
            assert any(name.startswith("vllm") for name in record["provenance"]["versions"])


def test_parity_tells_a_wrong_table_from_the_right_one(folder, monkeypatch):
    from longeval.backends.vllm import backend as module
    from longeval.cli.progress import RunProgress
    from longeval.doctor.parity import parity
    from longeval.request import PplRequest
    from longeval.studies.ppl.plan import plan_ppl

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

    class Wrong(module.VLLMBackend):
        """Unrounded YaRN, which differs little."""

        def serve(self, table, length):
            model = self._model
            super().serve(table_of(model, "yarn"), length)

    wrong = functools.partial(Wrong, length=300)
    (told,) = parity(plan, RunProgress(quiet=True, verbose=False), load_vllm=wrong)
    assert told.verdict == "different"
    assert len(told.reasons) == 3  # the table, by more than rounding the log-probabilities, the continuation
