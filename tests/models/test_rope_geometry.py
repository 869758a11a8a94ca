"""What a configuration says of its rotary embedding, and which models and scalings are refused by name."""

from __future__ import annotations

import pytest
from folders import edit_config
from scaled_configs import llama_config
from transformers import (
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    MptConfig,
    Olmo3Config,
    OPTConfig,
    PhiConfig,
    PhimoeConfig,
)

from longeval.errors import LongEvalError
from longeval.models.geometry import native_length, rope_geometry
from longeval.models.load import load_config
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope


@pytest.mark.parametrize(
    ("config", "head_dim"),
    [
        (LlamaConfig(hidden_size=256, num_attention_heads=4), 64),
        (GPTNeoXConfig(hidden_size=512, num_attention_heads=8, rotary_pct=0.25), 16),
        (PhiConfig(hidden_size=2048, num_attention_heads=32), 32),
        (DeepseekV3Config(), 64),
        (MixtralConfig(hidden_size=4096, num_attention_heads=32, head_dim=None), 128),
    ],
)
def test_rotated_part_of_a_head(config, head_dim):
    rope = rope_geometry(config)
    assert (rope.head_dim, rope.by_layer_type) == (head_dim, False)


@pytest.mark.parametrize("config", [Gemma3TextConfig(), Gemma3Config()])
def test_by_layer_type_takes_the_layers_that_see_everything(config):
    rope = rope_geometry(config)
    assert (rope.theta, rope.by_layer_type) == (1e6, True)
    assert rope.parameters["sliding_attention"]["rope_theta"] == 1e4


@pytest.mark.parametrize(("make", "theta"), [(Gemma3TextConfig, 1e6), (Olmo3Config, 5e5)])
def test_settings_for_layers_that_a_small_model_has_none_of(make, theta):
    """transformers writes those of full attention itself, and two layers are both of the sliding kind."""
    config = make(num_hidden_layers=2, head_dim=16, rope_parameters=None)
    assert set(config.layer_types) == {"sliding_attention"}
    rope = rope_geometry(config)
    assert (rope.head_dim, rope.theta, rope.by_layer_type) == (16, theta, True)
    config.rope_parameters["nonsense"] = {"rope_type": "default", "rope_theta": 1.0}
    with pytest.raises(LongEvalError, match="nonsense"):
        rope_geometry(config)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_native_length_is_what_shipped_scaling_starts_from():
    rope = LLAMA3 | {"original_max_position_embeddings": 8192}
    config = LlamaConfig(max_position_embeddings=131072, rope_parameters=rope)
    assert (native_length(config), native_length(config, 4096)) == (8192, 4096)
    assert (rope_geometry(config).rope_type, rope_geometry(config).theta) == ("llama3", 5e5)
    plain = LlamaConfig(max_position_embeddings=131072)
    assert native_length(plain) == 131072
    plain.original_max_position_embeddings = 4096
    assert native_length(plain) == 4096
    nested = Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=32768))
    assert native_length(nested) == 32768


def test_native_length_unknown_or_wrong():
    with pytest.raises(LongEvalError, match=r"bloom .*--native"):
        native_length(BloomConfig())
    with pytest.raises(LongEvalError, match="--native 0"):
        native_length(LlamaConfig(), 0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GPT2Config(), "gpt2: no rotary .*learned"),
        (MptConfig(), "mpt: no rotary .* ALiBi"),
        (BloomConfig(), "bloom: no rotary .* ALiBi"),
        (OPTConfig(), "opt: no rotary .* learned"),
        (GPTJConfig(), "gptj: no rotary .* fixed"),
        (FalconConfig(alibi=True), "falcon: no rotary .* ALiBi"),
        (Gemma4TextConfig(), "gemma4_text: .*global"),
        (GptOssConfig(), "gpt_oss: "),
        (PhimoeConfig(), "phimoe: "),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_without_rope_are_refused_by_name(config, said):
    with pytest.raises(LongEvalError, match=said):
        model_rope("m", config)


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ("default", {"rope_type": "proportional"}, "proportional"),
        ("yarn", {"truncate": False}, "untruncated"),
        ("dynamic", {"alpha": 1000.0}, "alpha"),
        ("longrope", {"short_factor": [1.0] * 3, "long_factor": [1.0] * 3}, "3 numbers, but 16 rotary"),
        ("yarn", {"original_max_position_embeddings": 0}, "original_max_position_embeddings .*not a number"),
    ],
)
def test_scalings_that_cannot_be_reproduced_are_refused(settings, changes, said):
    config = llama_config(settings)
    config.rope_parameters = config.rope_parameters | changes
    with pytest.raises(LongEvalError, match=f"--model m: .*{said}"):
        model_rope("m", config)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "tokens, 2 or more"),
        ({"rope_type": "resonance_yarn"}, "resonance_yarn: .* factor"),
    ],
)
def test_a_folder_with_impossible_settings_gets_a_message_that_names_it(tmp_path, rope, said):
    llama_config("default").save_pretrained(tmp_path)
    edit_config(tmp_path, rope_parameters={"rope_theta": 10000.0, **rope})
    with pytest.raises(LongEvalError, match=f"--model {tmp_path}: .*{said}"):
        load_config(resolve(str(tmp_path), weights=False))
