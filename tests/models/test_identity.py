from __future__ import annotations

import hashlib
import json
import os
import shutil
import time

import pytest
from tiny import save_tiny_llama

from longeval import cache
from longeval.models.files import tokenizer_files, weights_digest
from longeval.models.resolve import resolve


def test_folder_identity_is_its_content_not_its_place(llama, tmp_path):
    here = weights_digest(resolve(str(llama)))
    moved = shutil.copytree(llama, tmp_path / "elsewhere")
    assert weights_digest(resolve(str(moved))) == here
    (moved / "README.md").write_text("not the model")
    assert weights_digest(resolve(str(moved))) == here


def test_files_of_a_tokenizer_count_where_it_does_not_tell_all_that_it_read(tmp_path):
    from longeval.models.prepare import prepare

    folder = save_tiny_llama(tmp_path / "slow", vocab_size=16)
    (folder / "tokenizer.json").unlink()
    words = ("<unk>", "a@@", "b@@", "c@@", "a", "b", "c", "ab@@", "ab", "bc")
    (folder / "vocab.json").write_text(
        json.dumps({w.removesuffix("@@") + "</w>" * (not w.endswith("@@")): i for i, w in enumerate(words)})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))

    def digest():
        rest = {"revision": None, "native": None, "bos": None, "device_map": None, "attn": None}
        model = prepare(str(folder), dtype="float32", device="cpu", trust_remote_code=False, **rest)
        assert not model.tokenizer.is_fast
        return model.tokenizer_digest

    seen = []
    for merges in ("a b\n", "b c\n"):
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
        seen.append(digest())
    (folder / "README.md").write_text("read by nobody")
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert digest() == seen[1] != seen[0]


def test_every_part_of_a_folder_counts(llama):
    seen = {weights_digest(resolve(str(llama)))}
    content = bytearray((llama / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (llama / "model.safetensors").write_bytes(content)
    seen.add(weights_digest(resolve(str(llama))))
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    seen.add(weights_digest(resolve(str(llama))))
    assert len(seen) == 3


def test_gguf_and_embedded_are_their_files(write_gguf):
    path = write_gguf()
    assert weights_digest(resolve(str(path))) == f"gguf:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert weights_digest(resolve("smollm2-135m-q4")).startswith("gguf:b179c9523d0e")
    assert weights_digest(resolve("gemma3-270m-q4")).startswith("gguf:a5fd3b62230a")


@pytest.fixture
def later(monkeypatch):
    """Every file is older than the time in which it may still change unseen."""
    monkeypatch.setattr(cache, "_now_ns", lambda: time.time_ns() + 10**10)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path, monkeypatch, later):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = cache.file_digest(str(path))
    assert first == hashlib.sha256(b"one").hexdigest()
    reads = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda name: reads.append(name) or real(name))
    assert cache.file_digest(str(path)) == first
    assert reads == []
    monkeypatch.setattr(cache, "_known", {})  # as in another process
    assert cache.file_digest(str(path)) == first
    assert reads == []
    monkeypatch.setattr(cache, "_remembered", lambda: pytest.fail("the memory is read once"))
    assert cache.file_digest(str(path)) == first
    monkeypatch.setattr(cache, "_remembered", dict)
    before = os.stat(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.file_digest(str(path)) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 1


def test_a_file_of_this_moment_is_not_remembered(tmp_path, own_cache):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    cache.file_digest(str(path))
    assert not (own_cache / "cache.json").exists()


def test_a_damaged_memory_is_an_empty_one(tmp_path, own_cache, monkeypatch, later):
    monkeypatch.setattr(cache, "_known", {})
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    own_cache.mkdir()
    stamp = cache.file_stamp(str(path))
    entries = ("x", [], [*stamp, 7], [*stamp, "not a digest"], [*stamp[:-1], 0, "0" * 64])
    for damage in ("{", "[]", "[" * 100_000, *(json.dumps({str(path): entry}) for entry in entries)):
        cache._known.clear()
        (own_cache / "cache.json").write_text(damage)
        assert cache.file_digest(str(path)) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "rust_model.ot", "x.ckpt"])
def test_other_weights_are_no_files_of_a_tokenizer(llama, name):
    ref = resolve(str(llama))
    before = tokenizer_files(ref)
    (llama / name).write_bytes(b"weights")
    assert tokenizer_files(ref) == before
    (llama / "merges.txt").write_text("a b")
    assert tokenizer_files(ref) != before
