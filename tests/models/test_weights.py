"""Files that hold other weights than the configuration describes, told from their headers before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from folders import config_of, edit_config, loaded
from safetensors.torch import load_file, save_file

from longeval.errors import LongEvalError
from longeval.models.load import check_weights
from longeval.models.resolve import resolve
from longeval.models.weights import zero_biases

LAYER = "model.layers.1.self_attn.q_proj.weight"
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def put(folder, name, tensor=None):
    tensor = torch.ones(32) if tensor is None else tensor
    edit_weights(folder, lambda weights: weights.update({name: tensor}))


def check(folder):
    check_weights(resolve(str(folder)), config_of(folder))


def refused(folder, said, check=check):
    with pytest.raises(LongEvalError, match=f"--model {folder}: .*{said}"):
        check(folder)


def save(folder, config):
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",  # attention_bias is false
        "model.layers.2.mlp.up_proj.weight",  # there are two layers
        "model.layers.0.self_attn.q_norm.weight",  # of another family
        "model.layers.0.mlp.up_proj.weight_scale_inv",  # no quantisation is configured
        "model.layers.0.self_attn.bias",
        "score.weight",
    ],
)
def test_weights_that_the_model_has_no_place_for(llama, name):
    put(llama, name)
    refused(llama, f"1 weight is unexpected, .*{name}")
    refused(llama, f"1 weight is unexpected, .*{name}", loaded)


def test_many_are_counted_and_the_first_are_named(llama):
    extra = {f"model.layers.{layer}.self_attn.o_proj.bias": torch.ones(32) for layer in range(20)}
    edit_weights(llama, lambda weights: weights.update(extra))
    refused(llama, r"20 weights are unexpected.*layers\.0\.self_attn\.o_proj\.bias.*…")


@pytest.mark.parametrize(
    ("make", "settings", "changes", "said"),
    [
        (transformers.LlamaConfig, {"attention_bias": True}, {"attention_bias": False}, "4 weights are unexpected"),
        (transformers.LlamaConfig, {}, {"num_key_value_heads": 1}, "2 weights are mismatched"),
        (
            transformers.MixtralConfig,
            {"num_key_value_heads": 1, "num_local_experts": 4},
            {"num_local_experts": 3},
            "weights are mismatched",
        ),
    ],
    ids=["biases", "heads", "experts"],
)
def test_weights_that_another_configuration_describes(tmp_path, make, settings, changes, said):
    folder = save(tmp_path / "model", make(**SIZES, **settings))
    check(folder)
    edit_config(folder, **changes)
    refused(folder, said)


def test_a_weight_that_is_missing(llama):
    edit_weights(llama, lambda weights: weights.pop(LAYER))
    refused(llama, f"1 weight is missing .*{LAYER}")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_integers_are_no_weights(llama, dtype):
    put(llama, LAYER, load_file(llama / "model.safetensors")[LAYER].to(dtype))
    refused(llama, LAYER)


def test_old_llama_files_keep_their_frequencies(llama):
    put(llama, "model.layers.0.self_attn.rotary_emb.inv_freq")
    check(llama)


def test_masks_of_gpt_neox_are_told_from_biases(tmp_path):
    folder = save(tmp_path / "neox", transformers.GPTNeoXConfig(**SIZES))
    attention = "gpt_neox.layers.0.attention"
    put(folder, f"{attention}.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8))
    put(folder, f"{attention}.masked_bias", torch.tensor(-1e9))
    put(folder, f"{attention}.rotary_emb.inv_freq")
    check(folder)
    put(folder, f"{attention}.bias")
    refused(folder, r"1 weight is unexpected, .*attention\.bias")


def test_layers_that_predict_further_tokens_are_told_from_the_models_own(tmp_path):
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 1, "first_k_dense_replace": 0}
    config = transformers.Glm4MoeConfig(**SIZES, **experts, num_key_value_heads=1, head_dim=16, pad_token_id=0)
    folder = save(tmp_path / "glm", config)
    check(folder)
    put(folder, "model.layers.1.input_layernorm.weight")
    refused(folder, r"model\.layers\.1\.input_layernorm")
    put(folder, "model.layers.1.eh_proj.weight")
    check(folder)
    put(folder, "model.layers.0.eh_proj.weight")  # in a layer of the model's own it makes nothing harmless
    refused(folder, r"model\.layers\.0\.eh_proj")
    edit_weights(folder, lambda weights: weights.pop("model.layers.0.eh_proj.weight"))
    put(folder, "model.layers.46.mlp.up_proj.weight")  # transformers never misses what is called so in this family
    refused(folder, r"model\.layers\.46")


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    folder = save(tmp_path / "tied", transformers.LlamaConfig(**SIZES, tie_word_embeddings=True))
    check(folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    put(folder, "lm_head.weight", embedding.to(torch.float64))
    check(folder)
    put(folder, "lm_head.weight", embedding + 1)
    refused(folder, r"lm_head\.weight .*tie_word_embeddings")


def test_one_weight_under_two_names_or_in_two_files(llama):
    weights = load_file(llama / "model.safetensors")
    put(llama, LAYER.removeprefix("model."), weights[LAYER] + 1)
    refused(llama, "are the same weight")
    os.remove(llama / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {key: names[position % 2] for position, key in enumerate(weights)}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        save_file({key: weights[key] for key in weights if index["weight_map"][key] == name}, llama / name)
    check(llama)
    save_file(weights, llama / names[0])
    refused(llama, "is stored in two files")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_no_part_of_the_weights(llama, name):
    (llama / name).write_text("{}")
    refused(llama, name, loaded)


def test_more_layers_than_weights_are_refused_before_they_are_built(llama, monkeypatch):
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", lambda *_, **__: pytest.fail("was built"))
    for layers in (9000, 1_000_000, 10**30):
        edit_config(llama, num_hidden_layers=layers)
        refused(llama, str(layers))


def test_a_language_model_leaves_out_the_eyes_of_a_larger_model(llama, monkeypatch):
    """AutoModelForCausalLM makes of this family's configuration the language model alone, and tells what is left."""
    monkeypatch.setattr(transformers.Qwen3_5ForCausalLM, "_keys_to_ignore_on_load_unexpected", None)
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    text = SIZES | linear | {"head_dim": 16, "num_key_value_heads": 1, "layer_types": ["full_attention"]}
    save(llama, transformers.Qwen3_5TextConfig(**text))
    config = transformers.Qwen3_5Config(text_config=text, vision_config={"depth": 1})
    (llama / "config.json").write_text(json.dumps(config.to_dict()))

    def rename(weights):
        for key in [key for key in weights if key.startswith("model.")]:
            weights[key.replace("model.", "model.language_model.", 1)] = weights.pop(key)

    edit_weights(llama, rename)
    put(llama, "model.visual.merger.norm.weight")
    stored = load_file(llama / "model.safetensors")
    model = loaded(llama)
    assert torch.equal(model.get_input_embeddings().weight, stored["model.language_model.embed_tokens.weight"])
    put(llama, "model.nothing.weight")
    refused(llama, r"unexpected, .*model\.nothing", loaded)


def test_biases_of_zeros_in_gptq_files(llama):
    """Older AutoGPTQ gave every layer a bias; only one that is zero may be left out."""
    zero, real = "model.layers.0.mlp.up_proj.bias", "model.layers.1.mlp.up_proj.bias"
    put(llama, zero, torch.zeros(48))
    put(llama, real, torch.ones(48))
    found = {zero, real, "model.layers.0.mlp.up_proj.weight"}
    assert zero_biases(str(llama), found, "gptq") == {zero}
    assert zero_biases(str(llama), found, "awq") == zero_biases(str(llama), found, None) == set()


FP8 = Path(__file__).parents[3] / "shared" / "cases" / "models" / "q_fp8"


@pytest.mark.skipif(not FP8.is_dir(), reason="the case isn't here")
def test_a_model_that_is_quantised_as_its_config_says():
    check(FP8)
