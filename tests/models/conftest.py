"""A tiny random Llama as a folder and as a GGUF, and a cache folder of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees or touches the user's cache."""
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def _saved_llama(tmp_path_factory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=96,
        vocab_size=32,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def llama(_saved_llama, tmp_path) -> Path:
    """A folder with a model (head_dim 32, base 500, native 128) that the test may damage."""
    return Path(shutil.copytree(_saved_llama, tmp_path / "llama"))


@pytest.fixture
def write_gguf(tmp_path):
    """Returns a function that writes a one-layer Llama as GGUF and returns its path."""

    def write(name: str = "tiny.gguf", *, quantised: bool = False, rope_freqs: np.ndarray | None = None) -> Path:
        import gguf

        path = tmp_path / name
        rng = np.random.default_rng(0)
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_name("tiny")
        writer.add_context_length(256)
        writer.add_embedding_length(64)
        writer.add_block_count(1)
        writer.add_feed_forward_length(96)
        writer.add_head_count(2)
        writer.add_head_count_kv(1)
        writer.add_rope_dimension_count(32)
        writer.add_rope_freq_base(700.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(8)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["<s>", "</s>", "a", "b", "c", "ab", "Ġ", "Ġa"])
        writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
        writer.add_token_merges(["a b", "Ġ a"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        shapes = {
            "token_embd.weight": (8, 64),
            "output_norm.weight": (64,),
            "output.weight": (8, 64),
            "blk.0.attn_norm.weight": (64,),
            "blk.0.ffn_norm.weight": (64,),
            "blk.0.attn_q.weight": (64, 64),
            "blk.0.attn_k.weight": (32, 64),
            "blk.0.attn_v.weight": (32, 64),
            "blk.0.attn_output.weight": (64, 64),
            "blk.0.ffn_gate.weight": (96, 64),
            "blk.0.ffn_up.weight": (96, 64),
            "blk.0.ffn_down.weight": (64, 96),
        }
        for tensor, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32)
            if quantised and len(shape) == 2:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(tensor, gguf.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(tensor, values)
        if rope_freqs is not None:
            writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
