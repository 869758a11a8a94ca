"""What a plan knows of a model without its weights; its position encoding is in test_scaling.py."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import make_text, save_tiny_llama
from transformers import AutoModelForCausalLM

from longeval.backends.base import capabilities
from longeval.backends.hf.backend import load_backend
from longeval.errors import LongEvalError
from longeval.models.prepare import prepare
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.request import PplRequest

OPTIONS = {
    "revision": None,
    "native": None,
    "scale_from": "plain",
    "layers": "global",
    "bos": None,
    "dtype": "float32",
    "device": "cpu",
    "device_map": None,
    "attn": None,
    "trust_remote_code": False,
}


def test_bos_follows_the_tokenizer_unless_told(tiny_llama, tiny_llama_bos):
    asked = [
        (str(tiny_llama), None),
        (str(tiny_llama_bos), None),
        (str(tiny_llama), True),
        (str(tiny_llama_bos), False),
    ]
    found = [prepare(name, **(OPTIONS | {"bos": bos})) for name, bos in asked]
    assert [model.bos for model in found] == [False, True, True, False]
    assert [model.prefix for model in found] == [(), (0,), (0,), ()]


def test_a_prefix_needs_no_bos_token(tmp_path, tiny_llama):
    """GLM's `[gMASK]<sop>`: two tokens in front and no BOS; --bos and --no-bos speak of both."""
    folder = save_tiny_llama(tmp_path / "glm", prefix=("[gMASK]", "<sop>"))
    asked = [prepare(str(folder), **(OPTIONS | {"bos": bos})).prefix for bos in (None, True, False)]
    assert asked == [(1, 2), (1, 2), ()]
    bare = shutil.copytree(tiny_llama, tmp_path / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None}))
    with pytest.raises(LongEvalError, match=r"--bos: the tokenizer of .*bare has no BOS token"):
        prepare(str(bare), **(OPTIONS | {"bos": True}))


def test_attention_logits_that_are_capped_softly_stay_so(tiny_llama, tmp_path):
    """transformers takes SDPA for Gemma 2 too, which leaves the cap out without a word."""
    shutil.copytree(tiny_llama, tmp_path / "gemma")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        head_dim=16,
        vocab_size=300,
        sliding_window=32,
        attn_logit_softcapping=1.0,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma")
    folder = str(tmp_path / "gemma")
    model = prepare(folder, **OPTIONS)
    assert model.attn == "eager" and "caps its attention logits softly" in model.notes[-1]
    tokens_T = np.arange(100, dtype=np.int32)
    scores = {}
    for attn in ("eager", "sdpa"):
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attn).eval()
        with torch.no_grad():
            logits_TV = plain(torch.arange(100)[None]).logits[0]
        targets_S = torch.arange(1, 100)
        scores[attn] = torch.nn.functional.cross_entropy(logits_TV[:-1], targets_S, reduction="none").numpy()
    backend = load_backend(model)
    backend.serve(model.rope.shipped_table(100), 100)
    np.testing.assert_allclose(backend.score(tokens_T, 1), scores["eager"], atol=1e-3)
    assert np.abs(scores["sdpa"] - scores["eager"]).max() > 0.1
    assert prepare(folder, **(OPTIONS | {"attn": "flex_attention"})).notes == ()
    with pytest.raises(LongEvalError, match="--attn sdpa: leaves out the soft cap"):
        prepare(folder, **(OPTIONS | {"attn": "sdpa"}))


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_vocabulary_larger_than_the_embedding_is_another_models(tiny_llama, tmp_path):
    """More rows than tokens are padding, and usual."""
    folder = shutil.copytree(tiny_llama, tmp_path / "small")
    rows = len(prepare(str(tiny_llama), **OPTIONS).tokenizer) - 10
    resized = AutoModelForCausalLM.from_pretrained(tiny_llama)
    resized.resize_token_embeddings(rows)
    resized.save_pretrained(folder)
    with pytest.raises(LongEvalError, match=f"vocabulary of {rows + 10} tokens, and its embedding {rows} rows"):
        prepare(str(folder), **OPTIONS)
    prepare(str(folder), **(OPTIONS | {"backend": capabilities("openai")}))  # a server has weights of its own
    resized.resize_token_embeddings(rows + 50)
    resized.save_pretrained(folder)
    assert prepare(str(folder), **OPTIONS).unembedded == {}


def test_added_tokens_without_a_row_harm_only_texts_that_have_them(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "padded")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(301 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    extra = tokenizer.convert_ids_to_tokens(300)
    model = prepare(str(folder), **OPTIONS)
    assert model.unembedded == {300: extra}
    (tmp_path / "plain.txt").write_text(make_text(200))
    (tmp_path / "extra.txt").write_text(f"{extra} {make_text(200)}")
    request = {"model": (str(folder),), "pe": ("none",), "lengths": (64,), "device": "cpu"}
    assert plan_ppl(PplRequest(**request, data=(str(tmp_path / "plain.txt"),))).cells
    with pytest.raises(LongEvalError, match=rf"extra\.txt holds the token '{extra}' \(300\).*300 rows"):
        plan_ppl(PplRequest(**request, data=(str(tmp_path / "extra.txt"),)))


def test_what_is_wrong_with_weights_is_known_to_a_plan(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "short")
    edit_config(folder, num_hidden_layers=1)
    for backend in ("hf", "vllm"):
        with pytest.raises(LongEvalError, match=r"unexpected, .*model\.layers\.1\."):
            prepare(str(folder), **(OPTIONS | {"backend": capabilities(backend)}))
    prepare(str(folder), **(OPTIONS | {"backend": capabilities("openai")}))


def test_a_quantisation_that_only_vllm_reads_is_left_to_it(tiny_llama, tmp_path):
    """ModelOpt writes it into a file of its own, and weights that the plain model has no place for."""
    folder = shutil.copytree(tiny_llama, tmp_path / "modelopt")
    quantisation = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(quantisation))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights |= {name: weights[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert prepare(str(folder), **(OPTIONS | {"backend": capabilities("vllm")})).native_length == 64
    with pytest.raises(LongEvalError, match=rf"unexpected, .*{name}_scale"):
        prepare(str(folder), **OPTIONS)
    (folder / "hf_quant_config.json").unlink()
    with pytest.raises(LongEvalError, match=rf"unexpected, .*{name}_scale"):
        prepare(str(folder), **(OPTIONS | {"backend": capabilities("vllm")}))


def test_what_kind_of_model_it_is_is_said_before_what_its_weights_lack(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    (folder / "config.json").write_text(json.dumps(transformers.Mistral3Config().to_dict()))
    with pytest.raises(LongEvalError, match="can also see or hear"):
        prepare(str(folder), **(OPTIONS | {"backend": capabilities("vllm")}))
    (folder / "config.json").write_text(json.dumps(transformers.BertConfig().to_dict()))
    for backend in ("hf", "vllm"):
        with pytest.raises(LongEvalError, match="bert: no rotary position embedding"):
            prepare(str(folder), **(OPTIONS | {"backend": capabilities(backend)}))


def test_a_prefix_without_a_row_in_the_embedding_is_refused(tmp_path):
    folder = save_tiny_llama(tmp_path / "model", bos=True)
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["post_processor"]["special_tokens"]["<s>"]["ids"] = [300]
    path.write_text(json.dumps(plain))
    with pytest.raises(LongEvalError, match="token 300, and its embedding has 300 rows"):
        prepare(str(folder), **OPTIONS)
