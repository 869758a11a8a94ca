"""`longeval serve` and the openai backend, with vLLM's real server: the method that was served is what is measured.

One server for all tests; its numbers must be those of the hf backend on the same folder under the same table.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from answer_reference import greedy
from completions_server import VOCABULARY, WORDS, make_tokenizer
from contract import check_backend
from ports import free_port
from words_model import write_documents, write_task

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.backends.hf.backend import HFBackend
from longeval.backends.openai import dialect as openai_dialect
from longeval.backends.openai.backend import OpenAIBackend
from longeval.backends.openai.client import RefusedError
from longeval.cli.app import run_app
from longeval.errors import LongEvalError
from longeval.models import load
from longeval.models.resolve import resolve
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

KEY = "tests-only"
ENVIRONMENT = os.environ | {"LONGEVAL_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1"}
NATIVE = 128
LENGTH = 256
ROOM = LENGTH + 1
"""One more token than the longest prompt: a server generates one at least."""
RNG = np.random.default_rng(3)
DOCUMENT_T = RNG.integers(3, VOCABULARY, 70)
TABLE = build_table("resonance_yarn", Geometry(head_dim=32, theta=10000.0, native_length=NATIVE, factor=2.0))


def save_model(folder):
    """A tiny Llama whose generation settings ask for sampling and penalties, and end at a second token as well."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    torch.manual_seed(4)
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=NATIVE,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=1,
        **sizes,
        **heads,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[1, 35], do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.5
    )
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def start(folder, log, *flags):
    """`longeval serve` under a port of its own; what it says goes to the file `log`."""
    served = [sys.executable, "-m", "longeval", "serve", "--model", str(folder), "--pe", "resonance_yarn"]
    served += ["--factor", "2", "--dtype", "float32", "--served-model", "tiny", *flags]
    with log.open("wb") as file:
        return subprocess.Popen(
            served, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=log.parent, start_new_session=True,
            # A shell's background processes ignore Ctrl-C, and their children with them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def wait_for(server, log, seen):
    """Waits until something is seen; what the server said is shown if it never is."""
    until = time.monotonic() + 400
    while not seen():
        assert server.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-3000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder, and vLLM's server for it, which Ctrl-C ends with all its processes."""
    folder = save_model(tmp_path_factory.mktemp("served") / "model")
    port, log = free_port(), folder.parent / "log"
    server = start(folder, log, "--port", str(port), "--vllm-arg", "max_num_seqs=4")
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_for(server, log, lambda: "longeval: ready:" in log.read_text())
        tokenizer = load.load_tokenizer(resolve(str(folder)))
        yield SimpleNamespace(folder=folder, url=url, tokenizer=tokenizer, log=log)
    finally:
        below = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
        status = server.wait(timeout=60)
        _, alive = psutil.wait_procs(below, timeout=30)
        for process in alive:
            process.kill()
    assert (status, alive) == (0, [])


@pytest.fixture(scope="module")
def hf(served):
    backend = HFBackend(load.load_model(resolve(str(served.folder)), dtype="float32", device="cpu"))
    backend.serve(TABLE, LENGTH)
    return backend


@pytest.fixture
def server(served):
    backend = connect(served)
    yield backend
    backend.close()


def connect(served, tokenizer=None):
    backend = OpenAIBackend(base_url=served.url, tokenizer=tokenizer or served.tokenizer, api_key=KEY, concurrency=4)
    backend.serve(TABLE, LENGTH)
    return backend


def some(num_tokens):
    return RNG.integers(3, VOCABULARY, num_tokens)


def join(*parts):
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.int32)


def test_it_says_what_it_is(served, server):
    first, last = served.log.read_text().splitlines()  # and nothing of vLLM's
    assert first.startswith("longeval: starting vLLM's server: tiny with resonance_yarn, s = 2, up to 256 tokens")
    assert last.startswith(f"longeval: ready: {served.url} serves tiny with resonance_yarn, s = 2, up to 256 tokens")
    assert KEY not in served.log.read_text()
    assert (server.served_model, server.max_length) == ("tiny", ROOM)
    form = server._dialect.form
    assert form.as_ids and form.returns_ids
    assert server._dialect.route.name == "prompt_logprobs"


