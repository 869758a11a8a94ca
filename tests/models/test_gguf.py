"""GGUF files become ordinary model folders in the cache: exactly, once, and never from half a file."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from folders import config_of, loaded, tokenizer_of
from tiny_gguf import write_llama

from longeval import cache
from longeval.errors import LongEvalError
from longeval.export import gguf as export
from longeval.models.gguf import folder as conversion
from longeval.models.gguf.header import read_header
from longeval.models.resolve import is_present, local_folder, resolve, weights_digest
from longeval.models.scaling import model_rope


@pytest.fixture
def tiny(tmp_path):
    return write_llama(tmp_path / "tiny.gguf")


@pytest.fixture
def converted(own_cache):
    """Returns a function that lists the converted folders."""
    return lambda: sorted(entry.name for entry in (own_cache / "models").iterdir())


def convert(path):
    return Path(local_folder(resolve(str(path))))


def refused(path, said):
    with pytest.raises(LongEvalError, match=said):
        convert(path)


def fails(error):
    def fail(*_):
        raise error

    return fail


def test_a_gguf_becomes_an_ordinary_folder_with_exactly_its_values(tmp_path, converted):
    path = write_llama(tmp_path / "tiny.gguf", quantised=True)
    ref = resolve(str(path))
    assert ref.kind == "gguf"
    assert not is_present(ref)
    model = loaded(path)
    assert is_present(ref)
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        expected = gguf.dequantize(packed[theirs].data, packed[theirs].tensor_type)
        assert np.array_equal(model.state_dict()[ours].numpy(), expected)
    config = config_of(path)
    assert not hasattr(config, "quantization_config")
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"]) == (256, 700.0)
    assert tokenizer_of(path)("ab").input_ids[0] == 2
    assert converted() == [convert(path).name]


def test_it_is_converted_once_and_nothing_is_left_of_a_conversion_that_failed(tiny, converted, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(conversion, "_rebuild", fails(ValueError("odd tensor")))
        refused(tiny, "odd tensor")
    assert converted() == []
    folder = convert(tiny)
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted twice"))
    assert convert(tiny) == folder


def test_the_first_of_two_conversions_wins(tiny, converted, monkeypatch):
    real = conversion.put_folder

    def overtaken(made, folder, **options):
        theirs = Path(shutil.copytree(made, folder))
        (theirs / "origin.json").unlink()
        (theirs / "theirs").touch()
        conversion.note_files(folder, {})
        real(made, folder, **options)

    monkeypatch.setattr(conversion, "put_folder", overtaken)
    folder = convert(tiny)
    assert converted() == [folder.name]
    assert (folder / "theirs").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_unseen(path: Path) -> None:
    stat = os.stat(path)
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGES = {
    "a flipped bit": lambda folder: flip(folder / "model.safetensors"),
    "a flipped bit, and the time set back": lambda folder: flip_unseen(folder / "model.safetensors"),
    "cut off": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "one file too many": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "no note": lambda folder: (folder / "origin.json").unlink(),
    "another note": lambda folder: (folder / "origin.json").write_text('{"files": []}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_conversion_is_made_again(damage, tiny, converted, monkeypatch):
    ref, folder = resolve(str(tiny)), convert(tiny)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(cache, "_now_ns", lambda: time.time_ns() + 10**10)  # digests are remembered at once
    assert is_present(ref) and is_present(ref)
    DAMAGES[damage](folder)
    assert not is_present(ref)
    assert convert(tiny) == folder
    assert is_present(ref)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert converted() == [folder.name]


def test_what_cant_be_read_exactly_is_refused_before_anything_is_dequantised(tmp_path, converted, monkeypatch):
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("dequantised"))
    refused(write_llama(tmp_path / "x.gguf", {"rope.scaling.type": "ntk"}), r"rope\.scaling\.type = ntk")
    assert converted() == []
    with pytest.raises(LongEvalError, match=r"tokenizer\.ggml\.model = t5"):
        tokenizer_of(write_llama(tmp_path / "x.gguf", {"tokenizer.ggml.model": "t5"}))


def test_a_file_is_parsed_once_and_gguf_is_left_as_it_was(tiny, monkeypatch):
    class Counting(gguf.GGUFReader):
        count = 0

        def __init__(self, *args):
            Counting.count += 1
            super().__init__(*args)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    convert(tiny)
    assert (Counting.count, gguf.GGUFReader) == (1, Counting)
    monkeypatch.setattr(conversion, "_rebuild", fails(ValueError()))
    with pytest.raises(LongEvalError):
        conversion.converted_folder(str(tiny), name="other", sha256="0" * 64)
    assert gguf.GGUFReader is Counting


def test_another_conversion_gets_another_folder():
    first = conversion.cached_folder("tiny", "0123456789", 1)
    assert first.endswith("/models/tiny-01234567")  # a name that folders in caches have
    assert conversion.cached_folder("tiny", "0123456789", 2) == f"{first}-v2"
    assert conversion.cached_folder("tiny", "0123456789") == f"{first}-v{conversion.CONVERSION}"


def test_files_are_kept_beside_the_model(tiny, tmp_path, converted):
    (tmp_path / "terms").write_text("yours")

    def convert_with(beside, digit):
        beside = {"LICENCE.txt": str(tmp_path / beside)}
        return Path(conversion.converted_folder(str(tiny), name="tiny", sha256=digit * 64, beside=beside))

    folder = convert_with("terms", "0")
    assert (folder / "LICENCE.txt").read_text() == "yours"
    with pytest.raises(LongEvalError, match="cache"):
        convert_with("none", "1")
    assert converted() == [folder.name]


def test_an_unwritable_cache_and_a_gguf_cut_off_in_the_middle(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    with monkeypatch.context() as unwritable:
        unwritable.setenv("LONGEVAL_CACHE", str(tmp_path / "file"))
        refused(tiny, "LONGEVAL_CACHE")
    tiny.write_bytes(tiny.read_bytes()[:-100])
    refused(tiny, "can't convert")


def test_the_narrowest_dtype_that_keeps_every_value():
    halves = [torch.tensor([0.5, 1.0, 3.0])]
    assert conversion._narrowest_exact(halves) == torch.bfloat16
    assert conversion._narrowest_exact([*halves, torch.tensor([1.0009765625])]) == torch.float16
    assert conversion._narrowest_exact([*halves, torch.tensor([0.1])]) == torch.float32


@pytest.fixture
def shards(tmp_path):
    """The three files of a split model."""
    write_llama(tmp_path / "tiny.gguf", split=8)
    return sorted(tmp_path.glob("tiny-*.gguf"))


def test_a_split_gguf_is_read_whole_from_any_of_its_files(tmp_path, shards):
    unsplit = write_llama(tmp_path / "whole.gguf")
    whole, tokens = loaded(unsplit).state_dict(), tokenizer_of(unsplit)("ab").input_ids
    assert len(shards) == 3
    digests = set()
    for shard in shards:
        assert all(torch.equal(tensor, whole[name]) for name, tensor in loaded(shard).state_dict().items())
        assert tokenizer_of(shard)("ab").input_ids == tokens
        digests.add(weights_digest(resolve(str(shard))))
    assert len(digests) == 1
    assert list(convert(shards[0]).glob("*.gguf")) == []
    write_llama(tmp_path / "tiny.gguf", tensors={"blk.1.ffn_down.weight": np.ones((64, 96), "f4")}, split=8)
    assert weights_digest(resolve(str(shards[0]))) not in digests


def test_a_missing_or_foreign_file_of_a_split_gguf_is_named(shards):
    first, second, third = shards
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    refused(first, f"{second.name} belongs to another model")
    second.unlink()
    refused(third, f"one of 3 files, but {second.name} is missing")
    second.write_bytes(kept)
    refused(first.rename(first.parent / "renamed.gguf"), r"renamed\.gguf: is one of 3 files")


def test_rope_settings_are_read_from_all_files_of_a_split_gguf(tmp_path):
    divisors = np.full(16, 4.0, "f4")
    write_llama(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": divisors}, split=8)  # in the last file
    path = min(tmp_path.glob("tiny-*.gguf"))
    for config in (export.config_of(resolve(str(path)), ""), config_of(path)):
        table = model_rope("tiny", config, native=256).shipped_table(8)
        np.testing.assert_allclose(table.inv_freq_F, 700.0 ** (-np.arange(16) / 16) / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("blk.1.ffn_down.weight", None, "missing"),
        ("output_norm.weight", None, "missing"),
        ("token_embd.weight", None, "missing"),
        ("blk.0.attn_q.bias", (64,), "unexpected"),
        ("blk.2.ffn_norm.weight", (64,), "unexpected"),
        ("blk.0.attn_q_norm.weight", (64,), "unexpected"),
    ],
)
def test_tensors_are_neither_made_up_nor_left_out(tmp_path, converted, name, shape, said):
    """transformers would do either without a word."""
    refused(write_llama(tmp_path / "tiny.gguf", tensors={name: shape}), f"1 weight is {said}")
    assert converted() == []


def test_kinds_of_quantisation_that_cannot_be_undone_are_named(tiny):
    place = read_header(str(tiny)).tensors["blk.0.ffn_down.weight"]
    content = tiny.read_bytes()
    named = content.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 16
    assert content[named : named + 4] == place.kind.to_bytes(4, "little")
    tiny.write_bytes(content[:named] + (24).to_bytes(4, "little") + content[named + 4 :])  # I8
    refused(tiny, "I8")
