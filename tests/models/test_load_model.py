from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch

from longeval.errors import LongEvalError
from longeval.models import weights
from longeval.models.load import check_weights, load_config, load_generation_settings, load_model, load_tokenizer
from longeval.models.resolve import resolve


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_dtype_is_set_at_loading_and_spares_the_frequencies(llama):
    model = load_model(resolve(str(llama)), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_weights_are_those_of_the_file(llama):
    from safetensors.torch import load_file

    model = load_model(resolve(str(llama)), dtype="float32", device="cpu", attn="eager")
    stored = load_file(llama / "model.safetensors")
    assert torch.equal(
        model.state_dict()["model.layers.1.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"]
    )
    assert model.config._attn_implementation == "eager"


def test_quiet_and_restored(llama, capfd):
    from transformers.utils import logging

    logging.set_verbosity(logging.WARNING)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(resolve(str(llama)), dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_missing_weights_are_not_replaced_by_random_ones(llama):
    edit_config(llama, num_hidden_layers=3)
    with pytest.raises(LongEvalError, match=r"weights are missing .*layers.2"):
        load_model(resolve(str(llama)), dtype="float32", device="cpu")


def test_weights_of_another_shape(llama):
    edit_config(llama, intermediate_size=128)
    with pytest.raises(LongEvalError, match=r"--model .*llama"):
        load_model(resolve(str(llama)), dtype="float32", device="cpu")


def test_remote_code_only_by_flag(llama):
    edit_config(llama, model_type="homemade", auto_map={"AutoConfig": "configuration_homemade.HomemadeConfig"})
    with pytest.raises(LongEvalError, match="runs Python code that comes with the model") as caught:
        load_config(resolve(str(llama)))
    assert "--trust-remote-code" in caught.value.remedy
    (llama / "configuration_homemade.py").write_text(
        "from transformers import LlamaConfig\nclass HomemadeConfig(LlamaConfig):\n    model_type = 'homemade'\n"
    )
    config = load_config(resolve(str(llama)), trust_remote_code=True)
    assert type(config).__name__ == "HomemadeConfig"


def test_auto_map_of_a_type_that_transformers_has_needs_no_flag(llama):
    edit_config(llama, auto_map={"AutoConfig": "configuration_homemade.HomemadeConfig"})
    assert type(load_config(resolve(str(llama)))).__name__ == "LlamaConfig"


def test_unknown_model_type(llama):
    edit_config(llama, model_type="frobnicate")
    with pytest.raises(LongEvalError, match="doesn't know model type 'frobnicate'"):
        load_config(resolve(str(llama)))


def test_config_with_a_field_of_another_type(llama):
    edit_config(llama, hidden_size="wide")
    with pytest.raises(LongEvalError, match=r"its config can't be loaded .*hidden_size"):
        load_config(resolve(str(llama)))


def test_model_that_is_no_causal_language_model(llama):
    edit_config(llama, model_type="t5")
    with pytest.raises(LongEvalError, match="can't be loaded"):
        load_model(resolve(str(llama)), dtype="float32", device="cpu")


def test_tokenizer_and_its_absence(llama):
    assert load_tokenizer(resolve(str(llama)))("a b").input_ids == [1, 2]
    os.remove(llama / "tokenizer.json")
    os.remove(llama / "tokenizer_config.json")
    with pytest.raises(LongEvalError, match="its tokenizer can't be loaded"):
        load_tokenizer(resolve(str(llama)))


def test_unknown_device_map_and_attention(llama):
    with pytest.raises(LongEvalError, match=r"--device-map balance: unknown. Did you mean balanced"):
        load_model(resolve(str(llama)), dtype="float32", device="cpu", device_map="balance")
    with pytest.raises(LongEvalError, match=r"--attn sdpaa: unknown. Did you mean sdpa"):
        load_model(resolve(str(llama)), dtype="float32", device="cpu", attn="sdpaa")


@pytest.mark.skipif(importlib.util.find_spec("optimum") is not None, reason="then it would load")
def test_a_quantised_model_is_not_asked_to_be_safetensors(llama):
    """It is already; what is missing is the package of its method."""
    edit_config(llama, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    with pytest.raises(LongEvalError, match=r"can't be loaded .*optimum") as caught:
        load_model(resolve(str(llama)), dtype="float32", device="cpu")
    assert "quantised (gptq)" in caught.value.remedy and "safetensors" not in caught.value.remedy


@pytest.mark.parametrize("attn", ["flash_attention_2", "nonsense", 7])
def test_attention_in_the_config_decides_nothing(llama, attn):
    edit_config(llama, _attn_implementation=attn)
    assert load_model(resolve(str(llama)), dtype="float32", device="cpu").config._attn_implementation == "sdpa"
    asked = load_model(resolve(str(llama)), dtype="float32", device="cpu", attn="eager")
    assert asked.config._attn_implementation == "eager"


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["fp32", "nn", 7, ["float16"], "float16"])
def test_dtype_in_the_config_decides_nothing(llama, key, value):
    config = json.loads((llama / "config.json").read_text())
    config.pop("dtype")
    (llama / "config.json").write_text(json.dumps(config | {key: value}))
    model = load_model(resolve(str(llama)), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert load_tokenizer(resolve(str(llama)))("a b").input_ids == [1, 2]


NO_OBJECTS = ["", "[1]", "3", "null", '"x"', "[" * 100_000, "\ufeff{}", '{"a": ']


@pytest.mark.parametrize("content", NO_OBJECTS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_damaged_tokenizer_files_are_named(llama, name, content):
    (llama / name).write_text(content)
    with pytest.raises(LongEvalError, match=f"--model .*llama: {name} is not") as caught:
        load_tokenizer(resolve(str(llama)))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_damaged_generation_settings_are_named(llama, content):
    ref = resolve(str(llama))
    config = load_config(ref)
    (llama / "generation_config.json").write_text(content)
    with pytest.raises(LongEvalError, match=r"--model .*llama: generation_config\.json is not"):
        load_generation_settings(ref, config)
    (llama / "generation_config.json").unlink()
    assert load_generation_settings(ref, config).eos_token_id == config.eos_token_id


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
    path = llama / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    ref = resolve(str(llama))
    with pytest.raises(LongEvalError, match=r"--model .*llama"):
        load_generation_settings(ref, load_config(ref))
        load_tokenizer(ref)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 3}, "hidden size .64. is not a multiple of the number of attention heads .3."),
        ({"layer_types": ["full_attention"]}, "must be equal to the number of `layer_types"),
        ({"num_labels": 10**12}, "num_labels"),
        ({"model_type": ["llama"]}, "model type"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ({"configuration_files": ["config.4.0.json"]}, "configuration_files"),
    ],
)
def test_impossible_configs_are_told_with_the_reason(llama, fields, reason):
    edit_config(llama, **fields)
    with pytest.raises(LongEvalError, match=rf"--model .*llama: .*{reason}"):
        load_config(resolve(str(llama)))


def test_bugs_of_our_own_keep_their_traceback(llama, monkeypatch):
    monkeypatch.setattr("longeval.models.load.check_complete", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_model(resolve(str(llama)), dtype="float32", device="cpu")


def test_bugs_of_our_own_in_the_midst_of_reading_keep_their_traceback(llama, monkeypatch):
    monkeypatch.setattr("longeval.models.weights.weight_files", lambda _: None)
    with pytest.raises(TypeError):
        load_model(resolve(str(llama)), dtype="float32", device="cpu")


def test_other_json_beside_a_model_is_no_matter_of_its(llama):
    (llama / "modules.json").write_text("[]")  # sentence-transformers
    edit_config(llama, hidden_size="wide")
    with pytest.raises(LongEvalError, match=r"its config can't be loaded .*hidden_size"):
        load_config(resolve(str(llama)))


def test_weights_are_compared_once_until_a_file_changes(llama, monkeypatch):
    compared = []
    real = weights._compare
    monkeypatch.setattr(weights, "_compare", lambda *arguments: (compared.append(arguments), real(*arguments)))
    ref = resolve(str(llama))
    assert check_weights(ref, load_config(ref))
    load_model(ref, dtype="float32", device="cpu")
    assert len(compared) == 1
    edit_config(llama, max_position_embeddings=256)
    load_model(ref, dtype="float32", device="cpu")
    assert len(compared) == 2
    os.utime(llama / "model.safetensors")
    load_model(ref, dtype="float32", device="cpu")
    assert len(compared) == 3
    edit_config(llama, num_hidden_layers=1)
    for _ in range(2):
        with pytest.raises(LongEvalError, match="unexpected"):
            load_model(ref, dtype="float32", device="cpu")
