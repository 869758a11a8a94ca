"""Tiny models of each family, and the settings that give them one of our rope types."""

from __future__ import annotations

import math

import torch
import transformers
from rope.rope_reference import by_parts
from transformers import AutoModelForCausalLM, LlamaConfig

NATIVE = 64
ROPE = {
    "rope_type": "resonance_yarn",
    "rope_theta": 1e4,
    "factor": 8,
    "original_max_position_embeddings": NATIVE,
    "beta_fast": 4,  # so that the ramp of so short a native length has a middle
}

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "max_position_embeddings": NATIVE,
    "initializer_range": 0.3,  # so that positions matter
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""Two heads of 32 dimensions."""

EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 16}

FAMILIES = {
    "Llama": ({}, 32),
    "Mistral": ({}, 32),
    "Mixtral": ({"num_local_experts": 2, "head_dim": None}, 32),
    "Qwen2": ({}, 32),
    "Qwen3": ({"head_dim": 16}, 16),
    "Qwen3Moe": ({"num_experts": 2, "head_dim": 16, **EXPERTS}, 16),
    "Gemma2": ({"head_dim": 16}, 16),
    "Gemma3Text": ({"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, 16),
    "GPTNeoX": ({}, 8),
    "StableLm": ({}, 8),
    "Phi": ({}, 16),
    "Olmo2": ({}, 32),
    "Falcon": ({"alibi": False}, 32),
    "Granite": ({}, 32),
    "DeepseekV3": (
        {
            "num_key_value_heads": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            **EXPERTS,
        },
        16,
    ),
}
"""Of each family: settings beside SIZES, and how many dimensions of a head rotate, by its published models."""

BY_LAYER_TYPE = {"Gemma3Text"}
LOCAL = {"rope_type": "default", "rope_theta": 100.0}


def in_form_of(family, rope):
    """`rope_parameters` flat, or for the global layers of a family that rotates by layer type."""
    return {"sliding_attention": dict(LOCAL), "full_attention": dict(rope)} if family in BY_LAYER_TYPE else dict(rope)


def build(family="Llama", **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family][0] | settings))
    return AutoModelForCausalLM.from_config(config).eval()


def rotary(model):
    (module,) = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
    return module


def global_buffer(family):
    return "full_attention_inv_freq" if family in BY_LAYER_TYPE else "inv_freq"


def logits(model, num_tokens=100):
    with torch.no_grad():
        return model(torch.arange(num_tokens)[None] * 7 % 50).logits


def resonance_yarn(d, b=1e4):
    """Frequencies by the plain loops, wavelengths rounded, as float32."""
    wavelengths = [round(2 * math.pi / theta) for theta in by_parts(d, b, NATIVE, 8.0, fast=4.0)]
    return torch.tensor([2 * math.pi / wavelength for wavelength in wavelengths], dtype=torch.float32)


def llama_config(**rope):
    return LlamaConfig(**SIZES, rope_parameters=rope)
