"""Tiny random models of several families, and GGUFs, to export."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_families import save_family


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def family(tmp_path):
    """Returns a function that saves a family's tiny model and returns its folder."""
    return lambda name, **overrides: save_family(name, tmp_path / name, **overrides)


@pytest.fixture
def write_gguf(tmp_path):
    """Returns a function that writes a one-layer GGUF (8 features, base 700, native 256) and returns its path."""
    import gguf

    def write(name="tiny.gguf", *, architecture="llama", rope_freqs=None, fields=()):
        path = tmp_path / name
        rng = np.random.default_rng(0)
        writer = gguf.GGUFWriter(str(path), architecture)
        writer.add_name("tiny")
        writer.add_context_length(256)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_feed_forward_length(64)
        writer.add_head_count(2)
        writer.add_head_count_kv(1)
        writer.add_rope_dimension_count(16)
        writer.add_rope_freq_base(700.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(8)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([b"<s>", b"</s>", b"a", b"b", b"c", b"ab", "Ġ".encode(), "Ġa".encode()])
        writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
        writer.add_token_merges(["a b", "Ġ a"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        for field in fields:
            writer.add_key_value(*field)
            if field[0] == "general.alignment":
                writer.data_alignment = field[1]
        shapes = {
            "token_embd": (8, 32),
            "output_norm": (32,),
            "output": (8, 32),
            "blk.0.attn_norm": (32,),
            "blk.0.ffn_norm": (32,),
            "blk.0.attn_q": (32, 32),
            "blk.0.attn_k": (16, 32),
            "blk.0.attn_v": (16, 32),
            "blk.0.attn_output": (32, 32),
            "blk.0.ffn_gate": (64, 32),
            "blk.0.ffn_up": (64, 32),
            "blk.0.ffn_down": (32, 64),
        }
        kinds = (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.F16)
        for index, (tensor, shape) in enumerate(shapes.items()):
            values = rng.standard_normal(shape).astype(np.float32)
            kind = kinds[index % 3] if len(shape) == 2 else gguf.GGMLQuantizationType.F32
            data = gguf.quantize(values, kind)
            writer.add_tensor(f"{tensor}.weight", data, raw_dtype=kind)
        if rope_freqs is not None:
            writer.add_tensor("rope_freqs.weight", np.asarray(rope_freqs, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
