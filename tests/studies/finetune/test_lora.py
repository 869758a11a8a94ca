"""LoRA: what is trained, what merging gives, and what is written."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from studies.finetune.tiny_training import batches, furthest, request, run, tiny

from longeval.errors import LongEvalError
from longeval.studies.finetune.lora import adapt, attention_projections, merged, save_adapter

pytest.importorskip("peft")


def trained(tmp_path, *, dtype=torch.float64, precision="float32", tied=False, **changes):
    asked = request(**({"lora": True} | changes))
    model = adapt(tiny(dtype, tie_word_embeddings=tied), asked)
    log = run(model, asked, tmp_path / "checkpoints", precision=precision)
    return model, log


def test_only_the_adapters_are_trained_and_merging_adds_them(tmp_path):
    model, log = trained(tmp_path, lora_rank=3, lora_alpha=7.5)
    before = dict(tiny(torch.float64).named_parameters())
    adapters = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * 2 * 4  # A and B, layers, q/k/v/o
    prefix = "base_model.model."
    expected = {}
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        a, b = (adapters.get(f"{prefix}{module}.lora_{part}.default.weight") for part in "AB")
        expected[name] = weight if a is None else weight + 7.5 / 3 * b @ a
        if a is not None:
            assert a.shape[0] == 3 and float(b.abs().max()) > 1e-3
    plain = merged(model)
    for name, weight in plain.named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-12, rtol=0), name
    changed = {
        name.split(".")[-2] for name, weight in plain.named_parameters() if not torch.equal(weight, before[name])
    }
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(log.loss) == 3


def test_the_merged_model_computes_what_the_adapted_one_does(tmp_path):
    model, _ = trained(tmp_path, lora_plus=True, lora=False)
    tokens_BT = torch.from_numpy(batches()(0).tokens_BT)
    with torch.no_grad():
        adapted = model(input_ids=tokens_BT).logits
        plain = merged(model)(input_ids=tokens_BT).logits
    assert torch.allclose(adapted, plain, atol=1e-6)
    assert not torch.allclose(plain, tiny(torch.float64)(input_ids=tokens_BT).logits, atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_lora_plus_trains_embeddings_and_norms_whole(tmp_path, tied):
    model, _ = trained(tmp_path, lora_plus=True, lora=False, tied=tied)
    plain, before = merged(model), dict(tiny(torch.float64, tie_word_embeddings=tied).named_parameters())
    changed = {
        name.split(".")[-2] for name, weight in plain.named_parameters() if not torch.equal(weight, before[name])
    }
    norms = {"input_layernorm", "post_attention_layernorm", "norm"}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens"} | norms
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied


def test_a_base_in_bfloat16_has_float32_adapters(tmp_path):
    model, _ = trained(tmp_path, dtype=torch.bfloat16, precision="bfloat16", lora_plus=True, lora=False, lr=1e-6)
    kinds = {name: weight.dtype for name, weight in model.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "lora_" in name or "modules_to_save" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if "base_layer" in name} == {torch.bfloat16}
    assert {weight.dtype for weight in merged(model).parameters()} == {torch.bfloat16}


def test_a_killed_lora_training_goes_on(tmp_path):
    asked = request(lora=True, steps=4, checkpoint_every=2)
    one = adapt(tiny(), asked)
    run(one, asked, tmp_path)
    other = adapt(tiny(), asked, seed=1)  # other adapters at first, which the checkpoint replaces
    told = []
    run(other, asked, tmp_path, told=lambda step: told.append(step.step))
    assert told == [3, 4]
    assert furthest(one, other) == 0
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "step-000002" / "weights.safetensors")
    assert all("lora_" in name for name in weights)


def test_the_first_values_follow_from_the_seed():
    def first(seed):
        return adapt(tiny(), request(lora=True), seed=seed)

    assert furthest(first(0), first(0)) == 0
    assert furthest(first(0), first(1)) > 1e-3


def test_the_adapter_is_what_peft_loads(tmp_path):
    from peft import PeftModel

    model, _ = trained(tmp_path, lora_plus=True, lora=False, dtype=torch.float32)
    save_adapter(model, str(tmp_path / "adapter"), base="owner/base")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.name != "README.md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path / "adapter")
    assert furthest(merged(loaded), merged(model)) < 1e-6


def test_projections_of_other_families_are_found():
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, Phi3Config, PhiConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    expected = {
        GPTNeoXConfig: ["dense", "query_key_value"],
        PhiConfig: ["dense", "k_proj", "q_proj", "v_proj"],
        Phi3Config: ["o_proj", "qkv_proj"],
    }
    for kind, names in expected.items():
        config = kind(**sizes, vocab_size=50, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config)
        assert attention_projections(model) == names
        adapted = adapt(model.requires_grad_(False), request(lora=True))
        num = sum("lora_A" in name for name, _ in adapted.named_parameters())
        assert num == len(names)


def test_without_peft_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LongEvalError, match="pip install peft"):
        adapt(tiny(), request(lora=True))
