"""Reading the header of a GGUF file, against the gguf package, and damaged files."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from tiny_gguf import write_llama

from longeval.models.gguf.header import read_header

ODD = {"tokenizer.ggml.add_bos_token": True, "tiny.list": [3, 5, 8], "tiny.word": "θ", "tiny.small": 0.5}


def test_it_says_what_the_gguf_package_says(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", {f"general.{key}": value for key, value in ODD.items()})
    header, reader = read_header(str(path)), gguf.GGUFReader(str(path))
    assert header.architecture == "llama"
    assert header.own("rope.freq_base") == 700.0
    assert (header.own("no.such.key"), header.own("no.such.key", 3)) == (None, 3)
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    del theirs["tokenizer.ggml.tokens"]
    assert dict(header.fields) == theirs
    offsets = {tensor.name: tensor.data_offset for tensor in reader.tensors}
    assert {name: place.offset for name, place in header.tensors.items()} == offsets
    assert header.tensors["token_embd.weight"].shape == (12, 64)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tensors_of_plain_numbers(tmp_path, dtype):
    numbers = np.linspace(1, 6, 16).astype(dtype)
    header = read_header(str(write_llama(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": numbers})))
    assert np.array_equal(header.values("rope_freqs.weight"), numbers.astype(np.float64))


def test_a_quantised_tensor_is_not_taken_for_numbers(tmp_path):
    header = read_header(str(write_llama(tmp_path / "tiny.gguf", quantised=True)))
    with pytest.raises(ValueError, match=r"token_embd\.weight .*type 8"):
        header.values("token_embd.weight")


def test_another_alignment_moves_the_tensors(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "wide.gguf"), "llama")
    writer.add_custom_alignment(4096)
    writer.add_tensor("a.weight", np.arange(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(str(tmp_path / "wide.gguf"))
    assert header.tensors["a.weight"].offset % 4096 == 0
    assert header.values("a.weight").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("kept", [20, 30, 200, 1000])
def test_a_header_cut_off(tmp_path, kept):
    path = write_llama(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_header(str(path))


@pytest.mark.parametrize(("magic", "version", "said"), [(b"GGUF", 1, "version 1"), (b"GGML", 3, "GGML")])
def test_other_versions_and_other_files(tmp_path, magic, version, said):
    (tmp_path / "old.gguf").write_bytes(magic + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(ValueError, match=said):
        read_header(str(tmp_path / "old.gguf"))
