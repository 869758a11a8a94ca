"""Which `rope_parameters` are read, completed and refused, when a config and when a model is built."""

from __future__ import annotations

import importlib
import inspect
import re

import numpy as np
import pytest
import torch
import transformers
from hf_models import NATIVE, ROPE, SIZES, llama_config, resonance_yarn, rotary
from rope.rope_reference import base_frequencies
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    StableLmConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longeval.errors import LongEvalError
from longeval.hf import read_parameters
from longeval.hf.parameters import rotates_part
from longeval.models.scaling import model_rope
from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.rope.resonance import ResonanceParameters
from longeval.rope.yarn import YarnParameters

PI = {"rope_type": "pi", "rope_theta": 1e4, "factor": 4}


def model_with(rope, config=None):
    """A model whose config got these `rope_parameters` after it was built."""
    config = config or LlamaConfig(**SIZES)
    config.rope_parameters = rope
    return AutoModelForCausalLM.from_config(config)


def test_a_missing_native_length_is_read_once_and_told(caplog):
    rope = {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 8}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    assert rope == {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 8}, "the caller's own"
    assert config.rope_parameters["original_max_position_embeddings"] == NATIVE
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("longeval")]
    assert "max_position_embeddings = 64" in message and "512" in message
    config.max_position_embeddings = 8 * NATIVE
    again = LlamaConfig.from_dict(config.to_dict())
    inv_freq_F, _ = ROPE_INIT_FUNCTIONS["resonance_yarn"](again)
    geometry = Geometry(head_dim=32, theta=1e4, native_length=NATIVE, factor=8)
    assert inv_freq_F.tolist() == np.float32(build_table("resonance_yarn", geometry).inv_freq_F).tolist()


@pytest.mark.parametrize("longest", [16, "native"])
def test_a_resonance_form_has_its_longest_period(longest, tmp_path):
    model = model_with({**ROPE, "max_period": longest})
    model.save_pretrained(tmp_path)
    geometry = Geometry(head_dim=32, theta=1e4, native_length=NATIVE, factor=8)
    resonance = ResonanceParameters(max_period=longest)
    table = build_table("resonance_yarn", geometry, YarnParameters(beta_fast=4.0), resonance=resonance)
    for one in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(rotary(one).inv_freq, torch.tensor(table.inv_freq_F, dtype=torch.float32))
        assert not torch.equal(rotary(one).inv_freq, resonance_yarn(32))
    shipped = model_rope("saved", AutoConfig.from_pretrained(tmp_path)).shipped_table(100)
    assert shipped.same_as(table) and shipped.fractions() == table.fractions()


def test_nothing_is_told_where_the_native_length_is_given_or_does_not_matter(caplog):
    llama_config(**ROPE)
    llama_config(rope_type="resonance", rope_theta=1e4)
    assert caplog.records == []


def test_an_edited_config_is_completed_when_the_model_is_built():
    rope = dict(PI)
    model = model_with(rope)
    assert model.config.rope_parameters == {**PI, "original_max_position_embeddings": NATIVE}
    assert rope == PI, "the caller's own"
    assert torch.equal(rotary(model).inv_freq, torch.tensor([x / 4 for x in base_frequencies(32, 1e4)]))


def test_families_with_a_check_of_their_own_are_completed_too(monkeypatch):
    monkeypatch.setattr(LlamaConfig, "validate_rope", lambda self: None)
    model = model_with({key: value for key, value in ROPE.items() if key != "original_max_position_embeddings"})
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(32))
    assert model.config.rope_parameters == ROPE


def test_the_length_before_scaling_comes_from_the_config_where_it_has_one():
    config = LlamaConfig(**SIZES, original_max_position_embeddings=32, rope_parameters={**ROPE, "rope_type": "yarn"})
    model = model_with({key: ROPE[key] for key in ("rope_type", "rope_theta", "factor")}, config)
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
    with pytest.raises(LongEvalError, match="rope_theta"):
        LlamaConfig(**SIZES, rope_scaling={"type": "resonance_pi", "factor": 2.0})
    neox = GPTNeoXConfig(rotary_emb_base=5e4, rope_parameters={"rope_type": "resonance_pi", "factor": 2.0})
    assert neox.rope_parameters["rope_theta"] == 5e4


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "resonance_yarn", "factor": 8}, "no rope_theta"),
        ({"rope_type": "pi", "rope_theta": 1e4}, "rope_type pi: rope_parameters have no factor"),
        ({"rope_type": "resonance_longrope", "rope_theta": 1e4, "factor": 2, "short_factor": [1.0]}, "no long_factor"),
        ({**ROPE, "beta_fats": 16}, "beta_fats.* beta_fast"),
        ({"rope_type": "resonance", "rope_theta": 1e4, "factor": 8}, "factor 8 .* pi, ntk, ntk_by_parts"),
        ({**ROPE, "beta_fast": 1}, "resonance_yarn: beta_fast 1: .*beta_slow"),
        ({**ROPE, "beta_fast": "@/etc/hostname"}, "beta_fast '@/etc/hostname' is text"),
        ({**ROPE, "attention_factor": [1.0]}, r"attention_factor=\[1.0\]"),
        ({**ROPE, "factor": 0.5}, "factor 0.5"),
        ({**ROPE, "factor": float("inf")}, "factor inf"),
        ({**ROPE, "factor": "8"}, "factor '8'"),
        ({**ROPE, "rope_theta": -1.0}, "rope_theta -1.0"),
        ({**ROPE, "original_max_position_embeddings": 4096.5}, "original_max_position_embeddings 4096.5"),
        ({"rope_type": "none"}, "rope_type none: .* Use default"),
        ({"rope_type": "dynamic_ntk"}, "Use ntk .* --pe dynamic_ntk"),
        ({"rope_type": "resonance_dynamic_yarn", "rope_theta": 1e4}, "Use resonance_yarn"),
        ({**ROPE, "max_period": 0}, "resonance_yarn: max_period 0: must be from 1"),
        ({**ROPE, "max_period": -1}, "resonance_yarn: max_period -1: must be from 1"),
        ({**ROPE, "max_period": "16"}, "max_period '16' is text"),
        ({**ROPE, "max_period": "Native"}, "max_period 'Native' is text.* rounded or native"),
        ({**PI, "max_period": 16}, "rope_type pi: unknown key max_period"),
        ({"full_attention": dict(ROPE)}, "llama models need rope_parameters in another form"),
    ],
)
def test_a_config_with_mistakes_is_not_built(rope, words):
    with pytest.raises(LongEvalError, match=words):
        llama_config(**rope)


