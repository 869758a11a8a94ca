from __future__ import annotations

import pytest
import torch
from test_gguf_rope import BY_TYPE, header, two_hundred_tokens
from tiny_gguf import write_gemma3, write_llama
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, Phi3Config

from longeval.errors import LongEvalError
from longeval.models.files import local_folder
from longeval.models.gguf.config import adds_bos, complete_config
from longeval.models.gguf.header import GgufHeader
from longeval.models.load import load_config, load_model, load_tokenizer
from longeval.models.prepare import prepare
from longeval.models.resolve import resolve

LLAMA_CPP = {
    "every third layer sees all": ({"attention.sliding_window_pattern": 3}, (-1.23565, 1.63281, -3.15288)),
    "no sliding window": ({"attention.sliding_window": None}, (-1.73157, -0.82106, -3.83181)),
    "soft cap": ({"final_logit_softcapping": 2.0}, (-0.52755, 1.69857, -1.94737)),
}
"""Metadata of a tiny Gemma 3, and its first three logits after 200 tokens as llama.cpp has them."""


@pytest.mark.parametrize("case", LLAMA_CPP)
def test_gemmas_logits_are_those_of_llama_cpp(case, tmp_path):
    fields, expected = LLAMA_CPP[case]
    path = write_gemma3(tmp_path / "tiny.gguf", BY_TYPE | fields)
    model = load_model(resolve(str(path)), dtype="float32", device="cpu")
    with torch.no_grad():
        logits = model(two_hundred_tokens()).logits[0, -1, :3]
    assert logits.tolist() == pytest.approx(expected, abs=5e-3)


def test_gemma3s_layers():
    sliding, full = "sliding_attention", "full_attention"
    config = Gemma3TextConfig(num_hidden_layers=7)

    def layers(**fields):
        return complete_config(header("gemma3", attention__sliding_window=8, **fields), config).layer_types

    assert layers() == [sliding] * 5 + [full, sliding]
    assert layers(attention__sliding_window_pattern=2) == [sliding, full] * 3 + [sliding]
    assert layers(attention__sliding_window_pattern=[True, False] + 5 * [True]) == [sliding, full] + 5 * [sliding]
    assert layers(attention__sliding_window_pattern=0) == [sliding] * 7
    assert complete_config(header("gemma3"), config).layer_types == [full] * 7
    gemma2 = Gemma2Config(num_hidden_layers=3)
    assert complete_config(header("gemma2"), gemma2).layer_types == [sliding, full, sliding]


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
    assert complete_config(header(architecture), given).query_pre_attn_scalar == divisor


def test_gemmas_soft_caps():
    config = Gemma2Config(num_hidden_layers=2)
    stated = complete_config(header("gemma2", attn_logit_softcapping=20.0, final_logit_softcapping=0.0), config)
    assert (stated.attn_logit_softcapping, stated.final_logit_softcapping) == (20.0, None)
    silent = complete_config(header("gemma2"), config)
    assert (silent.attn_logit_softcapping, silent.final_logit_softcapping) == (50.0, 30.0)


def test_phi3s_length_before_scaling_is_not_taken_for_granted():
    config = Phi3Config(hidden_size=64, num_attention_heads=2, pad_token_id=0)
    assert config.original_max_position_embeddings == 4096
    assert complete_config(header("phi3"), config).original_max_position_embeddings == 256
    stated = complete_config(header("phi3", rope__scaling__original_context_length=64), config)
    assert stated.original_max_position_embeddings == 64


def test_a_config_is_completed_not_changed():
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, attention_dropout=0.25)
    before = config.to_dict()
    completed = complete_config(header(rope__scaling__factor=2.0), config)
    assert config.to_dict() == before
    assert completed.rope_parameters == {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}
    assert completed.attention_dropout == 0.25


def test_an_impossible_setting_is_a_message(tmp_path):
    path = write_gemma3(tmp_path / "tiny.gguf", {"attention.sliding_window_pattern": [True, False]})
    with pytest.raises(LongEvalError, match="can't convert this GGUF"):
        local_folder(resolve(str(path)))


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
    stated = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    assert adds_bos(GgufHeader(path="m.gguf", fields=stated, tensors={})) is expected


def test_a_word_is_no_yes_or_no():
    with pytest.raises(LongEvalError, match="add_bos_token = 'false'"):
        adds_bos(GgufHeader(path="m.gguf", fields={"tokenizer.ggml.add_bos_token": "false"}, tensors={}))


@pytest.mark.parametrize("write", [write_llama, write_gemma3])
@pytest.mark.parametrize("stated", [True, False])
def test_bos_is_there_when_the_file_says_so(write, stated, tmp_path):
    path = write(tmp_path / "tiny.gguf", {"tokenizer.ggml.add_bos_token": stated})
    tokenizer = load_tokenizer(resolve(str(path)))
    ids = tokenizer("ab").input_ids
    assert ids == [2] * stated + tokenizer("ab", add_special_tokens=False).input_ids
    assert len(ids) > stated
    model = prepare(
        str(path),
        revision=None,
        native=None,
        bos=None,
        dtype="float32",
        device="cpu",
        device_map=None,
        attn=None,
        trust_remote_code=False,
    )
    assert model.bos is stated
    assert load_config(model.ref).bos_token_id == 2
