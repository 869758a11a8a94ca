"""Engines that die, don't start, or end answers where a whole text has no end; real ones, in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tiny import save_tiny_llama

from longeval.backends.base import BackendError, GenerateRequest
from longeval.backends.hf.backend import HFBackend
from longeval.models.prepare import prepare
from longeval.rope.base import CosSin
from longeval.rope.build import parse_method_name

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LENGTH = 512
RANDOM_T = np.random.default_rng(0).integers(1, 290, 300).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny", head_dim=32, hidden_size=64)


def prepared(folder):
    usual = {"revision": None, "native": None, "bos": None, "device_map": None, "attn": None}
    return prepare(str(folder), dtype="float32", device="cpu", trust_remote_code=False, **usual)


def table_of(model, pe):
    return model.rope.tables(parse_method_name(pe), dataclasses.replace(model.geometry, factor=8.0), {})(LENGTH)


def kill_engine():
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, killed before
            if "VLLM::EngineCore" in " ".join(child.cmdline()):
                child.kill()


def test_a_killed_engine_is_told_and_replaced(folder):
    from longeval.backends.vllm.backend import VLLMBackend

    model = prepared(folder)
    table = table_of(model, "yarn")
    backend = VLLMBackend(model, length=LENGTH)
    try:
        backend.serve(table, LENGTH)
        expected = backend.score(RANDOM_T, 1)
        threading.Timer(1.0, kill_engine).start()  # while it works: the requests are for far longer
        prompts = [GenerateRequest(prompt_T=RANDOM_T[: 5 + i], max_new_tokens=490, stop=()) for i in range(200)]
        with pytest.raises(RuntimeError, match="engine died: its process ended without a word"):
            list(backend.generate(prompts, model.tokenizer))
        backend.serve(table, LENGTH)
        np.testing.assert_allclose(backend.score(RANDOM_T, 1), expected, atol=1e-4)
        kill_engine()
        with pytest.raises(RuntimeError, match="engine died"):
            backend.rope_digest(LENGTH)
    finally:
        backend.close()


def test_an_engine_that_didnt_start_isnt_started_again(folder, monkeypatch):
    from longeval.backends.vllm import backend as module

    model = prepared(folder)
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


def test_the_table_goes_where_the_model_is_built():
    import torch

    from longeval.backends.vllm.rotary import TableRotaryEmbedding

    table = CosSin(np.ones((4, 2), dtype=np.float32), np.zeros((4, 2), dtype=np.float32))
    module = SimpleNamespace(longeval_table=table)
    with torch.device("meta"):
        assert TableRotaryEmbedding._compute_cos_sin_cache(module).device.type == "meta"
    found = TableRotaryEmbedding._compute_cos_sin_cache(module)
    assert found.device.type == "cpu" and found.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 4


def save_words(folder):
    """A tokenizer of whole words that begin with a blank, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0} | {f"▁w{i}": i for i in range(1, 300)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>", unk_token="<s>").save_pretrained(folder)


def test_a_stop_text_with_a_blank_ends_no_answer_at_its_first_word(folder, tmp_path):
    from longeval.backends.vllm.backend import VLLMBackend

    shutil.copytree(folder, tmp_path / "words")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "words" / name).unlink(missing_ok=True)
    save_words(tmp_path / "words")
    model = prepared(tmp_path / "words")
    hf, vllm = HFBackend(model.load()), VLLMBackend(model, length=LENGTH)
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
        vllm.serve(table, LENGTH)
        assert answers(vllm, [()] * 4) == plain
        assert answers(vllm, stops) == expected
    finally:
        vllm.close()
