from __future__ import annotations

import hashlib
import json
import os
import shutil

from longeval.models import digests
from longeval.models.identity import weights_digest
from longeval.models.resolve import resolve


def test_folder_identity_is_its_content_not_its_place(llama, tmp_path):
    here = weights_digest(resolve(str(llama)))
    moved = shutil.copytree(llama, tmp_path / "elsewhere")
    assert weights_digest(resolve(str(moved))) == here
    (moved / "README.md").write_text("not the model")
    assert weights_digest(resolve(str(moved))) == here


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


def age(path, seconds=60):
    """Makes a file look older than the time in which it may still change unseen."""
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * 10**9))


def test_a_digest_is_remembered_until_size_or_time_changes(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    age(path)
    first = digests.file_digest(str(path))
    assert first == hashlib.sha256(b"one").hexdigest()
    reads = []
    real = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda name: reads.append(name) or real(name))
    assert digests.file_digest(str(path)) == first
    assert reads == []
    path.write_bytes(b"two")
    assert digests.file_digest(str(path)) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 1


def test_a_file_of_this_moment_is_not_remembered(tmp_path, own_cache):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digests.file_digest(str(path))
    assert not (own_cache / "digests.json").exists()


def test_a_damaged_memory_is_an_empty_one(tmp_path, own_cache):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    age(path)
    own_cache.mkdir()
    for damage in ("{", "[]", json.dumps({str(path): "x"})):
        (own_cache / "digests.json").write_text(damage)
        assert digests.file_digest(str(path)) == hashlib.sha256(b"one").hexdigest()
