"""The digests that say which weights and which tokenizer were used."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from folders import edit_config, prepared
from tiny import save_tiny_llama
from tiny_gguf import write_llama

from longeval.models.resolve import resolve, tokenizer_files, weights_digest


def digest_of(model):
    return weights_digest(resolve(str(model)))


def test_a_folders_identity_is_all_its_content_and_not_its_place(llama, tmp_path):
    seen = {digest_of(llama)}
    moved = shutil.copytree(llama, tmp_path / "elsewhere")
    (moved / "README.md").write_text("not the model")
    assert {digest_of(moved)} == seen
    content = bytearray((llama / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (llama / "model.safetensors").write_bytes(content)
    seen.add(digest_of(llama))
    edit_config(llama, rms_norm_eps=1e-3)
    seen.add(digest_of(llama))
    assert len(seen) == 3


def test_files_of_a_tokenizer_count_where_it_does_not_tell_all_that_it_read(tmp_path):
    folder = save_tiny_llama(tmp_path / "slow", vocab_size=16)
    (folder / "tokenizer.json").unlink()
    words = ("<unk>", "a@@", "b@@", "c@@", "a</w>", "b</w>", "c</w>", "ab@@", "ab</w>", "bc</w>")
    vocabulary = {word.removesuffix("@@"): index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<unk></w>": 0}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))

    def digest():
        model = prepared(folder)
        assert not model.tokenizer.is_fast
        return model.tokenizer_digest

    seen = []
    for merges in ("a b\n", "b c\n"):
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
        seen.append(digest())
    (folder / "README.md").write_text("read by nobody")
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert digest() == seen[1] != seen[0]


def test_gguf_and_embedded_are_their_files(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
    assert digest_of(path) == f"gguf:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert digest_of("smollm2-135m-q4").startswith("gguf:b179c9523d0e")
    assert digest_of("gemma3-270m-q4").startswith("gguf:a5fd3b62230a")


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "rust_model.ot", "x.ckpt"])
def test_other_weights_are_no_files_of_a_tokenizer(llama, name):
    ref = resolve(str(llama))
    before = tokenizer_files(ref)
    (llama / name).write_bytes(b"weights")
    assert tokenizer_files(ref) == before
    (llama / "merges.txt").write_text("a b")
    assert tokenizer_files(ref) != before
