"""Files that hold other weights than the configuration describes, told from their headers before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from longeval.errors import LongEvalError
from longeval.models.load import check_weights, load_config, load_model
from longeval.models.resolve import resolve
from longeval.models.weights import zero_biases

LAYER = "model.layers.1.self_attn.q_proj.weight"


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def check(folder):
    ref = resolve(str(folder))
    check_weights(ref, load_config(ref))


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
    edit_weights(llama, lambda weights: weights.update({name: torch.ones(64)}))
    for refuse in (check, lambda folder: load_model(resolve(str(folder)), dtype="float32", device="cpu")):
        with pytest.raises(LongEvalError, match=f"1 weight is unexpected, .*{name}") as caught:
            refuse(llama)
        assert str(llama) in caught.value.problem


def test_many_are_counted_and_the_first_are_named(llama):
    extra = {f"model.layers.{layer}.self_attn.o_proj.bias": torch.ones(64) for layer in range(20)}
    edit_weights(llama, lambda weights: weights.update(extra))
    with pytest.raises(LongEvalError, match=r"20 weights are unexpected.*layers\.0\.self_attn\.o_proj\.bias.*…"):
        check(llama)


def test_biases_that_are_configured_belong_to_the_model(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32, attention_bias=True
    )
    folder = save(tmp_path / "biased", config)
    check(folder)
    edit_config(folder, attention_bias=False)
    with pytest.raises(LongEvalError, match="4 weights are unexpected"):
        check(folder)


def test_weights_that_are_missing_or_of_another_shape(llama):
    edit_config(llama, num_key_value_heads=2)
    with pytest.raises(LongEvalError, match="4 weights are mismatched"):
        check(llama)
    edit_config(llama, num_key_value_heads=1)
    edit_weights(llama, lambda weights: weights.pop(LAYER))
    with pytest.raises(LongEvalError, match=f"1 weight is missing .*{LAYER}"):
        check(llama)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool])
def test_integers_are_no_weights(llama, dtype):
    edit_weights(llama, lambda weights: weights.update({LAYER: weights[LAYER].to(dtype)}))
    with pytest.raises(LongEvalError, match=f"{LAYER} is stored as integers"):
        check(llama)


def test_old_llama_files_keep_their_frequencies(llama):
    edit_weights(
        llama, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    )
    check(llama)


def test_masks_of_gpt_neox_are_told_from_biases(tmp_path):
    config = transformers.GPTNeoXConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    folder = save(tmp_path / "neox", config)
    masks = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    }
    edit_weights(folder, lambda weights: weights.update(masks))
    check(folder)
    edit_weights(folder, lambda weights: weights.update({"gpt_neox.layers.0.attention.bias": torch.ones(32)}))
    with pytest.raises(LongEvalError, match=r"1 weight is unexpected, .*attention\.bias"):
        check(folder)


def test_layers_that_predict_further_tokens_are_told_from_the_models_own(tmp_path):
    config = transformers.Glm4MoeConfig(
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=1,
        first_k_dense_replace=0,
        vocab_size=32,
        pad_token_id=0,
    )
    folder = save(tmp_path / "glm", config)
    check(folder)
    edit_weights(folder, lambda weights: weights.update({"model.layers.1.input_layernorm.weight": torch.ones(32)}))
    with pytest.raises(LongEvalError, match=r"model\.layers\.1\.input_layernorm"):
        check(folder)
    edit_weights(folder, lambda weights: weights.update({"model.layers.1.eh_proj.weight": torch.ones(32, 64)}))
    check(folder)
    # in a layer of the model's own it makes nothing harmless
    edit_weights(folder, lambda weights: weights.update({"model.layers.0.eh_proj.weight": torch.ones(32, 64)}))
    with pytest.raises(LongEvalError, match=r"model\.layers\.0\.eh_proj"):
        check(folder)
    edit_weights(folder, lambda weights: weights.pop("model.layers.0.eh_proj.weight"))
    # transformers never misses what is called so in this family
    edit_weights(folder, lambda weights: weights.update({"model.layers.46.mlp.up_proj.weight": torch.ones(32)}))
    with pytest.raises(LongEvalError, match=r"model\.layers\.46"):
        check(folder)


def test_an_expert_too_few(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=4, vocab_size=32)
    folder = save(tmp_path / "mixtral", config)
    check(folder)
    edit_config(folder, num_local_experts=3)
    with pytest.raises(LongEvalError, match="weights are mismatched"):
        check(folder)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32, tie_word_embeddings=True
    )
    folder = save(tmp_path / "tied", config)
    check(folder)
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].to(torch.float64)}))
    check(folder)
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"] + 1}))
    with pytest.raises(LongEvalError, match=r"lm_head\.weight is model\.embed_tokens\.weight \(tie_word_embeddings\)"):
        check(folder)


def test_one_weight_under_two_names_or_in_two_files(llama):
    weights = load_file(llama / "model.safetensors")
    edit_weights(llama, lambda weights: weights.update({LAYER.removeprefix("model."): weights[LAYER] + 1}))
    with pytest.raises(LongEvalError, match="are the same weight"):
        check(llama)
    (llama / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {key: names[position % 2] for position, key in enumerate(weights)}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        save_file({key: weights[key] for key in weights if index["weight_map"][key] == name}, llama / name)
    check(llama)
    save_file(weights, llama / names[0])
    with pytest.raises(LongEvalError, match="is stored twice"):
        check(llama)


def test_an_adapter_is_no_part_of_the_weights(llama, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = shutil.copytree(llama, tmp_path / name)
        (folder / name).write_text("{}")
        with pytest.raises(LongEvalError, match=name) as caught:
            load_model(resolve(str(folder)), dtype="float32", device="cpu")
        assert "merge_and_unload" in caught.value.remedy


def test_more_layers_than_weights_are_refused_before_they_are_built(llama, monkeypatch):
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", lambda *_, **__: pytest.fail("was built"))
    edit_config(llama, num_hidden_layers=9000)
    with pytest.raises(LongEvalError, match="9000 layers"):
        check(llama)
    for layers in (1_000_000, 10**30):
        edit_config(llama, num_hidden_layers=layers)
        with pytest.raises(LongEvalError, match=f"num_hidden_layers in its config.json is {layers}"):
            check(llama)


def test_a_language_model_leaves_out_the_eyes_of_a_larger_model(llama, monkeypatch):
    """AutoModelForCausalLM makes of this family's configuration the language model alone, and tells what is left."""
    monkeypatch.setattr(transformers.Qwen3_5ForCausalLM, "_keys_to_ignore_on_load_unexpected", None)
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 1, "vocab_size": 32, "layer_types": ["full_attention"], "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip
    save(llama, transformers.Qwen3_5TextConfig(**text))
    config = transformers.Qwen3_5Config(text_config=text, vision_config={"depth": 1})
    (llama / "config.json").write_text(json.dumps(config.to_dict()))

    def rename(weights):
        for key in [key for key in weights if key.startswith("model.")]:
            weights[key.replace("model.", "model.language_model.", 1)] = weights.pop(key)
        weights["model.visual.merger.norm.weight"] = torch.ones(32)

    edit_weights(llama, rename)
    stored = load_file(llama / "model.safetensors")
    model = load_model(resolve(str(llama)), dtype="float32", device="cpu")
    assert torch.equal(model.get_input_embeddings().weight, stored["model.language_model.embed_tokens.weight"])
    edit_weights(llama, lambda weights: weights.update({"model.nothing.weight": torch.ones(32)}))
    with pytest.raises(LongEvalError, match=r"unexpected, .*model\.nothing"):
        load_model(resolve(str(llama)), dtype="float32", device="cpu")


