from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from tiny import save_tiny_llama

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


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "rust_model.ot", "x.ckpt"])
def test_other_weights_are_no_files_of_a_tokenizer(llama, name):
    ref = resolve(str(llama))
    before = tokenizer_files(ref)
    (llama / name).write_bytes(b"weights")
    assert tokenizer_files(ref) == before
    (llama / "merges.txt").write_text("a b")
    assert tokenizer_files(ref) != before
