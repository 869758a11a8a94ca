from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch

from longeval.errors import LongEvalError
from longeval.models.load import load_config, load_model, load_tokenizer, resolve


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
