"""The openai backend against a real server, vLLM's: its numbers must be those of the hf backend on the same folder."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from answer_reference import greedy
from completions_server import VOCABULARY, WORDS, make_tokenizer
from ports import free_port

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.backends.hf.backend import HFBackend
from longeval.backends.openai import dialect as openai_dialect
from longeval.backends.openai.backend import OpenAIBackend
from longeval.backends.openai.client import RefusedError
from longeval.errors import LongEvalError
from longeval.models import load
from longeval.models.resolve import resolve
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

logger = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed here"),
]

KEY = "tests-only"
LENGTH = 128
UP_S = 240
RNG = np.random.default_rng(3)
DOCUMENT_T = RNG.integers(3, VOCABULARY, 70)
TABLE = build_table("none", Geometry(head_dim=32, theta=10000.0, native_length=LENGTH, factor=1.0))


def save_model(folder):
    """A tiny Llama whose generation settings ask for sampling and penalties, and end at a second token as well."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    torch.manual_seed(4)
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder, and vLLM's server for it, which is always taken down with all its processes."""
    folder = save_model(tmp_path_factory.mktemp("served") / "model")
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", str(LENGTH), "--max-num-seqs", "4", "--enforce-eager"]
    environment = os.environ | {"VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    log = folder.parent / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder.parent, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        tokenizer = load.load_tokenizer(resolve(str(folder)))
        until = time.monotonic() + UP_S
        while True:
            try:
                OpenAIBackend(base_url=url, tokenizer=tokenizer, api_key=KEY, model="tiny").close()
                break
            except LongEvalError as error:
                said = log.read_text(errors="replace")[-3000:]
                assert process.poll() is None and time.monotonic() < until, f"{error}\n{said}"
                time.sleep(0.5)
        yield SimpleNamespace(folder=folder, url=url, tokenizer=tokenizer)
    finally:
        for number, wait_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            try:
                os.killpg(process.pid, number)
                process.wait(wait_s)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


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


def test_it_says_what_it_is(server):
    assert (server.served_model, server.max_length) == ("tiny", LENGTH)
    form = server._dialect.form()
    assert form.as_ids and form.returns_ids
    assert server._dialect.route().name == "prompt_logprobs"


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
    assert server._dialect.route().name.startswith(route)
    logger.info("%s: choices by %.1e, scores by %.1e", route, max(differences), np.abs(nll_S - expected_S).max())


STOPS = [(), tuple("c"), ("fox", "j", "lazy dog", "q", "over", "b", "the"), ("<s>",), ("h",), ("e ",)]


@pytest.mark.parametrize("returns_ids", [True, False])
def test_answers_are_those_of_the_hf_backend(served, server, hf, returns_ids, monkeypatch):
    if not returns_ids:
        form = openai_dialect.PromptForm(as_ids=True, returns_ids=False)
        monkeypatch.setattr(server._dialect, "_form", form)
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
    with pytest.raises(LongEvalError, match="--model must name the model that the server serves"):
        connect(served, other).score(join(some(5)), 1)


def test_what_does_not_fit_is_told(server, monkeypatch):
    window_T = join(some(LENGTH))
    said = f"--lengths {LENGTH}: {LENGTH} tokens and 1 to generate, and the server's model length is {LENGTH}"
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