def test_it_keeps_the_contract(served, server):
    check_backend(server, served.tokenizer, TABLE, LENGTH, ids=range(VOCABULARY), atol=5e-4)


@pytest.mark.parametrize("route", ["prompt_logprobs", "echo"])
def test_choices_and_scores_are_those_of_the_hf_backend(server, hf, route, monkeypatch):
    if route == "echo":
        monkeypatch.setattr(openai_dialect, "_ROUTES", openai_dialect._ROUTES[1:])
    contexts = [join(DOCUMENT_T, some(5)), join(DOCUMENT_T, some(3)), join(some(9))]
    requests = [
        ChoicesRequest(context_T=context_T, continuations=tuple(join(some(size)) for size in (1, 1, 4, 9)))
        for context_T in contexts
    ]
    best_S = greedy(hf.model, contexts[2], 3)
    requests.append(ChoicesRequest(context_T=contexts[2], continuations=(best_S, best_S[:1], join(best_S[:1], [3]))))
    theirs, ours = dict(server.choices(requests)), dict(hf.choices(requests))
    differences = [
        abs(one.log_likelihood - other.log_likelihood)
        for index in ours
        for one, other in zip(theirs[index], ours[index], strict=True)
    ]
    assert len(differences) == 15 and max(differences) < 2e-4
    assert [[score.greedy for score in theirs[n]] for n in range(4)] == [[s.greedy for s in ours[n]] for n in range(4)]
    assert [score.greedy for score in theirs[3]][:2] == [True, True]
    window_T = join(some(LENGTH - 1))
    nll_S, expected_S = server.score(window_T, 1), hf.score(window_T, 1)
    np.testing.assert_allclose(nll_S, expected_S, atol=2e-4)
    assert server._dialect.route.name.startswith(route)
    logger.info("%s: choices by %.1e, scores by %.1e", route, max(differences), np.abs(nll_S - expected_S).max())


STOPS = [(), tuple("c"), ("fox", "j", "lazy dog", "q", "over", "b", "the"), ("<s>",), ("h",), ("e ",)]


@pytest.mark.parametrize("returns_ids", [True, False])
def test_answers_are_those_of_the_hf_backend(served, server, hf, returns_ids, monkeypatch):
    if not returns_ids:
        form = openai_dialect.PromptForm(as_ids=True, returns_ids=False)
        monkeypatch.setattr(server._dialect, "form", form)
    prompts = [join(DOCUMENT_T, some(n % 4 + 1)) for n in range(12)] + [join(some(4)) for _ in range(12)]
    requests = [
        GenerateRequest(prompt_T=prompt_T, max_new_tokens=30, stop=STOPS[n % len(STOPS)])
        for n, prompt_T in enumerate(prompts)
    ]
    theirs, ours = dict(server.generate(requests, served.tokenizer)), dict(hf.generate(requests, served.tokenizer))
    assert sorted(theirs) == sorted(ours)
    if returns_ids:
        assert theirs == ours
        assert {answer.finish for answer in ours.values()} == {"stop", "eos", "length"}
    else:
        # The model's settings are the server's then: a penalty there is what an outside server has.
        assert theirs != ours


def test_another_vocabulary_is_told(served):
    other = make_tokenizer(words=[*WORDS[:3], *reversed(WORDS[3:])])
    with pytest.raises(LongEvalError, match="--model must be the model that the server serves"):
        connect(served, other).score(join(some(5)), 1)


