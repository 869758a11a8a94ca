"""Loading a model's folder: what the flags decide and the configuration doesn't, and what damaged files lead to."""

from __future__ import annotations

import importlib.util
import os
import re

import pytest
import torch
from folders import config_of, edit_config, edit_json, loaded, tokenizer_of
from safetensors.torch import load_file
from transformers.utils import logging

from longeval.errors import LongEvalError
from longeval.models import weights
from longeval.models.load import check_weights, load_config, load_generation_settings
from longeval.models.resolve import resolve

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["fp32", 7, ["float16"], "float16"])
def test_the_flag_decides_the_dtype_and_spares_the_frequencies(llama, key, value):
    edit_config(llama, **({"dtype": None} | {key: value}))
    model = loaded(llama, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert tokenizer_of(llama)("a").input_ids


@pytest.mark.parametrize("attn", ["flash_attention_2", "nonsense", 7])
def test_the_flag_decides_the_attention(llama, attn):
    edit_config(llama, _attn_implementation=attn)
    assert loaded(llama).config._attn_implementation == "sdpa"
    assert loaded(llama, attn="eager").config._attn_implementation == "eager"


def test_weights_are_those_of_the_file_and_loading_is_quiet(llama, capfd):
    logging.set_verbosity(logging.WARNING)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = loaded(llama)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert torch.equal(model.state_dict()[WEIGHT], load_file(llama / "model.safetensors")[WEIGHT])
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_unknown_device_map_and_attention(llama):
    for flag, options in (("--device-map balance", {"device_map": "balance"}), ("--attn sdpaa", {"attn": "sdpaa"})):
        with pytest.raises(LongEvalError, match=f"{flag}: unknown"):
            loaded(llama, **options)


def test_remote_code_only_by_flag(llama):
    edit_config(llama, auto_map={"AutoConfig": "configuration_homemade.HomemadeConfig"})
    assert type(config_of(llama)).__name__ == "LlamaConfig"  # a type that transformers has
    edit_config(llama, model_type="homemade")
    ran = llama / "ran"
    (llama / "configuration_homemade.py").write_text(
        f"from transformers import LlamaConfig\nopen({str(ran)!r}, 'w')\n"
        "class HomemadeConfig(LlamaConfig):\n    model_type = 'homemade'\n"
    )
    with pytest.raises(LongEvalError, match=r"homemade .*Python code") as caught:
        config_of(llama)
    assert "--trust-remote-code" in caught.value.remedy and "HomemadeConfig" in caught.value.remedy
    assert not ran.exists()
    assert type(load_config(resolve(str(llama)), trust_remote_code=True)).__name__ == "HomemadeConfig"
    assert ran.exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 3}, "hidden size .32. .* attention heads .3."),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"num_labels": 10**12}, "num_labels"),
        ({"model_type": ["llama"]}, "model type"),
        ({"model_type": "frobnicate"}, "'frobnicate'"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ({"configuration_files": ["config.4.0.json"]}, "configuration_files"),
        ({"text_config": {"a": 1}}, "text_config, text_encoder"),
        ({"decoder": 3}, "text_config, text_encoder"),
        ({"decoder": {"a": 1}, "generator": "x"}, "decoder"),
    ],
)
def test_impossible_configs_are_told_with_the_reason(llama, fields, reason):
    (llama / "modules.json").write_text("[]")  # sentence-transformers', and no matter of the model's
    edit_config(llama, **fields)
    with pytest.raises(LongEvalError, match=rf"--model .*llama: .*{reason}"):
        config_of(llama)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_hidden_layers": 3}, r"missing .*layers\.2"),  # no random weights instead
        ({"intermediate_size": 128}, "mismatched"),
        ({"model_type": "t5"}, "can't be loaded"),
    ],
)
def test_models_that_the_weights_do_not_make(llama, fields, reason):
    edit_config(llama, **fields)
    with pytest.raises(LongEvalError, match=rf"--model .*llama: .*{reason}"):
        loaded(llama)


@pytest.mark.skipif(importlib.util.find_spec("optimum") is not None, reason="then it would load")
def test_a_quantised_model_is_not_asked_to_be_safetensors(llama):
    """It is already; what is missing is the package of its method."""
    edit_config(llama, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    with pytest.raises(LongEvalError, match="optimum") as caught:
        loaded(llama)
    assert "gptq" in caught.value.remedy and "safetensors" not in caught.value.remedy


def generation_settings_of(folder):
    ref = resolve(str(folder))
    return load_generation_settings(ref, load_config(ref))


READERS = {
    "tokenizer.json": tokenizer_of,
    "tokenizer_config.json": tokenizer_of,
    "special_tokens_map.json": tokenizer_of,
    "generation_config.json": generation_settings_of,
}


@pytest.mark.parametrize("content", ["", "[1]", "null", "[" * 100_000, "\ufeff{}", '{"a": '])
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_of_tokenizer_and_generation_are_named(llama, name, content):
    (llama / name).write_text(content)
    with pytest.raises(LongEvalError, match=f"--model .*llama: {re.escape(name)} is not") as caught:
        READERS[name](llama)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tokenizer_config.json", {"model_max_length": "long"}),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}),
        ("generation_config.json", {"eos_token_id": "</s>"}),
        ("generation_config.json", {"max_new_tokens": "many"}),
    ],
)
def test_impossible_settings_of_tokenizer_and_generation(llama, name, fields):
    edit_json(llama / name, **fields)
    with pytest.raises(LongEvalError, match=r"--model .*llama"):
        READERS[name](llama)


def test_missing_files_of_tokenizer_and_generation(llama):
    os.remove(llama / "generation_config.json")
    assert generation_settings_of(llama).eos_token_id == config_of(llama).eos_token_id
    os.remove(llama / "tokenizer.json")
    os.remove(llama / "tokenizer_config.json")
    with pytest.raises(LongEvalError, match="tokenizer"):
        tokenizer_of(llama)


@pytest.mark.parametrize(
    ("function", "replacement", "error"),
    [
        ("longeval.models.load.check_complete", lambda *_, **__: 1 / 0, ZeroDivisionError),
        ("longeval.models.weights.weight_files", lambda _: None, TypeError),  # in the midst of reading
    ],
)
def test_bugs_of_our_own_keep_their_traceback(llama, monkeypatch, function, replacement, error):
    monkeypatch.setattr(function, replacement)
    with pytest.raises(error):
        loaded(llama)


def test_weights_are_compared_once_until_a_file_changes(llama, monkeypatch):
    compared = []
    real = weights._compare
    monkeypatch.setattr(weights, "_compare", lambda *arguments: (compared.append(arguments), real(*arguments)))
    assert check_weights(resolve(str(llama)), config_of(llama))
    loaded(llama)
    assert len(compared) == 1
    edit_config(llama, max_position_embeddings=256)
    loaded(llama)
    assert len(compared) == 2
    os.utime(llama / "model.safetensors")
    loaded(llama)
    assert len(compared) == 3
    edit_config(llama, num_hidden_layers=1)
    for _ in range(2):
        with pytest.raises(LongEvalError, match="unexpected"):
            loaded(llama)
