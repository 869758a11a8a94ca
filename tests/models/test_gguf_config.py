"""What the configuration of a GGUF file says beside RoPE: layers, soft caps, and whether BOS is put in front."""

from __future__ import annotations

import pytest
from folders import config_of, prepared, tokenizer_of
from tiny_gguf import header, write_gemma3, write_llama
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, Phi3Config

from longeval.errors import LongEvalError
from longeval.models.gguf.config import adds_bos, complete_config
from longeval.models.gguf.header import GgufHeader

SLIDING, FULL = "sliding_attention", "full_attention"
PATTERN = "attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({}, [SLIDING] * 5 + [FULL, SLIDING]),
        ({PATTERN: 2}, [SLIDING, FULL] * 3 + [SLIDING]),
        ({PATTERN: [True, False] + 5 * [True]}, [SLIDING, FULL] + 5 * [SLIDING]),
        ({PATTERN: 0}, [SLIDING] * 7),
        ({"attention.sliding_window": None}, [FULL] * 7),
    ],
)
def test_gemma3s_layers(fields, layers):
    stated = header({"attention.sliding_window": 8} | fields, "gemma3")
    assert complete_config(stated, Gemma3TextConfig(num_hidden_layers=7)).layer_types == layers


@pytest.mark.parametrize(
    ("architecture", "config", "num_layers", "divisor"),
    [
        ("gemma3", Gemma3TextConfig, 62, 5376 // 32),  # 27B
        ("gemma3", Gemma3TextConfig, 32, 128),  # of another size, with heads of 128
        ("gemma2", Gemma2Config, 46, 4608 // 32),  # 27B
        ("gemma2", Gemma2Config, 62, 128),
    ],
)
def test_gemmas_logits_are_divided_by_what_its_size_wants(architecture, config, num_layers, divisor):
    hidden = 5376 if architecture == "gemma3" else 4608
    given = config(num_hidden_layers=num_layers, hidden_size=hidden, num_attention_heads=32, head_dim=128)
    assert given.query_pre_attn_scalar == 256
    assert complete_config(header({}, architecture), given).query_pre_attn_scalar == divisor


@pytest.mark.parametrize(
    ("fields", "caps"),
    [({"attn_logit_softcapping": 20.0, "final_logit_softcapping": 0.0}, (20.0, None)), ({}, (50.0, 30.0))],
)
def test_gemma2s_layers_and_soft_caps(fields, caps):
    completed = complete_config(header(fields, "gemma2"), Gemma2Config(num_hidden_layers=3))
    assert (completed.attn_logit_softcapping, completed.final_logit_softcapping) == caps
    assert completed.layer_types == [SLIDING, FULL, SLIDING]


def test_phi3s_length_before_scaling_is_not_taken_for_granted():
    config = Phi3Config(hidden_size=64, num_attention_heads=2, pad_token_id=0)
    assert config.original_max_position_embeddings == 4096
    for fields, length in (({}, 256), ({"rope.scaling.original_context_length": 64}, 64)):
        assert complete_config(header(fields, "phi3"), config).original_max_position_embeddings == length


def test_a_config_is_completed_not_changed():
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, attention_dropout=0.25)
    before = config.to_dict()
    completed = complete_config(header({"rope.scaling.factor": 2.0}), config)
    assert config.to_dict() == before
    assert completed.rope_parameters == {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}
    assert completed.attention_dropout == 0.25


def test_an_impossible_setting_is_a_message(tmp_path):
    with pytest.raises(LongEvalError, match="can't convert"):
        config_of(write_gemma3(tmp_path / "tiny.gguf", {PATTERN: [True, False]}))


def header_of_tokenizer(**fields):
    return GgufHeader(path="m.gguf", fields={f"tokenizer.ggml.{key}": fields[key] for key in fields}, tensors={})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "llama", "add_bos_token": False}, False),
        ({"model": "gpt2", "add_bos_token": True}, True),
        ({"model": "llama"}, True),
        ({"model": "gpt2", "pre": "llama-bpe"}, True),
        ({"model": "gpt2", "pre": "smollm"}, False),
        ({"model": "gpt2"}, False),
        ({}, False),
    ],
)
def test_who_puts_bos_before_a_text(fields, expected):
    assert adds_bos(header_of_tokenizer(**fields)) is expected


def test_a_word_is_no_yes_or_no():
    with pytest.raises(LongEvalError, match="add_bos_token = 'false'"):
        adds_bos(header_of_tokenizer(add_bos_token="false"))


@pytest.mark.parametrize("write", [write_llama, write_gemma3])
@pytest.mark.parametrize("stated", [True, False])
def test_bos_is_there_when_the_file_says_so(write, stated, tmp_path):
    path = write(tmp_path / "tiny.gguf", {"tokenizer.ggml.add_bos_token": stated})
    tokenizer = tokenizer_of(path)
    text = tokenizer("ab", add_special_tokens=False).input_ids
    assert len(text) > 0 and tokenizer("ab").input_ids == [2] * stated + text
    assert prepared(path).bos is stated
    assert config_of(path).bos_token_id == 2
