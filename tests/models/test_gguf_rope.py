from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_gguf import write_gemma3, write_llama, write_phi3
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, StableLmConfig

from longeval.errors import LongEvalError
from longeval.models.gguf.config import read_scaling, rope_parameters
from longeval.models.gguf.header import GgufHeader, read_header
from longeval.models.load import load_config, load_model
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope
from longeval.rope.build import parse_method_name

DIVISORS = np.linspace(1, 6, 16, dtype=np.float32)
LONG_DIVISORS = np.linspace(2, 9, 16, dtype=np.float32)
FREQS = {"rope_freqs.weight": DIVISORS}
LISTS = {"rope_factors_short.weight": DIVISORS, "rope_factors_long.weight": LONG_DIVISORS}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
LONGROPE = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.1}
BY_TYPE = {"rope.freq_base": 5000.0}

LLAMA_CPP = {
    "plain": (write_llama, {}, {}, (0.57044, -0.38996, 0.44602)),
    "none ignores s": (
        write_llama,
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {},
        (0.57044, -0.38996, 0.44602),
    ),
    "linear": (
        write_llama,
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {},
        (0.41827, -0.28838, 0.48739),
    ),
    "an old file's linear": (write_llama, {"rope.scale_linear": 3.0}, {}, (0.44808, -0.37163, 0.35369)),
    "yarn": (write_llama, YARN, {}, (0.24593, -0.27599, 0.26821)),
    "yarn over the whole context": (
        write_llama,
        YARN | {"rope.scaling.original_context_length": None},
        {},
        (0.23296, -0.12378, 0.15902),
    ),
    "yarn and attention factor": (
        write_llama,
        YARN | {"rope.scaling.attn_factor": 1.2},
        {},
        (0.15647, -0.18621, -0.09556),
    ),
    "attention factor": (write_llama, {"rope.scaling.attn_factor": 1.3}, {}, (0.44674, -0.23414, 0.31571)),
    "divisors": (write_llama, {}, FREQS, (0.39494, -0.48459, 0.34336)),
    "divisors and attention factor": (
        write_llama,
        {"rope.scaling.type": "none", "rope.scaling.attn_factor": 1.3},
        FREQS,
        (0.27362, -0.45080, -0.02258),
    ),
    "divisors and linear": (write_llama, {"rope.scaling.factor": 2.0}, FREQS, (0.43462, -0.58472, 0.73075)),
    "short list": (
        write_llama,
        LONGROPE | {"rope.scaling.original_context_length": 256},
        LISTS,
        (0.33753, -0.48699, 0.27062),
    ),
    "long list": (
        write_llama,
        LONGROPE | {"rope.scaling.original_context_length": 64},
        LISTS,
        (0.35593, -0.35153, 0.58174),
    ),
    "phi3's long list": (
        write_phi3,
        LONGROPE | {"rope.scaling.original_context_length": 64},
        LISTS,
        (0.07639, -1.55805, -0.84343),
    ),
    "phi3 rotated in part": (write_phi3, {"rope.dimension_count": 16}, {}, (-0.00824, -1.75623, -1.03096)),
    "gemma3": (write_gemma3, BY_TYPE, {}, (-0.54032, 2.50715, -4.31753)),
    "gemma3's global layers linear": (
        write_gemma3,
        BY_TYPE | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        {},
        (-0.27785, 3.11472, -4.27948),
    ),
    "gemma3's global layers yarn": (write_gemma3, BY_TYPE | YARN, {}, (-0.26496, 2.82545, -4.21080)),
    "gemma3's local base": (write_gemma3, BY_TYPE | {"rope.freq_base_swa": 77.0}, {}, (-0.57556, 1.81486, -4.87656)),
}
"""Of each file: how it is written, and its first three logits after 200 tokens as llama.cpp has them (llama-cpp-python
0.3.36, float32 weights and cache; context 256)."""


def two_hundred_tokens():
    return torch.from_numpy(np.concatenate([[2], np.random.default_rng(1).integers(5, 12, 199)]))[None]


@pytest.mark.parametrize("case", LLAMA_CPP)
def test_logits_are_those_of_llama_cpp(case, tmp_path):
    write, fields, tensors, expected = LLAMA_CPP[case]
    model = load_model(resolve(str(write(tmp_path / "tiny.gguf", fields, tensors))), dtype="float32", device="cpu")
    with torch.no_grad():
        logits = model(two_hundred_tokens()).logits[0, -1, :3]
    # llama.cpp takes Gemma's GELU from a table in float16.
    assert logits.tolist() == pytest.approx(expected, abs=5e-3 if write is write_gemma3 else 2e-5)


