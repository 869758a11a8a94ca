"""The RoPE settings of GGUF files, against llama.cpp's logits and closed forms, and what can't be converted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from folders import config_of, loaded
from tiny_gguf import header, write_gemma3, write_llama, write_phi3
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, StableLmConfig

from longeval.errors import LongEvalError
from longeval.models.gguf.config import read_scaling, rope_parameters
from longeval.models.gguf.header import read_header
from longeval.models.scaling import model_rope
from longeval.rope.build import parse_method_name

DIVISORS = np.linspace(1, 6, 16, dtype=np.float32)
LONG_DIVISORS = np.linspace(2, 9, 16, dtype=np.float32)
PLAIN_F = 700.0 ** (-np.arange(16) / 16)
FREQS = {"rope_freqs.weight": DIVISORS}
LISTS = {"rope_factors_short.weight": DIVISORS, "rope_factors_long.weight": LONG_DIVISORS}


def scaling(kind=None, **fields):
    """Settings of a scaling as a file has them."""
    stated = {f"rope.scaling.{key}": value for key, value in fields.items()}
    return stated if kind is None else stated | {"rope.scaling.type": kind}


YARN = scaling("yarn", factor=4.0, original_context_length=64)
YARN_WHOLE = scaling("yarn", factor=4.0)
LONGROPE = scaling("longrope", attn_factor=1.1)
NATIVE_64, NATIVE_256 = scaling(original_context_length=64), scaling(original_context_length=256)
BY_TYPE = {"rope.freq_base": 5000.0}
NONE = parse_method_name("none")

LLAMA = {
    "plain": ({}, {}, (0.57044, -0.38996, 0.44602)),
    "none ignores s": (scaling("none", factor=4.0), {}, (0.57044, -0.38996, 0.44602)),
    "linear": (scaling("linear", factor=4.0), {}, (0.41827, -0.28838, 0.48739)),
    "an old file's linear": ({"rope.scale_linear": 3.0}, {}, (0.44808, -0.37163, 0.35369)),
    "yarn": (YARN, {}, (0.24593, -0.27599, 0.26821)),
    "yarn over the whole context": (YARN_WHOLE, {}, (0.23296, -0.12378, 0.15902)),
    "yarn and attention factor": (YARN | scaling(attn_factor=1.2), {}, (0.15647, -0.18621, -0.09556)),
    "attention factor": (scaling(attn_factor=1.3), {}, (0.44674, -0.23414, 0.31571)),
    "divisors": ({}, FREQS, (0.39494, -0.48459, 0.34336)),
    "divisors and attention factor": (scaling("none", attn_factor=1.3), FREQS, (0.27362, -0.45080, -0.02258)),
    "divisors and linear": (scaling(factor=2.0), FREQS, (0.43462, -0.58472, 0.73075)),
    "short list": (LONGROPE | NATIVE_256, LISTS, (0.33753, -0.48699, 0.27062)),
    "long list": (LONGROPE | NATIVE_64, LISTS, (0.35593, -0.35153, 0.58174)),
}
PHI3 = {
    "long list": (LONGROPE | NATIVE_64, LISTS, (0.07639, -1.55805, -0.84343)),
    "rotated in part": ({"rope.dimension_count": 16}, {}, (-0.00824, -1.75623, -1.03096)),
}
GEMMA3 = {
    "plain": ({}, {}, (-0.54032, 2.50715, -4.31753)),
    "global layers linear": (scaling("linear", factor=8.0), {}, (-0.27785, 3.11472, -4.27948)),
    "global layers yarn": (YARN, {}, (-0.26496, 2.82545, -4.21080)),
    "local base": ({"rope.freq_base_swa": 77.0}, {}, (-0.57556, 1.81486, -4.87656)),
    "every third layer sees all": ({"attention.sliding_window_pattern": 3}, {}, (-1.23565, 1.63281, -3.15288)),
    "no sliding window": ({"attention.sliding_window": None}, {}, (-1.73157, -0.82106, -3.83181)),
    "soft cap": ({"final_logit_softcapping": 2.0}, {}, (-0.52755, 1.69857, -1.94737)),
}
"""Of each file: its metadata, its tensors, and its first three logits after 200 tokens as llama.cpp has them
(llama-cpp-python 0.3.36, float32 weights and cache; context 256)."""
LLAMA_CPP = [(write_llama, name, *case) for name, case in LLAMA.items()]
LLAMA_CPP += [(write_phi3, name, *case) for name, case in PHI3.items()]
LLAMA_CPP += [(write_gemma3, name, BY_TYPE | fields, *rest) for name, (fields, *rest) in GEMMA3.items()]


@pytest.mark.parametrize(("write", "name", "fields", "tensors", "expected"), LLAMA_CPP)
def test_logits_are_those_of_llama_cpp(write, name, fields, tensors, expected, tmp_path):
    model = loaded(write(tmp_path / "tiny.gguf", fields, tensors))
    tokens_T = np.concatenate([[2], np.random.default_rng(1).integers(5, 12, 199)])
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens_T)[None]).logits[0, -1, :3]
    # llama.cpp takes Gemma's GELU from a table in float16.
    assert logits.tolist() == pytest.approx(expected, abs=5e-3 if write is write_gemma3 else 2e-5)


def plain_config(**fields):
    return LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=256, **fields)


def said_of(fields, config=None):
    return rope_parameters(header(fields), config or plain_config())


def test_none_means_as_the_file_has_it_and_other_methods_start_before_it(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", NATIVE_64 | scaling(attn_factor=1.25), FREQS)
    rope = model_rope("tiny", config_of(path))
    assert (rope.geometry.native_length, rope.shipped.reach) == (64, 256)
    assert not rope.length_dependent(NONE)
    for length in (10, 64, 65, 500):
        table = rope.tables(NONE, rope.geometry, {})(length)
        np.testing.assert_allclose(table.inv_freq_F, PLAIN_F / DIVISORS, rtol=1e-6)
        assert table.attention_factor == 1.25


def test_two_lists_depend_on_the_length(tmp_path):
    config = config_of(write_phi3(tmp_path / "tiny.gguf", LONGROPE | NATIVE_64, LISTS))
    assert config.original_max_position_embeddings == 64
    rope = model_rope("tiny", config)
    for length, divisors in ((64, DIVISORS), (65, LONG_DIVISORS)):
        table = rope.tables(NONE, rope.geometry, {})(length)
        np.testing.assert_allclose(table.inv_freq_F, PLAIN_F / divisors, rtol=1e-6)
        assert table.attention_factor == pytest.approx(1.1)


def test_yarns_bounds_come_from_the_file():
    assert said_of(YARN_WHOLE | scaling(yarn_beta_fast=8.0, yarn_beta_slow=2.0)) == {
        "rope_type": "yarn",
        "rope_theta": 700.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "attention_factor": pytest.approx(0.1 * math.log(4) + 1),
        "beta_fast": 8.0,
        "beta_slow": 2.0,
    }


@pytest.mark.parametrize("stretch", [8.0, 32.0])
def test_llama_3_1s_divisors_are_recognised(tmp_path, stretch):
    def divisor(j):
        wavelength = 2 * math.pi * 5e5 ** (2 * j / 32)
        if wavelength < 8192 / 4:
            return 1.0
        if wavelength > 8192 / 1:
            return stretch
        smooth = (8192 / wavelength - 1) / (4 - 1)
        return 1 / ((1 - smooth) / stretch + smooth)

    made = np.array([divisor(j) for j in range(16)], dtype=np.float32)
    assert np.any((made > 1) & (made < stretch))  # the blend is there
    fields = {"rope.freq_base": 5e5, "context_length": 131072}
    path = write_llama(tmp_path / "tiny.gguf", fields, {"rope_freqs.weight": made})
    assert rope_parameters(read_header(str(path)), plain_config()) == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": stretch,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    made[np.argmax(made > 1)] *= 1.00001
    path = write_llama(tmp_path / "other.gguf", fields, {"rope_freqs.weight": made})
    said = rope_parameters(read_header(str(path)), plain_config())
    assert said["rope_type"] == "longrope"
    assert said["short_factor"] == said["long_factor"] == made.astype(float).tolist()
    assert said["original_max_position_embeddings"] == 131072


def test_the_base_comes_from_the_file_also_where_transformers_passes_over_it():
    config = StableLmConfig(hidden_size=128, num_attention_heads=2)
    assert config.rope_parameters["rope_theta"] == 10000
    said = rope_parameters(header({"rope.freq_base": 5e5, "rope.dimension_count": 16}, "stablelm"), config)
    assert (said["rope_theta"], said["partial_rotary_factor"]) == (5e5, 0.25)
    config = plain_config(rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert said_of({"rope.freq_base": None}, config)["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (scaling("ntk"), r"rope\.scaling\.type = ntk"),
        (scaling("yarn", factor=0.5), r"rope\.scaling\.factor = 0\.5"),
        (scaling(attn_factor=0.0), r"rope\.scaling\.attn_factor = 0"),
        ({"rope.freq_base": -1.0}, r"rope\.freq_base = -1"),
        ({"rope.freq_base": math.nan}, r"rope\.freq_base = nan"),
        (scaling(yarn_log_multiplier=0.1), r"yarn_log_multiplier = 0\.1"),
        (scaling(yarn_ext_factor=1.0), r"yarn_ext_factor = 1\.0"),
        (scaling("yarn", yarn_ext_factor=0.0), r"yarn_ext_factor = 0\.0"),
        (scaling("yarn", yarn_attn_factor=1.0), r"yarn_attn_factor = 1\.0"),
        (scaling(alpha=1000.0), r"alpha = 1000"),
        (scaling(of_tomorrow=1.0), r"of_tomorrow = 1\.0"),
        (scaling("longrope", factor=4.0), r"longrope .*no lists"),
        ({"rope.freq_base_swa": 5.0}, r"rope\.freq_base_swa"),
        ({"rope.dimension_count": 48}, r"rope\.dimension_count = 48"),
        (scaling(factor=2.0) | {"context_length": 0}, r"no context_length"),
    ],
)
def test_what_cant_be_said_is_refused_by_name(fields, named):
    with pytest.raises(LongEvalError, match=rf"--model m\.gguf: .*{named}") as caught:
        said_of(fields)
    assert "original model" in caught.value.remedy


@pytest.mark.parametrize(
    "fields",
    [
        scaling(finetuned=True),
        scaling(yarn_log_multiplier=0.0, yarn_ext_factor=-1.0),
        scaling(yarn_attn_factor=1.0, alpha=0.0),
        scaling("yarn", factor=1.0),
        {"rope.freq_base_swa": 700.0, "rope.dimension_count": 32},
    ],
)
def test_what_changes_nothing_is_plain_rope(fields):
    config = plain_config()
    assert said_of(fields, config) == {"rope_type": "default", "rope_theta": 700.0}
    assert config.rope_parameters["rope_theta"] == 10000.0  # untouched


@pytest.mark.parametrize(
    ("fields", "tensors", "named"),
    [
        ({}, {"rope_freqs.weight": DIVISORS[:8]}, r"rope_freqs\.weight .*\(8,\).* 16 pairs"),
        ({}, {"rope_freqs.weight": 0 * DIVISORS}, r"rope_freqs\.weight .*positive"),
        ({}, {"rope_factors_long.weight": DIVISORS}, r"rope_factors_long\.weight"),
        ({}, FREQS | LISTS, r"one list for all contexts"),
        ({}, {"blk.0.rope_freqs.weight": DIVISORS}, r"blk\.0\.rope_freqs\.weight"),
        (YARN, FREQS, r"yarn .*lists"),
        (LONGROPE | scaling(factor=2.0), LISTS, r"longrope .*lists"),
    ],
)
def test_lists_that_cant_be_said_are_refused_by_name(fields, tensors, named, tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", fields, tensors)
    with pytest.raises(LongEvalError, match=named):
        rope_parameters(read_header(str(path)), plain_config())


def test_lists_of_ones_are_no_scaling(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": np.ones(16, dtype=np.float32)})
    assert read_scaling(read_header(str(path)), 16).changes_nothing


def test_by_layer_type_only_the_global_layers_are_scaled(tmp_path):
    config = Gemma3TextConfig(num_hidden_layers=6, head_dim=32)
    fields = scaling(factor=8.0) | {"rope.freq_base_swa": 5000.0}
    assert rope_parameters(header(fields, "gemma3"), config) == {
        "full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }
    path = write_gemma3(tmp_path / "tiny.gguf", tensors=FREQS)
    with pytest.raises(LongEvalError, match=r"rope_freqs\.weight .*layer type"):
        rope_parameters(read_header(str(path)), config)


def test_scaling_of_a_family_that_has_one_of_its_own():
    config = plain_config(rope_parameters={"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0})
    assert said_of({}, config) == {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}
    with pytest.raises(LongEvalError, match="linear scaling already"):
        said_of(scaling(factor=3.0), config)


def test_families_without_rope():
    assert rope_parameters(header({}, "gpt2"), GPT2Config()) is None
    with pytest.raises(LongEvalError, match=r"gpt2\.rope\.scaling\.type"):
        rope_parameters(header(scaling("linear"), "gpt2"), GPT2Config())
