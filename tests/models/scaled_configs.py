"""Configurations with every scaling that models are shipped with."""

from __future__ import annotations

import numpy as np
import transformers

THETA_F = 10000.0 ** (-np.arange(8) / 8)
SHORT = [1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0]
LONG = [1.0, 1.3, 2.0, 3.0, 4.0, 5.5, 7.0, 8.0]

NATIVE = {"original_max_position_embeddings": 64}
LISTS = NATIVE | {"short_factor": SHORT, "long_factor": LONG}

SHIPPED = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": NATIVE | {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": NATIVE | {"factor": 4.0, "beta_fast": 16.0},
    "yarn mscale": NATIVE | {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.5},
    "longrope": LISTS,
    "longrope attention": LISTS | {"attention_factor": 1.4, "factor": 3.0},
    "longrope factor": LISTS | {"factor": 3.0},
    "longrope equal lists": NATIVE | {"short_factor": LONG, "long_factor": LONG},
    "dynamic": {"factor": 2.0},
    "resonance_longrope": LISTS | {"factor": 3.0},
    "resonance_ntk": NATIVE | {"factor": 2.0, "base_rule": "linear"},
}


def config_of(settings, **overrides):
    rope_type = settings.split()[0]
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **SHIPPED[settings]}
    return {"rope_parameters": rope, "max_position_embeddings": 100 if rope_type == "dynamic" else 256} | overrides


def llama_config(settings, **overrides):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "head_dim": 16}
    return transformers.LlamaConfig(**sizes, **config_of(settings, **overrides))


def gemma_config(**overrides):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.Gemma3TextConfig(
        **sizes, **special, num_hidden_layers=6, head_dim=16, vocab_size=300, sliding_window=32, **overrides
    )
