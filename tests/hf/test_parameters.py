"""Which `rope_parameters` are read, completed and refused, when a config and when a model is built."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
import torch
import transformers
from hf_models import (
    NATIVE,
    ROPE,
    SIZES,
    llama_config,
    resonance_yarn,
    rotary,
)
from rope.rope_reference import base_frequencies
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Phi3Config, StableLmConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longeval.errors import LongEvalError
from longeval.hf import read_parameters
from longeval.hf.parameters import rotates_part
from longeval.rope.base import Geometry
from longeval.rope.build import build_table


def test_the_native_length_is_written_once_and_for_all(caplog):
    rope = {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 8}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    assert rope == {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 8}, "the caller's own"
    assert config.rope_parameters["original_max_position_embeddings"] == NATIVE
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("longeval")]
    assert "max_position_embeddings = 64" in message and "factor 8 reaches 512" in message
    config.max_position_embeddings = 8 * NATIVE
    again = LlamaConfig.from_dict(config.to_dict())
    inv_freq_F, _ = ROPE_INIT_FUNCTIONS["resonance_yarn"](again)
    geometry = Geometry(head_dim=32, theta=1e4, native_length=NATIVE, factor=8)
    assert inv_freq_F.tolist() == np.float32(build_table("resonance_yarn", geometry).inv_freq_F).tolist()


def test_the_native_length_is_not_guessed_aloud_where_it_is_known_or_does_not_matter(caplog):
    llama_config(**ROPE)
    llama_config(rope_type="resonance", rope_theta=1e4)
    assert caplog.records == []


def test_an_edited_config_is_checked_and_completed_when_the_model_is_built():
    config = LlamaConfig(**SIZES)
    config.rope_parameters = rope = {"rope_type": "pi", "rope_theta": 1e4, "factor": 4}
    model = AutoModelForCausalLM.from_config(config)
    assert model.config.rope_parameters == {**rope, "original_max_position_embeddings": NATIVE}
    assert "original_max_position_embeddings" not in rope
    assert torch.equal(rotary(model).inv_freq, torch.tensor([x / 4 for x in base_frequencies(32, 1e4)]))
    config.rope_parameters = {"rope_type": "pi", "rope_theta": 1e4}
    with pytest.raises(LongEvalError, match=r"rope_type pi: .*factor"):
        AutoModelForCausalLM.from_config(config)


def test_families_that_check_in_their_own_way_are_completed_too(monkeypatch):
    monkeypatch.setattr(LlamaConfig, "validate_rope", lambda self: None)
    config = LlamaConfig(**SIZES)
    config.rope_parameters = {key: value for key, value in ROPE.items() if key != "original_max_position_embeddings"}
    model = AutoModelForCausalLM.from_config(config)
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(32))
    assert model.config.rope_parameters == ROPE


def test_the_length_before_scaling_comes_from_the_config_where_it_has_one():
    config = LlamaConfig(**SIZES, original_max_position_embeddings=32, rope_parameters={**ROPE, "rope_type": "yarn"})
    given = {key: ROPE[key] for key in ("rope_type", "rope_theta", "factor")}
    config.rope_parameters = given
    model = AutoModelForCausalLM.from_config(config)
    assert model.config.rope_parameters["original_max_position_embeddings"] == 32


def test_keys_of_a_family_are_left_to_it():
    config = transformers.Ministral3Config(**SIZES, head_dim=16, rope_parameters={**ROPE, "llama_4_scaling_beta": 0.1})
    model = AutoModelForCausalLM.from_config(config)
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(16))
    assert model.config.rope_parameters["llama_4_scaling_beta"] == 0.1


def test_older_forms_of_configs_are_read():
    scaling = {"type": "resonance_pi", "factor": 2.0}
    old = LlamaConfig(**SIZES, rope_theta=5e5, rope_scaling=scaling)
    assert scaling == {"type": "resonance_pi", "factor": 2.0}, "the caller's own"
    assert old.rope_parameters["rope_theta"] == 5e5 and old.rope_parameters["rope_type"] == "resonance_pi"
    assert AutoModelForCausalLM.from_config(old) is not None
    with pytest.raises(LongEvalError, match="no rope_theta"):
        LlamaConfig(**SIZES, rope_scaling={"type": "resonance_pi", "factor": 2.0})
    neox = GPTNeoXConfig(rotary_emb_base=5e4, rope_parameters={"rope_type": "resonance_pi", "factor": 2.0})
    assert neox.rope_parameters["rope_theta"] == 5e4


REFUSALS = [
    ({"rope_type": "resonance_yarn", "factor": 8}, "have no rope_theta.* the model's own base"),
    ({"rope_type": "pi", "rope_theta": 1e4}, "rope_type pi: rope_parameters have no factor.* such as 8"),
    ({"rope_type": "resonance_longrope", "rope_theta": 1e4, "factor": 2, "short_factor": [1.0]}, "no long_factor"),
    ({**ROPE, "beta_fats": 16}, "unknown key beta_fats.* Did you mean beta_fast"),
    ({**ROPE, "low_freq_factor": 1.0}, "unknown key low_freq_factor"),
    ({**ROPE, "mscale": 1.0}, "unknown key mscale"),
    ({"rope_type": "resonance", "rope_theta": 1e4, "factor": 8}, "factor 8 would be ignored.* pi, ntk, ntk_by_parts"),
    ({"rope_type": "abf", "rope_theta": 1e4, "factor": 8.0}, "factor 8.0 would be ignored"),
    ({**ROPE, "beta_fast": 1}, "resonance_yarn: beta_fast 1: must be greater than beta_slow"),
    ({**ROPE, "beta_fast": "@/etc/hostname"}, "beta_fast '@/etc/hostname' is text"),
    ({**ROPE, "beta_fast": "16"}, "beta_fast '16' is text"),
    ({**ROPE, "attention_factor": "1.25"}, "attention_factor '1.25' is text"),
    ({**ROPE, "attention_factor": [1.0]}, r"attention_factor=\[1.0\].*not a finite number"),
    ({"rope_type": "ntk", "rope_theta": 1e4, "factor": 2, "base_rule": "cubic"}, "base_rule=cubic: unknown"),
    ({**ROPE, "factor": 0.5}, "factor 0.5 must be a finite number of at least 1"),
    ({**ROPE, "factor": True}, "factor True must be"),
    ({**ROPE, "factor": float("inf")}, "factor inf must be"),
    ({**ROPE, "factor": "8"}, "factor '8' must be"),
    ({**ROPE, "rope_theta": -1.0}, "rope_theta -1.0 must be"),
    ({**ROPE, "partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 must be"),
    ({**ROPE, "original_max_position_embeddings": 4096.5}, "original_max_position_embeddings 4096.5 must be a whole"),
    ({**ROPE, "original_max_position_embeddings": 0}, "original_max_position_embeddings 0 must be"),
    ({"rope_type": "none"}, "rope_type none: not a rope type.* Use default"),
    ({"rope_type": "dynamic_ntk"}, "follows the length.* Use ntk with a factor.* longeval ppl --pe dynamic_ntk"),
    ({"rope_type": "resonance_dynamic_yarn", "rope_theta": 1e4}, "earlier sequences.* Use resonance_yarn with"),
    ({"full_attention": dict(ROPE)}, "would be ignored.* not as given in llama models"),
]


@pytest.mark.parametrize(("rope", "message"), REFUSALS)
def test_a_config_with_mistakes_is_not_built(rope, message):
    with pytest.raises(LongEvalError, match=message):
        llama_config(**rope)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic_ntk", "rope_theta": 1e4}, "Use ntk with a factor"),
        ({"rope_type": "none", "rope_theta": 1e4}, "Use default"),
        ({"rope_type": "resonance_yarn", "factor": 8}, "have no rope_theta"),
        ({**ROPE, "rope_theta": 1.0}, "resonance_yarn: rope_theta 1: .*need a base above 1"),
        ({**ROPE, "rope_theta": 1e-9}, "resonance_yarn: rope_theta 1e-09: "),
        (
            {
                **ROPE,
                "rope_type": "resonance_longrope",
                "short_factor": [1, 2],
                "long_factor": [1, 2],
                "beta_fast": None,
            },
            "resonance_longrope: short_factor: 2 numbers, but 32 rotary dimensions need 16",
        ),
        (
            {**ROPE, "partial_rotary_factor": 0.3},
            "resonance_yarn: partial_rotary_factor 0.3, but llama models",
        ),
    ],
)
def test_a_model_with_mistakes_is_not_built(rope, message):
    config = LlamaConfig(**SIZES)
    config.rope_parameters = rope
    with pytest.raises(LongEvalError, match=message):
        AutoModelForCausalLM.from_config(config)


def test_forms_that_a_family_would_ignore_are_refused():
    with pytest.raises(
        LongEvalError, match=r"not as given in gemma3_text models.*\(full_attention, sliding_attention\)"
    ):
        Gemma3TextConfig(**SIZES, rope_parameters=dict(ROPE))
    with pytest.raises(LongEvalError, match="no rope_theta"):
        Gemma3TextConfig(**SIZES, rope_parameters={"full_attention": {"rope_type": "resonance_yarn", "factor": 8}})


def test_the_rotated_part_of_a_head_is_never_forgotten():
    assert GPTNeoXConfig(**SIZES, rope_parameters=dict(ROPE)).rope_parameters["partial_rotary_factor"] == 0.25
    config = GPTNeoXConfig(**SIZES)
    config.rope_parameters = dict(ROPE)
    with pytest.raises(LongEvalError, match=r"have no partial_rotary_factor.* a part of the head"):
        AutoModelForCausalLM.from_config(config)
    # The attention of this family looks for it before its rotary module does; the documentation says so.
    stablelm = StableLmConfig(**SIZES)
    stablelm.rope_parameters = dict(ROPE)
    with pytest.raises(KeyError, match="partial_rotary_factor"):
        AutoModelForCausalLM.from_config(stablelm)
    # This family keeps it beside rope_parameters as well.
    glm = transformers.GlmConfig(**SIZES, head_dim=32)
    glm.rope_parameters = dict(ROPE)
    model = AutoModelForCausalLM.from_config(glm)
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(16))
    assert model.config.rope_parameters == {**ROPE, "partial_rotary_factor": 0.5}


def test_a_family_that_refuses_foreign_types_does_so_before_training():
    with pytest.raises(Exception, match=r"must be one of \['longrope'\], got resonance_yarn"):
        Phi3Config(**SIZES, rope_parameters=dict(ROPE))
    config = Phi3Config(**SIZES)
    config.rope_parameters = {**ROPE, "partial_rotary_factor": 1.0}
    with pytest.raises(LongEvalError, match=r"refused by the config of phi3 models .*longrope.* longeval export"):
        AutoModelForCausalLM.from_config(config)


def test_others_configs_are_left_to_transformers():
    rope = {"rope_type": "yarn", "factor": 2.0}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    assert config.rope_parameters is rope and rope["rope_theta"] == 10000.0


def test_settings_are_read_in_our_terms():
    read = read_parameters(
        "resonance_yarn", {**ROPE, "attention_factor": None, "mrope_section": [1]}, ignore={"mrope_section"}
    )
    assert (read.name.base, read.name.resonance, read.factor, read.native_length) == ("yarn", True, 8.0, NATIVE)
    assert read.arguments == {"beta_fast": 4.0} and isinstance(read.arguments["beta_fast"], float)
    with pytest.raises(LongEvalError, match=r"partial_rotary_factor 1\.5 must be"):
        read_parameters(
            "pi", {"rope_theta": 1, "factor": 1, "partial_rotary_factor": 1.5}, ignore={"partial_rotary_factor"}
        )
    lists = {"short_factor": [1, 2], "long_factor": [3, 4]}
    assert read_parameters("resonance_longrope", {"rope_theta": 1e4, "factor": 2, **lists}).arguments == {
        "short_factor": (1.0, 2.0),
        "long_factor": (3.0, 4.0),
    }
    read = read_parameters("resonance", {"rope_theta": 1e4, "factor": 1})
    assert (read.name.base, read.arguments, read.factor, read.native_length) == ("none", {}, 1.0, None)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "mpt", "bloom", "opt"])
def test_a_family_that_would_ignore_it_refuses(family):
    rope = {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 4, "original_max_position_embeddings": 64}
    with pytest.raises(LongEvalError, match=f"rope_type resonance_yarn: .*{family}"):
        transformers.AutoConfig.for_model(family, rope_parameters=rope)
    assert transformers.AutoConfig.for_model(family).model_type == family


@pytest.mark.slow
def test_families_that_heed_a_rotated_part_are_told_by_their_code():
    """Held against the function of plain RoPE of every causal family that has one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    families = 0
    for config_class, model_class in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        module = importlib.import_module((model_class if isinstance(model_class, type) else model_class[0]).__module__)
        for name, found in vars(module).items():
            if not (name.endswith("RotaryEmbedding") and hasattr(found, "compute_default_rope_parameters")):
                continue
            if found.__module__ == module.__name__ and "Vision" not in name and "2D" not in name:
                reads = "partial_rotary_factor" in inspect.getsource(found.compute_default_rope_parameters)
                assert rotates_part(config_class.__new__(config_class)) == reads, name
                families += 1
    assert families > 100
