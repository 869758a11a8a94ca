from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import write_llama

from longeval import cache
from longeval.errors import LongEvalError
from longeval.export.gguf import config_of
from longeval.models.files import is_present, local_folder, weights_digest
from longeval.models.gguf import folder as conversion
from longeval.models.gguf.header import read_header
from longeval.models.load import load_config, load_model, load_tokenizer
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope


def test_a_gguf_becomes_an_ordinary_folder_with_exactly_its_values(write_gguf, own_cache):
    path = write_gguf(quantised=True)
    ref = resolve(str(path))
    assert ref.kind == "gguf"
    assert not is_present(ref)
    model = load_model(ref, dtype="float32", device="cpu")
    assert is_present(ref)
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        expected = gguf.dequantize(packed[theirs].data, packed[theirs].tensor_type)
        assert np.array_equal(model.state_dict()[ours].numpy(), expected)
    config = load_config(ref)
    assert not hasattr(config, "quantization_config")
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"]) == (256, 700.0)
    assert load_tokenizer(ref)("ab c").input_ids[0] == 5
    assert [entry.name for entry in (own_cache / "models").iterdir()] == [local_folder(ref).rsplit("/", 1)[-1]]


def test_it_is_converted_once(write_gguf, monkeypatch):
    ref = resolve(str(write_gguf()))
    folder = local_folder(ref)
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted twice"))
    assert local_folder(ref) == folder


def test_nothing_is_left_of_a_conversion_that_failed(write_gguf, own_cache, monkeypatch):
    ref = resolve(str(write_gguf()))
    monkeypatch.setattr(conversion, "_rebuild", lambda _: (_ for _ in ()).throw(ValueError("odd tensor")))
    with pytest.raises(LongEvalError, match=r"can't convert this GGUF .*odd tensor"):
        local_folder(ref)
    assert list((own_cache / "models").iterdir()) == []


def test_the_first_of_two_conversions_wins(write_gguf, own_cache, monkeypatch):
    ref = resolve(str(write_gguf()))
    real = conversion.put_folder

    def overtaken(made, folder, **options):
        theirs = Path(shutil.copytree(made, folder))
        (theirs / "origin.json").unlink()
        (theirs / "theirs").touch()
        conversion._note_files(folder, {})
        real(made, folder, **options)

    monkeypatch.setattr(conversion, "put_folder", overtaken)
    folder = local_folder(ref)
    assert [entry.name for entry in (own_cache / "models").iterdir()] == [folder.rsplit("/", 1)[-1]]
    assert Path(folder, "theirs").exists()


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
    "an empty config": lambda folder: (folder / "config.json").write_text(""),
    "one file too many": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "no note": lambda folder: (folder / "origin.json").unlink(),
    "another note": lambda folder: (folder / "origin.json").write_text('{"files": []}'),
    "an empty folder": lambda folder: [path.unlink() for path in list(folder.iterdir())],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_conversion_is_made_again(damage, write_gguf, own_cache, monkeypatch):
    ref = resolve(str(write_gguf()))
    folder = Path(local_folder(ref))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(cache, "_now_ns", lambda: time.time_ns() + 10**10)  # digests are remembered at once
    assert is_present(ref) and is_present(ref)
    DAMAGES[damage](folder)
    assert not is_present(ref)
    assert local_folder(ref) == str(folder)
    assert is_present(ref)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [entry.name for entry in (own_cache / "models").iterdir()] == [folder.name]


def test_what_cant_be_read_exactly_is_refused_before_anything_is_dequantised(own_cache, tmp_path, monkeypatch):
    path = write_llama(tmp_path / "tiny.gguf", {"rope.scaling.type": "ntk"})
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("dequantised"))
    with pytest.raises(LongEvalError, match=r"rope\.scaling\.type = ntk"):
        local_folder(resolve(str(path)))
    assert list((own_cache / "models").iterdir()) == []


def test_a_file_is_parsed_once_and_gguf_is_left_as_it_was(write_gguf, monkeypatch):
    class Counting(gguf.GGUFReader):
        count = 0

        def __init__(self, *args):
            Counting.count += 1
            super().__init__(*args)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    path = write_gguf()
    local_folder(resolve(str(path)))
    assert (Counting.count, gguf.GGUFReader) == (1, Counting)
    monkeypatch.setattr(conversion, "_rebuild", lambda _: (_ for _ in ()).throw(ValueError))
    with pytest.raises(LongEvalError):
        conversion.converted_folder(str(path), name="other", sha256="0" * 64)
    assert gguf.GGUFReader is Counting


def test_another_conversion_gets_another_folder(monkeypatch):
    first = conversion.cached_folder("tiny", "0123456789", 1)
    assert first.endswith("/models/tiny-01234567")  # a name that folders in caches have
    assert conversion.cached_folder("tiny", "0123456789", 2) == f"{first}-v2"
    assert conversion.cached_folder("tiny", "0123456789") == f"{first}-v{conversion.CONVERSION}"