def header(architecture="llama", **fields):
    """A header without a file; dots in keys are written as two underscores, None leaves a key out."""
    own = {"context_length": 256, "rope.freq_base": 700.0}
    own |= {key.replace("__", "."): value for key, value in fields.items()}
    stated = {f"{architecture}.{key}": value for key, value in own.items() if value is not None}
    return GgufHeader(path="m.gguf", fields={"general.architecture": architecture} | stated, tensors={})


def llama_config(**fields):
    return LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=256, **fields)


def test_none_means_as_the_file_has_it_and_other_methods_start_before_it(tmp_path):
    fields = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25}
    ref = resolve(str(write_llama(tmp_path / "tiny.gguf", fields, FREQS)))
    rope = model_rope("tiny", load_config(ref))
    assert (rope.geometry.native_length, rope.shipped.reach) == (64, 256)
    assert not rope.length_dependent(parse_method_name("none"))
    for length in (10, 64, 65, 500):
        table = rope.tables(parse_method_name("none"), rope.geometry, {})(length)
        expected_F = [700.0 ** (-2 * j / 32) / (1 + j / 3) for j in range(16)]
        assert table.inv_freq_F == pytest.approx(expected_F, rel=1e-6)
        assert table.attention_factor == 1.25


def test_two_lists_depend_on_the_length(tmp_path):
    fields = LONGROPE | {"rope.scaling.original_context_length": 64}
    config = load_config(resolve(str(write_phi3(tmp_path / "tiny.gguf", fields, LISTS))))
    assert config.original_max_position_embeddings == 64
    rope = model_rope("tiny", config)
    tables = rope.tables(parse_method_name("none"), rope.geometry, {})
    plain_F = np.array([700.0 ** (-2 * j / 32) for j in range(16)])
    assert tables(64).inv_freq_F == pytest.approx(plain_F / DIVISORS, rel=1e-6)
    assert tables(65).inv_freq_F == pytest.approx(plain_F / LONG_DIVISORS, rel=1e-6)
    assert tables(65).attention_factor == pytest.approx(1.1)


def test_yarns_bounds_come_from_the_file():
    said = rope_parameters(
        header(
            rope__scaling__type="yarn",
            rope__scaling__factor=4.0,
            rope__scaling__yarn_beta_fast=8.0,
            rope__scaling__yarn_beta_slow=2.0,
        ),
        llama_config(),
    )
    assert said == {
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
    assert rope_parameters(read_header(str(path)), llama_config()) == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": stretch,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    made[np.argmax(made > 1)] *= 1.00001
    path = write_llama(tmp_path / "other.gguf", fields, {"rope_freqs.weight": made})
    said = rope_parameters(read_header(str(path)), llama_config())
    assert said["rope_type"] == "longrope"
    assert said["short_factor"] == said["long_factor"] == made.astype(float).tolist()
    assert said["original_max_position_embeddings"] == 131072


def test_the_base_comes_from_the_file_also_where_transformers_passes_over_it():
    config = StableLmConfig(hidden_size=128, num_attention_heads=2)
    assert config.rope_parameters["rope_theta"] == 10000
    said = rope_parameters(header("stablelm", rope__freq_base=5e5, rope__dimension_count=16), config)
    assert said["rope_theta"] == 5e5
    assert said["partial_rotary_factor"] == 0.25
    config = llama_config(rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert rope_parameters(header(rope__freq_base=None), config)["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope__scaling__type": "ntk"}, r"rope\.scaling\.type = ntk"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 0.5}, r"rope\.scaling\.factor = 0\.5"),
        ({"rope__scaling__attn_factor": 0.0}, r"rope\.scaling\.attn_factor = 0"),
        ({"rope__freq_base": -1.0}, r"rope\.freq_base = -1"),
        ({"rope__freq_base": float("nan")}, r"rope\.freq_base = nan"),
        ({"rope__scaling__yarn_log_multiplier": 0.1}, r"yarn_log_multiplier = 0\.1"),
        ({"rope__scaling__yarn_ext_factor": 1.0}, r"yarn_ext_factor = 1\.0"),
        ({"rope__scaling__type": "yarn", "rope__scaling__yarn_ext_factor": 0.0}, r"yarn_ext_factor = 0\.0"),
        ({"rope__scaling__type": "yarn", "rope__scaling__yarn_attn_factor": 1.0}, r"yarn_attn_factor = 1\.0"),
        ({"rope__scaling__alpha": 1000.0}, r"alpha = 1000"),
        ({"rope__scaling__of_tomorrow": 1.0}, r"of_tomorrow = 1\.0"),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, r"longrope .*no lists"),
        ({"rope__freq_base_swa": 5.0}, r"rope\.freq_base_swa"),
        ({"rope__dimension_count": 48}, r"rope\.dimension_count = 48"),
        ({"rope__scaling__factor": 2.0, "context_length": 0}, r"no context_length"),
    ],
)
def test_what_cant_be_said_is_refused_by_name(fields, named):
    with pytest.raises(LongEvalError, match=named) as caught:
        rope_parameters(header(**fields), llama_config())
    assert caught.value.problem.startswith("--model m.gguf: ")
    assert "original model" in caught.value.remedy