LISTS = {"short_factor": [1, 2], "long_factor": [1, 2]}


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "dynamic_ntk", "rope_theta": 1e4}, "Use ntk"),
        ({"rope_type": "pi", "rope_theta": 1e4}, "rope_type pi: .*factor"),
        ({**ROPE, "rope_theta": 1.0}, "resonance_yarn: rope_theta 1: "),
        ({**ROPE, "rope_type": "resonance_longrope", **LISTS, "beta_fast": None}, "short_factor: 2 .* 32 .* 16"),
        ({**ROPE, "partial_rotary_factor": 0.3}, "partial_rotary_factor 0.3, but llama models"),
    ],
)
def test_a_model_with_mistakes_is_not_built(rope, words):
    with pytest.raises(LongEvalError, match=words):
        model_with(rope)


def test_forms_that_a_family_would_ignore_are_refused():
    with pytest.raises(LongEvalError, match=r"gemma3_text models.*\(full_attention, sliding_attention\)"):
        Gemma3TextConfig(**SIZES, rope_parameters=dict(ROPE))
    with pytest.raises(LongEvalError, match="no rope_theta"):
        Gemma3TextConfig(**SIZES, rope_parameters={"full_attention": {"rope_type": "resonance_yarn", "factor": 8}})


def test_the_rotated_part_of_a_head_is_never_forgotten():
    assert GPTNeoXConfig(**SIZES, rope_parameters=dict(ROPE)).rope_parameters["partial_rotary_factor"] == 0.25
    with pytest.raises(LongEvalError, match="no partial_rotary_factor"):
        model_with(dict(ROPE), GPTNeoXConfig(**SIZES))
    # The attention of this family looks for it before its rotary module does; the documentation says so.
    with pytest.raises(KeyError, match="partial_rotary_factor"):
        model_with(dict(ROPE), StableLmConfig(**SIZES))
    # This family keeps it beside rope_parameters as well.
    model = model_with(dict(ROPE), transformers.GlmConfig(**SIZES, head_dim=32))
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(16))
    assert model.config.rope_parameters == {**ROPE, "partial_rotary_factor": 0.5}


def test_a_family_that_refuses_foreign_types_does_so_before_training():
    with pytest.raises(Exception, match=re.escape("['longrope'], got resonance_yarn")):
        Phi3Config(**SIZES, rope_parameters=dict(ROPE))
    with pytest.raises(LongEvalError, match=r"phi3 models .*longrope.* longeval export"):
        model_with({**ROPE, "partial_rotary_factor": 1.0}, Phi3Config(**SIZES))


def test_configs_of_other_types_are_left_to_transformers():
    rope = {"rope_type": "yarn", "factor": 2.0}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    assert config.rope_parameters is rope and rope["rope_theta"] == 10000.0


def test_settings_are_read_in_terms_of_our_methods():
    given = {**ROPE, "attention_factor": None, "mrope_section": [1]}
    read = read_parameters("resonance_yarn", given, ignore={"mrope_section"})
    assert (read.name.base, read.name.resonance, read.factor, read.native_length) == ("yarn", True, 8.0, NATIVE)
    assert read.arguments == {"beta_fast": 4.0} and isinstance(read.arguments["beta_fast"], float)
    read = read_parameters("resonance", {"rope_theta": 1e4, "factor": 1})
    assert (read.name.base, read.arguments, read.factor, read.native_length) == ("none", {}, 1.0, None)
    lists = {"short_factor": [1, 2], "long_factor": [3, 4]}
    read = read_parameters("resonance_longrope", {"rope_theta": 1e4, "factor": 2, **lists})
    assert read.arguments == {"short_factor": (1.0, 2.0), "long_factor": (3.0, 4.0)}


def test_a_common_key_is_checked_even_where_a_family_has_it_too():
    with pytest.raises(LongEvalError, match=r"partial_rotary_factor 1\.5"):
        read_parameters("pi", {**PI, "partial_rotary_factor": 1.5}, ignore={"partial_rotary_factor"})


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_a_family_that_would_ignore_our_types_refuses_them(family):
    with pytest.raises(LongEvalError, match=f"rope_type resonance_yarn: .*{family}"):
        transformers.AutoConfig.for_model(family, rope_parameters=dict(ROPE))
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