def test_files_are_kept_beside_the_model(write_gguf, tmp_path):
    (tmp_path / "terms").write_text("yours")
    folder = conversion.converted_folder(
        str(write_gguf()), name="tiny", sha256="0" * 64, beside={"LICENCE.txt": str(tmp_path / "terms")}
    )
    assert (Path(folder) / "LICENCE.txt").read_text() == "yours"
    with pytest.raises(LongEvalError, match="cache"):
        conversion.converted_folder(
            str(write_gguf()), name="tiny", sha256="1" * 64, beside={"LICENCE.txt": str(tmp_path / "none")}
        )
    assert [entry.name for entry in Path(folder).parent.iterdir()] == [Path(folder).name]


def test_a_gguf_cut_off_in_the_middle(write_gguf):
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(LongEvalError, match="can't convert this GGUF"):
        local_folder(resolve(str(path)))


def test_unwritable_cache(write_gguf, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LongEvalError, match="LONGEVAL_CACHE"):
        local_folder(resolve(str(write_gguf())))


def test_the_narrowest_dtype_that_keeps_every_value():
    halves = [torch.tensor([0.5, 1.0, 3.0])]
    assert conversion._narrowest_exact(halves) == torch.bfloat16
    assert conversion._narrowest_exact([*halves, torch.tensor([1.0009765625])]) == torch.float16
    assert conversion._narrowest_exact([*halves, torch.tensor([0.1])]) == torch.float32


def test_a_split_gguf_is_read_whole_from_any_of_its_files(tmp_path, own_cache):
    unsplit = resolve(str(write_llama(tmp_path / "whole.gguf")))
    whole = load_model(unsplit, dtype="float32", device="cpu").state_dict()
    tokens = load_tokenizer(unsplit)("ab").input_ids
    write_llama(tmp_path / "tiny.gguf", split=8)
    shards = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(shards) == 3
    digests = set()
    for shard in shards:
        ref = resolve(str(shard))
        model = load_model(ref, dtype="float32", device="cpu")
        assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
        assert load_tokenizer(ref)("ab").input_ids == tokens
        digests.add(weights_digest(ref))
    assert len(digests) == 1
    assert [entry.name for entry in Path(local_folder(ref)).glob("*.gguf")] == []
    write_llama(tmp_path / "tiny.gguf", tensors={"blk.1.ffn_down.weight": np.ones((64, 96), "f4")}, split=8)
    assert weights_digest(resolve(str(shards[0]))) not in digests


def test_a_missing_or_foreign_file_of_a_split_gguf_is_named(tmp_path):
    write_llama(tmp_path / "tiny.gguf", split=8)
    first, second, third = sorted(tmp_path.glob("tiny-*.gguf"))
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(LongEvalError, match=f"{second.name} belongs to another model"):
        resolve(str(first))
    second.unlink()
    with pytest.raises(LongEvalError, match=f"one of 3 files, and {second.name} is missing"):
        resolve(str(third))
    second.write_bytes(kept)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(LongEvalError, match=r"renamed\.gguf: is one of 3 files"):
        resolve(str(tmp_path / "renamed.gguf"))


def test_rope_settings_are_read_from_all_files_of_a_split_gguf(tmp_path):
    divisors = np.full(16, 4.0, "f4")
    write_llama(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": divisors}, split=8)  # in the last file
    ref = resolve(str(min(tmp_path.glob("tiny-*.gguf"))))
    plain_F = 700.0 ** (-np.arange(16) / 16)
    for config in (config_of(ref, ""), load_config(ref)):
        table = model_rope("tiny", config, native=256).shipped_table(8)
        np.testing.assert_allclose(table.inv_freq_F, plain_F / 4, rtol=1e-6)


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight"])
def test_tensors_that_a_gguf_lacks_are_not_made_up(tmp_path, own_cache, name):
    with pytest.raises(LongEvalError, match="1 weight is missing"):
        local_folder(resolve(str(write_llama(tmp_path / "tiny.gguf", tensors={name: None}))))
    assert list((own_cache / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.2.ffn_norm.weight", "blk.0.attn_q_norm.weight"])
def test_tensors_that_transformers_passes_over_are_not_left_out(tmp_path, name):
    with pytest.raises(LongEvalError, match=f"1 weight is unexpected, .*{name}"):
        local_folder(resolve(str(write_llama(tmp_path / "tiny.gguf", tensors={name: (64,)}))))


def test_kinds_of_quantisation_that_cannot_be_undone_are_named(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
    place = read_header(str(path)).tensors["blk.0.ffn_down.weight"]
    content = path.read_bytes()
    named = content.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 16
    assert content[named : named + 4] == place.kind.to_bytes(4, "little")
    path.write_bytes(content[:named] + (24).to_bytes(4, "little") + content[named + 4 :])  # I8
    with pytest.raises(LongEvalError, match=r"can't convert this GGUF .*I8"):
        local_folder(resolve(str(path)))
