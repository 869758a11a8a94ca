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
    assert header.fields["general.tokenizer.ggml.add_bos_token"] is True
    assert (header.own("no.such.key"), header.own("no.such.key", 3)) == (None, 3)
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert "tokenizer.ggml.tokens" not in header.fields
    del theirs["tokenizer.ggml.tokens"]
    assert dict(header.fields) == theirs
    assert {name: place.offset for name, place in header.tensors.items()} == {
        tensor.name: tensor.data_offset for tensor in reader.tensors
    }
    assert header.tensors["token_embd.weight"].shape == (12, 64)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tensors_of_plain_numbers(tmp_path, dtype):
    numbers = np.linspace(1, 6, 16).astype(dtype)
    header = read_header(str(write_llama(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": numbers})))
    assert np.array_equal(header.values("rope_freqs.weight"), numbers.astype(np.float64))


def test_a_quantised_tensor_is_not_taken_for_numbers(write_gguf):
    header = read_header(str(write_gguf(quantised=True)))
    with pytest.raises(ValueError, match=r"token_embd\.weight is stored in ggml type 8"):
        header.values("token_embd.weight")


def test_another_alignment_moves_the_tensors(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
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
    assert read_header(str(path)).tensors["token_embd.weight"].offset % 4096 != 0


@pytest.mark.parametrize("kept", [20, 30, 200, 1000])
def test_a_header_cut_off(tmp_path, kept):
    path = write_llama(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_header(str(path))


def test_other_versions_and_other_files(tmp_path):
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ValueError, match="version 1"):
        read_header(str(path))
    path.write_bytes(b"GGML" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(ValueError, match="starts with b'GGML'"):
        read_header(str(path))
