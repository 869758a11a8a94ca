from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo3Config,
    PhiConfig,
)

from longeval.errors import LongEvalError
from longeval.models.geometry import native_length, rope_geometry


def test_llama():
    rope = rope_geometry(LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters={"rope_theta": 5e5}))
    assert (rope.head_dim, rope.theta, rope.rope_type, rope.by_layer_type) == (64, 5e5, "default", False)


@pytest.mark.parametrize(
    ("config", "head_dim"),
    [
        (GPTNeoXConfig(hidden_size=512, num_attention_heads=8, rotary_pct=0.25), 16),
        (PhiConfig(hidden_size=2048, num_attention_heads=32), 32),
        (DeepseekV3Config(), 64),
        (MixtralConfig(hidden_size=4096, num_attention_heads=32, head_dim=None), 128),
    ],
)
def test_rotated_part_of_a_head(config, head_dim):
    assert rope_geometry(config).head_dim == head_dim


@pytest.mark.parametrize("config", [Gemma3TextConfig(), Gemma3Config()])
def test_by_layer_type_takes_the_layers_that_see_everything(config):
    rope = rope_geometry(config)
    assert rope.by_layer_type
    assert rope.theta == 1e6
    assert rope.parameters["sliding_attention"]["rope_theta"] == 1e4


@pytest.mark.parametrize(("config", "name"), [(GPT2Config(), "gpt2"), (GPTJConfig(), "gptj")])
def test_models_without_rope_parameters_are_refused_by_name(config, name):
    with pytest.raises(LongEvalError, match=f"model type {name}: no rotary position embedding"):
        rope_geometry(config)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_native_length_is_what_shipped_scaling_starts_from():
    config = LlamaConfig(max_position_embeddings=131072, rope_parameters=LLAMA3)
    assert native_length(config) == 8192
    assert rope_geometry(config).rope_type == "llama3"
    assert native_length(config, 4096) == 4096
    assert native_length(LlamaConfig(max_position_embeddings=2048)) == 2048


def test_native_length_at_the_top_level_and_in_a_text_config():
    config = LlamaConfig(max_position_embeddings=131072)
    config.original_max_position_embeddings = 4096
    assert native_length(config) == 4096
    nested = Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=32768))
    assert native_length(nested) == 32768


def test_native_length_unknown_or_wrong():
    with pytest.raises(LongEvalError, match=r"bloom model .*--native"):
        native_length(BloomConfig())
    with pytest.raises(LongEvalError, match="--native 0"):
        native_length(LlamaConfig(), 0)


@pytest.mark.parametrize(("make", "theta"), [(Gemma3TextConfig, 1e6), (Olmo3Config, 5e5)])
def test_settings_for_layers_that_a_small_model_has_none_of(make, theta):
    """transformers writes those of full attention itself, and two layers are both of the sliding kind."""
    config = make(num_hidden_layers=2, head_dim=16, rope_parameters=None)
    assert set(config.layer_types) == {"sliding_attention"}
    rope = rope_geometry(config)
    assert (rope.head_dim, rope.theta, rope.by_layer_type) == (16, theta, True)
    config.rope_parameters["nonsense"] = {"rope_type": "default", "rope_theta": 1.0}
    with pytest.raises(LongEvalError, match="nonsense in its rope_parameters would be ignored"):
        rope_geometry(config)