def test_what_does_not_fit_is_told(server, monkeypatch):
    window_T = join(some(ROOM))
    server.serve(TABLE, ROOM)
    said = f"--lengths {ROOM}: {ROOM} tokens and 1 to generate exceed the server's model length {ROOM}"
    with pytest.raises(LongEvalError, match=said):
        server.score(window_T, 1)
    monkeypatch.setattr(server, "max_length", None)
    server.serve(TABLE, 2 * LENGTH)
    for too_long_T in (window_T, join(window_T, some(40))):
        with pytest.raises(
            LongEvalError, match=rf"--lengths {2 * LENGTH}: the server refuses a request of that length"
        ):
            server.score(too_long_T, 1)


def test_what_it_refuses_is_told(served, server):
    server.serve(TABLE, LENGTH)
    with pytest.raises(RefusedError, match=r"\(400\): Token id 99999 is out of vocabulary"):
        server.score(join([3, 99999]), 1)
    with pytest.raises(LongEvalError, match=r"LONGEVAL_API_KEY: .* refuses the key \(401\)"):
        OpenAIBackend(base_url=served.url, tokenizer=served.tokenizer, api_key="wrong")


def carry_out(name, **plain):
    """Exit status, and records by (length, metric), of a request in the current folder."""
    with open(f"{name}.yaml", "w") as file:
        json.dump(plain, file)
    status = run_app(["run", f"{name}.yaml", "--out", name, "--json", f"{name}.json"])
    if status:
        return status, {}
    with open(f"{name}.json") as file:
        return status, {(r["length"], r["metric"]): r for r in json.load(file)}


@pytest.mark.parametrize("command", ["ppl", "tasks"])
def test_what_is_served_is_what_is_measured(served, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGEVAL_API_KEY", KEY)
    kind = {"data": [str(write_documents(tmp_path / "documents.jsonl", words=(300, 280)))]}
    if command == "tasks":
        tasks = [str(write_task(tmp_path, name)) for name in ("generate_until", "multiple_choice")]
        kind = {"command": "tasks", "tasks": tasks}
    common = {"model": [str(served.folder)], "pe": ["resonance_yarn"], "factor": 2, "lengths": [64, LENGTH], **kind}
    status, expected = carry_out("hf", **common, dtype="float32")
    assert status == 0
    capsys.readouterr()
    openai = {"backend": "openai", "base_url": served.url, "served_model": "tiny"}
    status, found = carry_out("openai", **common, **openai)
    said = capsys.readouterr().err
    assert status == 0, said
    assert "says that it computes with resonance_yarn, s = 2" in said and KEY not in said
    assert found.keys() == expected.keys()
    for key, record in found.items():
        assert record["value"] == pytest.approx(expected[key]["value"], rel=1e-4)
        assert (record["backend"], record["rope_digest"]) == ("openai", expected[key]["rope_digest"])
    assert carry_out("other", **common | {"factor": 4}, **openai) == (2, {})
    assert "Use --factor 2, or" in capsys.readouterr().err
    monkeypatch.setenv("LONGEVAL_API_KEY", "another")
    assert carry_out("wrong", **common, **openai) == (2, {})
    said = capsys.readouterr().err
    assert "LONGEVAL_API_KEY" in said and "another" not in said


@pytest.mark.weekly
@pytest.mark.skipif(sys.platform != "linux", reason="the system ends no processes with their parent")
def test_no_process_outlives_a_longeval_that_is_killed(served, tmp_path):
    server = start(served.folder, tmp_path / "log", "--port", str(free_port()))
    below = []

    def engines():
        below = psutil.Process(server.pid).children(recursive=True)
        return [process for process in below if "EngineCore" in " ".join(process.cmdline())]

    try:
        wait_for(server, tmp_path / "log", engines)
        below = psutil.Process(server.pid).children(recursive=True)
        server.kill()
        server.wait(timeout=60)
        _, alive = psutil.wait_procs(below, timeout=30)
        assert alive == []
        assert len(below) >= 2
    finally:
        for process in below:
            if process.is_running():
                process.kill()
        server.kill()
