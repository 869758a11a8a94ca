"""Models without RoPE, and scalings that can't be said exactly, are refused by name."""

from __future__ import annotations

import json

import pytest
import transformers
from scaled_configs import llama_config

from longeval.errors import LongEvalError
from longeval.models.load import load_config
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (transformers.GPT2Config(), "gpt2: no rotary position embedding to replace .it has learned absolute"),
        (transformers.MptConfig(), "mpt: no rotary .* ALiBi"),
        (transformers.BloomConfig(), "bloom: no rotary .* ALiBi"),
        (transformers.OPTConfig(), "opt: no rotary .* learned"),
        (transformers.GPTJConfig(), "gptj: no rotary .* fixed in its code"),
        (transformers.FalconConfig(alibi=True), "falcon: no rotary .* ALiBi"),
        (transformers.Gemma4TextConfig(), "gemma4_text: its rotary embedding can't be replaced exactly .its global"),
        (transformers.GptOssConfig(), "gpt_oss: its rotary embedding can't be replaced exactly"),
        (transformers.PhimoeConfig(), "phimoe: its rotary embedding can't be replaced exactly"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_without_rope_are_refused_by_name(config, said):
    with pytest.raises(LongEvalError, match=said):
        model_rope("m", config)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "proportional"}, "comes with rope_type proportional"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": False}, "untruncated ramp"),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}, "dynamic scaling has an alpha"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}, "3 numbers, but 16 rotary"),
    ],
)
def test_scalings_that_cannot_be_reproduced_are_refused(rope, said):
    config = llama_config("default")
    config.rope_parameters = {"rope_theta": 10000.0, "original_max_position_embeddings": 64, **rope}
    with pytest.raises(LongEvalError, match=said) as caught:
        model_rope("m", config)
    assert str(caught.value).startswith("--model m: ")


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ("yarn mscale", "mscale", "a"),
        ("yarn", "original_max_position_embeddings", 0),
        ("linear", "factor", "4"),
        ("yarn", "beta_fast", float("nan")),
        ("llama3", "factor", True),
    ],
)
def test_settings_that_are_no_numbers_are_refused(settings, key, value):
    config = llama_config(settings)
    config.rope_parameters = config.rope_parameters | {key: value}
    with pytest.raises(LongEvalError, match=f"--model m: {key} of its {settings.split()[0]} scaling is .*not a number"):
        model_rope("m", config)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "tokens, 2 or more"),
        ({"rope_type": "resonance_yarn"}, "rope_type resonance_yarn: rope_parameters have no factor"),
    ],
)
def test_a_folder_with_impossible_settings_gets_a_message_that_names_it(tmp_path, rope, said):
    config = llama_config("default").to_dict() | {"rope_parameters": {"rope_theta": 10000.0, **rope}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LongEvalError, match=said) as caught:
        load_config(resolve(str(tmp_path), weights=False))
    assert str(caught.value).startswith(f"--model {tmp_path}: ")