def test_biases_of_zeros_in_gptq_files(llama):
    """Older AutoGPTQ gave every layer a bias; only one that is zero may be left out."""
    zero, real = "model.layers.0.mlp.up_proj.bias", "model.layers.1.mlp.up_proj.bias"
    edit_weights(llama, lambda weights: weights.update({zero: torch.zeros(96), real: torch.ones(96)}))
    found = {zero, real, "model.layers.0.mlp.up_proj.weight"}
    assert zero_biases(str(llama), found, "gptq") == {zero}
    assert zero_biases(str(llama), found, "awq") == zero_biases(str(llama), found, None) == set()


CASES = Path(__file__).parents[3] / "shared" / "cases" / "models"


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases that failed before are not here")
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("bias_hidden", r"8 weights are unexpected.*self_attn\.k_proj\.bias"),
        ("lay4as2", r"18 weights are unexpected.*layers\.2\."),
        ("q_fp8_nocfg", r"14 weights are unexpected.*weight_scale_inv"),
        ("f_adapter", r"adapter_config\.json"),
        ("bias_true", None),
        ("q_fp8", None),
        ("base", None),
    ],
)
def test_cases_that_failed_before(name, found):
    if found is None:
        check(CASES / name)
        return
    with pytest.raises(LongEvalError, match=found):
        check(CASES / name)