@pytest.mark.parametrize(
    "fields",
    [
        {"rope__scaling__finetuned": True},
        {"rope__scaling__yarn_log_multiplier": 0.0, "rope__scaling__yarn_ext_factor": -1.0},
        {"rope__scaling__yarn_attn_factor": 1.0, "rope__scaling__alpha": 0.0},
        {"rope__scaling__factor": 1.0, "rope__scaling__type": "yarn"},
        {"rope__freq_base_swa": 700.0, "rope__dimension_count": 32},
    ],
)
def test_what_changes_nothing_is_plain_rope(fields):
    config = llama_config()
    assert rope_parameters(header(**fields), config) == {"rope_type": "default", "rope_theta": 700.0}
    assert config.rope_parameters["rope_theta"] == 10000.0  # untouched


@pytest.mark.parametrize(
    ("fields", "tensors", "named"),
    [
        ({}, {"rope_freqs.weight": DIVISORS[:8]}, r"rope_freqs\.weight .*shape \(8,\).* 16 pairs"),
        ({}, {"rope_freqs.weight": 0 * DIVISORS}, r"rope_freqs\.weight .*positive"),
        ({}, {"rope_factors_long.weight": DIVISORS}, r"rope_factors_long\.weight .*a short and a long one"),
        ({}, FREQS | LISTS, r"one list for all contexts"),
        ({}, {"blk.0.rope_freqs.weight": DIVISORS}, r"blk\.0\.rope_freqs\.weight"),
        (YARN, FREQS, r"yarn scaling with lists"),
        (LONGROPE | {"rope.scaling.factor": 2.0}, LISTS, r"longrope scaling with lists"),
    ],
)
def test_lists_that_cant_be_said_are_refused_by_name(fields, tensors, named, tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", fields, tensors)
    with pytest.raises(LongEvalError, match=named):
        rope_parameters(read_header(str(path)), llama_config())


def test_lists_of_ones_are_no_scaling(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": np.ones(16, dtype=np.float32)})
    assert read_scaling(read_header(str(path)), 16).changes_nothing


def test_by_layer_type_only_the_global_layers_are_scaled(tmp_path):
    config = Gemma3TextConfig(num_hidden_layers=6)
    assert rope_parameters(header("gemma3", rope__scaling__factor=8.0, rope__freq_base_swa=5000.0), config) == {
        "full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }
    path = write_gemma3(tmp_path / "tiny.gguf", tensors=FREQS)
    with pytest.raises(LongEvalError, match=r"rope_freqs\.weight .*rotate by layer type"):
        rope_parameters(read_header(str(path)), Gemma3TextConfig(num_hidden_layers=6, head_dim=32))


def test_scaling_of_a_family_that_has_one_of_its_own():
    config = llama_config(rope_parameters={"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0})
    assert rope_parameters(header(), config) == {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}
    with pytest.raises(LongEvalError, match="linear scaling already"):
        rope_parameters(header(rope__scaling__factor=3.0), config)


def test_families_without_rope():
    assert rope_parameters(header("gpt2"), GPT2Config()) is None
    with pytest.raises(LongEvalError, match=r"gpt2\.rope\.scaling\.type .*no RoPE in gpt2 models"):
        rope_parameters(header("gpt2", rope__scaling__type="linear"), GPT2Config())
