"""Tiny random models of several families as GGUF files, with whatever metadata and tensors a test wants to add."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from longeval.models.gguf.header import GgufHeader

HEAD_DIM, HIDDEN, NUM_HEADS, FFN, VOCAB = 32, 64, 2, 96, 12
CONTEXT = 256

_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "a", "b", "c", "ab", "▁", "▁a", "▁b"]
_COMMON = {
    "context_length": CONTEXT,
    "embedding_length": HIDDEN,
    "feed_forward_length": FFN,
    "attention.head_count": NUM_HEADS,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 700.0,
    "vocab_size": VOCAB,
}
_TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.padding_token_id": 0,
}


def header(fields=None, architecture: str = "llama") -> GgufHeader:
    """A header without a file; in `fields`, None leaves a key out."""
    own = {"context_length": CONTEXT, "rope.freq_base": 700.0} | (fields or {})
    stated = {f"{architecture}.{key}": value for key, value in own.items() if value is not None}
    return GgufHeader(path="m.gguf", fields={"general.architecture": architecture} | stated, tensors={})


def write_llama(path: Path, fields=None, tensors=None, *, split: int = 0, quantised: bool = False) -> Path:
    """Llama, two layers. In `fields`, keys without a family's name are the family's own; None leaves one out.

    In `tensors` None leaves one out. With `split`, files of so many tensors each; their names come from `path`.
    """
    own = _COMMON | {"block_count": 2, "rope.dimension_count": HEAD_DIM}
    shapes = {name: shape for name, shape in (_attention(2) | _ffn(2) | (tensors or {})).items() if shape is not None}
    return _write(path, "llama", own | (fields or {}), shapes, split, quantised)


def write_gemma3(path: Path, fields=None, tensors=None, *, num_layers: int = 6) -> Path:
    """Gemma 3, by default with one layer that sees everything and five with a window of 8 tokens."""
    own = _COMMON | {
        "block_count": num_layers,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.sliding_window": 8,
    }
    norms = {
        f"blk.{layer}.{norm}.weight": (size,)
        for layer in range(num_layers)
        for norm, size in (
            ("attn_q_norm", HEAD_DIM),
            ("attn_k_norm", HEAD_DIM),
            ("post_attention_norm", HIDDEN),
            ("post_ffw_norm", HIDDEN),
        )
    }
    shapes = _attention(num_layers) | _ffn(num_layers) | norms
    del shapes["output.weight"]
    return _write(path, "gemma3", own | (fields or {}), shapes | (tensors or {}))


def write_phi3(path: Path, fields=None, tensors=None) -> Path:
    """Phi-3, one layer; queries, keys and values in one matrix, and so are the two halves of the gate."""
    shapes = {name: shape for name, shape in _attention(1).items() if "attn_q" not in name and "attn_k" not in name}
    del shapes["blk.0.attn_v.weight"]
    shapes |= {
        "blk.0.attn_qkv.weight": (HIDDEN + 2 * HEAD_DIM, HIDDEN),
        "blk.0.ffn_up.weight": (2 * FFN, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, FFN),
    }
    own = _COMMON | {"block_count": 1, "rope.dimension_count": HEAD_DIM}
    return _write(path, "phi3", own | (fields or {}), shapes | (tensors or {}))


def _attention(num_layers):
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN)}
    for layer in range(num_layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (NUM_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_k.weight": (HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_v.weight": (HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, NUM_HEADS * HEAD_DIM),
        }
    return shapes


def _ffn(num_layers):
    return {
        f"blk.{layer}.{name}.weight": shape
        for layer in range(num_layers)
        for name, shape in (("ffn_gate", (FFN, HIDDEN)), ("ffn_up", (FFN, HIDDEN)), ("ffn_down", (HIDDEN, FFN)))
    }


def _write(path, architecture, fields, tensors, split=0, quantised=False):
    """Shapes become random float32 weights of about unit gain, arrays stay as they are; `quantised`: matrices are."""
    writer = gguf.GGUFWriter(str(path), architecture, split_max_tensors=split)
    writer.add_name("tiny")
    writer.add_token_list(_TOKENS)
    writer.add_token_scores([float(-position) for position in range(VOCAB)])
    writer.add_token_types([3, 3, 3, 2, 3] + [1] * (VOCAB - 5))
    for key, value in (_TOKENIZER | fields).items():
        add_field(writer, key if key.split(".")[0] in ("general", "tokenizer") else f"{architecture}.{key}", value)
    rng = np.random.default_rng(0)
    for name, shape in tensors.items():
        if isinstance(shape, tuple):
            spread = 1.0 if len(shape) == 2 and name.startswith("token") else shape[-1] ** -0.5
            offset = 1.0 if "norm" in name else 0.0
            weights = (offset + spread * rng.standard_normal(shape)).astype(np.float32)
        else:
            weights = shape
        if quantised and len(weights.shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer, key, value):
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if value is not None:
        kinds.get(type(value), writer.add_array)(key, value)
