"""Tiny random models of several families, and what `longeval export` would write into them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM

from longeval.export.encoding import Encoding, encode
from longeval.export.folder import WrittenFolder, write_folder
from longeval.models import load
from longeval.models.resolve import ModelRef, resolve
from longeval.models.scaling import model_rope

NATIVE = 64

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": NATIVE,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def default(theta=10000.0, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": NATIVE,
}

FAMILIES = {
    "llama": ("LlamaConfig", {"rope_parameters": default()}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3, "max_position_embeddings": 8 * NATIVE}),
    "qwen2": ("Qwen2Config", {"rope_parameters": default(1e6)}),
    "mixtral": (
        "MixtralConfig",  # head_dim is null in its config
        {"rope_parameters": default(1e6), "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {"rope_parameters": default(partial_rotary_factor=0.25), "num_attention_heads": 2},
    ),
    "stablelm": (
        "StableLmConfig",
        {"rope_parameters": default(partial_rotary_factor=0.25), "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "phi3": ("Phi3Config", {"rope_parameters": default(), "original_max_position_embeddings": NATIVE}),
    "cohere": ("CohereConfig", {"rope_parameters": default(), "logit_scale": 1.0}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "rope_parameters": {"full_attention": default(1e6), "sliding_attention": default()},
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 32,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
        },
    ),
}
"""Name to (configuration class, settings beside SIZES)."""


def save_family(name, folder, **overrides):
    """A tiny random model of a family as a folder without tokenizer."""
    config_class, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**(SIZES | settings | overrides))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def silent(done, total):
    """No progress."""


def encoding_of(folder, pe, factor=4.0, *, layers="global", native=None, scale_from="plain", **arguments):
    """What `longeval export` would write into a folder's model: its ref, configuration and encoding."""
    ref = resolve(str(folder))
    config = load.load_config(ref)
    rope = model_rope(ref.name, config, native=native, scale_from=scale_from, layers=layers)
    return ref, config, encode(rope, pe, factor=factor, arguments=arguments)


class Export(NamedTuple):
    """An exported model."""

    ref: ModelRef
    encoding: Encoding
    done: WrittenFolder


def export_folder(model, out, pe="yarn", factor=4.0, *, progress=silent, **settings):
    """Exports a folder's model as a folder."""
    ref, config, encoding = encoding_of(model, pe, factor, **settings)
    return Export(ref, encoding, write_folder(ref, config, encoding, str(out), progress))
