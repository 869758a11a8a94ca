"""What a plan knows of a model without its weights; its position encoding is in test_scaling.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from folders import edit_config, edit_json, prepared
from safetensors.torch import load_file, save_file
from tiny import make_text, save_tiny_llama
from transformers import AutoModelForCausalLM

from longeval.backends.base import capabilities
from longeval.backends.hf.backend import load_backend
from longeval.errors import LongEvalError
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.request import PplRequest

HF, VLLM, OPENAI = (capabilities(name) for name in ("hf", "vllm", "openai"))


def test_bos_follows_the_tokenizer_unless_told(llama, tiny_llama_bos):
    asked = [(llama, None), (tiny_llama_bos, None), (llama, True), (tiny_llama_bos, False)]
    found = [prepared(folder, bos=bos) for folder, bos in asked]
    assert [model.bos for model in found] == [False, True, True, False]
    assert [model.prefix for model in found] == [(), (0,), (0,), ()]
    edit_json(llama / "tokenizer_config.json", bos_token=None)
    with pytest.raises(LongEvalError, match=r"--bos: .*llama"):
        prepared(llama, bos=True)


def test_a_prefix_needs_no_bos_token(tmp_path):
    """GLM's `[gMASK]<sop>`: two tokens in front and no BOS; --bos and --no-bos speak of both."""
    folder = save_tiny_llama(tmp_path / "glm", prefix=("[gMASK]", "<sop>"))
    assert [prepared(folder, bos=bos).prefix for bos in (None, True, False)] == [(1, 2), (1, 2), ()]


def test_a_prefix_without_a_row_in_the_embedding_is_refused(tmp_path):
    folder = save_tiny_llama(tmp_path / "model", bos=True)
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["post_processor"]["special_tokens"]["<s>"]["ids"] = [300]
    path.write_text(json.dumps(plain))
    with pytest.raises(LongEvalError, match=r"token 300, .* 300 rows"):
        prepared(folder)


def test_attention_logits_that_are_capped_softly_stay_so(llama):
    """transformers takes SDPA for Gemma 2 too, which leaves the cap out without a word."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "head_dim": 16, "vocab_size": 300, "sliding_window": 32}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.Gemma2Config(**sizes, **special, attn_logit_softcapping=1.0, initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(llama)
    model = prepared(llama)
    assert model.attn == "eager" and "soft cap" in model.notes[-1]
    scores = {}
    for attn in ("eager", "sdpa"):
        plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, attn_implementation=attn).eval()
        with torch.no_grad():
            logits_TV = plain(torch.arange(100)[None]).logits[0]
        targets_S = torch.arange(1, 100)
        scores[attn] = torch.nn.functional.cross_entropy(logits_TV[:-1], targets_S, reduction="none").numpy()
    backend = load_backend(model)
    backend.serve(model.rope.shipped_table(100), 100)
    np.testing.assert_allclose(backend.score(np.arange(100, dtype=np.int32), 1), scores["eager"], atol=1e-3)
    assert np.abs(scores["sdpa"] - scores["eager"]).max() > 0.1
    assert prepared(llama, attn="flex_attention").notes == ()
    with pytest.raises(LongEvalError, match="--attn sdpa: "):
        prepared(llama, attn="sdpa")


def test_a_vocabulary_larger_than_the_embedding_is_another_models(llama):
    """More rows than tokens are padding, and usual."""
    rows = len(prepared(llama).tokenizer) - 10
    resized = AutoModelForCausalLM.from_pretrained(llama)
    resized.resize_token_embeddings(rows)
    resized.save_pretrained(llama)
    with pytest.raises(LongEvalError, match=f"{rows + 10} tokens, .* {rows} rows"):
        prepared(llama)
    prepared(llama, backend=OPENAI)  # a server has weights of its own
    resized.resize_token_embeddings(rows + 50)
    resized.save_pretrained(llama)
    assert prepared(llama).unembedded == {}


def test_added_tokens_without_a_row_harm_only_texts_that_have_them(llama, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(301 - len(tokenizer))])
    tokenizer.save_pretrained(llama)
    extra = tokenizer.convert_ids_to_tokens(300)
    assert prepared(llama).unembedded == {300: extra}
    (tmp_path / "plain.txt").write_text(make_text(200))
    (tmp_path / "extra.txt").write_text(f"{extra} {make_text(200)}")

    def cells(data):
        request = {"model": (str(llama),), "pe": ("none",), "lengths": (64,), "device": "cpu"}
        return plan_ppl(PplRequest(**request, data=(str(tmp_path / data),))).cells

    assert cells("plain.txt")
    with pytest.raises(LongEvalError, match=rf"extra\.txt .*'{extra}' \(300\).*300 rows"):
        cells("extra.txt")


def test_what_is_wrong_with_weights_is_known_to_a_plan(llama):
    edit_config(llama, num_hidden_layers=1)
    for backend in (HF, VLLM):
        with pytest.raises(LongEvalError, match=r"unexpected, .*model\.layers\.1\."):
            prepared(llama, backend=backend)
    prepared(llama, backend=OPENAI)


def test_a_quantisation_that_only_vllm_reads_is_left_to_it(llama):
    """ModelOpt writes it into a file of its own, and weights that the plain model has no place for."""
    quantisation = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (llama / "hf_quant_config.json").write_text(json.dumps(quantisation))
    weights = load_file(llama / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights |= {name: weights[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)}
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    assert prepared(llama, backend=VLLM).native_length == 64
    with pytest.raises(LongEvalError, match=f"unexpected, .*{name}_scale"):
        prepared(llama)
    (llama / "hf_quant_config.json").unlink()
    with pytest.raises(LongEvalError, match=f"unexpected, .*{name}_scale"):
        prepared(llama, backend=VLLM)


@pytest.mark.parametrize(
    ("config", "backend", "said"),
    [
        (transformers.Mistral3Config(), VLLM, "is multimodal"),
        (transformers.BertConfig(), VLLM, "bert: no rotary"),
        (transformers.BertConfig(), HF, "bert: no rotary"),
    ],
)
def test_what_kind_of_model_it_is_is_said_before_what_its_weights_lack(llama, config, backend, said):
    (llama / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(LongEvalError, match=said):
        prepared(llama, backend=backend)
