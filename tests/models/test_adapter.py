"""Adapters: what is merged, compared with peft's own unmerged model and with float64, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import numpy as np
import peft
import pytest
import torch
import transformers
from adapters import LORA, nll, plain, save_adapter, unmerged
from folders import edit_config, edit_json, prepared
from fp8 import is_linear, to_fp8
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import save_tiny_llama
from tiny_gguf import write_llama

from longeval.backends.base import capabilities
from longeval.errors import LongEvalError
from longeval.models import adapter as adapters
from longeval.models.gguf.folder import is_whole
from longeval.models.load import load_model
from longeval.models.merged import merged_folder
from longeval.models.resolve import local_folder, resolve, weights_digest

TOKENS = [(7 * place * place) % 290 for place in range(60)]
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tied_llama(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tied") / "tied", tie_word_embeddings=True)


@pytest.fixture
def lora(tiny_llama, tmp_path):
    return save_adapter(tiny_llama, tmp_path / "lora")


def merged(base, adapter, **options):
    settings = {"dtype": "float32", "device": "cpu"} | options
    return load_model(resolve(str(base), adapter=str(adapter)), **settings)


def refused(base, adapter, said):
    """Both ways into a plan: found while the adapter is looked up or compared, before weights are loaded."""
    with pytest.raises(LongEvalError, match=said) as caught:
        prepared(base, adapter=str(adapter), backend=capabilities("hf"))
    assert caught.value.problem.startswith("--adapter")
    return caught.value.remedy


def float64(path):
    return {name: tensor.double().numpy() for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 6 / 4),
        ({"use_rslora": True}, 6 / 4**0.5),
        ({"use_dora": True}, 6 / 4),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 10}}, None),
    ],
    ids=["lora", "rslora", "dora", "patterns"],
)
def test_merged_weights_are_those_of_the_formula_in_float64(tiny_llama, tmp_path, settings, scale):
    folder = save_adapter(tiny_llama, tmp_path / "adapter", **settings)
    base, stored = float64(tiny_llama / "model.safetensors"), float64(folder / WEIGHTS)
    found = merged(tiny_llama, folder).state_dict()
    changed = set()
    for name, weight_OI in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        expected_OI = weight_OI
        if f"{key}.lora_A.weight" in stored:
            changed.add(name.split(".")[-2])
            s = scale or (10 / 2 if "q_proj" in name else 6 / 4)
            expected_OI = weight_OI + s * stored[f"{key}.lora_B.weight"] @ stored[f"{key}.lora_A.weight"]
            if f"{key}.lora_magnitude_vector" in stored:
                norm_O1 = np.linalg.norm(expected_OI, axis=1, keepdims=True)
                expected_OI = stored[f"{key}.lora_magnitude_vector"][:, None] * expected_OI / norm_O1
            assert np.abs(expected_OI - weight_OI).max() > 0.1
        np.testing.assert_allclose(found[name].double().numpy(), expected_OI, rtol=0, atol=2e-6)
    assert changed == {"q_proj", "v_proj"}


EMBEDDED = {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "biases": {"bias": "all"},
    "parameters": {"target_parameters": ["o_proj.weight"]},
    "LongLoRA": {"modules_to_save": ["embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"]},
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2, target_modules=["q_proj"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(r=4, target_modules=["q_proj"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "hra": peft.HRAConfig(r=4, target_modules=["q_proj"]),
    "miss": peft.MissConfig(r=4, target_modules=["q_proj"]),
    "norms": peft.LNTuningConfig(target_modules=["norm", "input_layernorm"]),
    "tokens": peft.TrainableTokensConfig(token_indices=TOKENS[3:5]),
}
TIES = {  # how an adapter may touch the embedding or the head: whether they are equal still in a model that ties them
    "embedding": (EMBEDDED, False),
    "head": ({"r": 4, "target_modules": ["q_proj", "lm_head"]}, False),
    "embedding, saved": ({"modules_to_save": ["embed_tokens"]}, False),
    "head, saved": ({"modules_to_save": ["lm_head"]}, False),
    "both by rule": (EMBEDDED | {"ensure_weight_tying": True}, True),
    "both by rule, saved": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "tokens": ({"trainable_token_indices": TOKENS[3:5]}, True),
    "neither": ({}, True),
}


def assert_same(model, base, folder):
    expected = nll(unmerged(base, folder), TOKENS)
    np.testing.assert_allclose(nll(model, TOKENS), expected, rtol=0, atol=1e-4)
    assert np.abs(np.array(nll(plain(base), TOKENS)) - expected).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_computes_what_the_adapted_one_does(tiny_llama, tmp_path, kind):
    given = KINDS[kind]
    made = {"config": given} if isinstance(given, peft.PeftConfig) else given
    folder = save_adapter(tiny_llama, tmp_path / "adapter", **made)
    prepared(tiny_llama, adapter=str(folder))
    assert_same(merged(tiny_llama, folder), tiny_llama, folder)


def test_every_type_that_is_accepted_was_compared():
    compared = {given.peft_type.value for given in KINDS.values() if isinstance(given, peft.PeftConfig)} | {"LORA"}
    assert compared == adapters._MERGED_TYPES


@pytest.mark.parametrize("case", TIES)
def test_embedding_and_head_change_as_they_were_trained(tied_llama, tmp_path, case):
    """peft adds to weights in place, which would change both where they are one tensor."""
    settings, still_tied = TIES[case]
    folder = save_adapter(tied_llama, tmp_path / "adapter", **settings)
    prepared(tied_llama, adapter=str(folder))
    model = merged(tied_llama, folder)
    assert_same(model, tied_llama, folder)
    assert model.config.tie_word_embeddings is still_tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is still_tied
    written = merged_folder(resolve(str(tied_llama), adapter=str(folder)), dtype="float32")
    assert_same(plain(written), tied_llama, folder)
    with safe_open(f"{written}/model.safetensors", "pt") as tensors:
        assert ("lm_head.weight" in tensors.keys()) is not still_tied  # noqa: SIM118 (not a dictionary)


def test_a_merged_folder_is_made_once_whole_and_again_if_it_is_damaged(tiny_llama, lora, monkeypatch):
    ref = resolve(str(tiny_llama), adapter=str(lora))
    folder = merged_folder(ref, dtype="float32")
    assert is_whole(folder)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(place) for place in (folder, tiny_llama)]
    assert len({json.dumps(each("the model reads")["input_ids"]) for each in tokenizers}) == 1
    assert prepared(folder).native_length == 64
    with monkeypatch.context() as patch:
        patch.setattr("longeval.models.merged.load_model", lambda *_, **__: pytest.fail("was loaded again"))
        assert merged_folder(ref, dtype="float32") == folder
    with open(f"{folder}/model.safetensors", "ab") as file:
        file.write(b"x")
    assert merged_folder(ref, dtype="float32") == folder and is_whole(folder)
    assert merged_folder(ref, dtype="bfloat16") != folder


def test_the_dtype_and_the_place_are_those_asked_for(tiny_llama, lora):
    model = merged(tiny_llama, lora, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    exact = merged(tiny_llama, lora).state_dict()
    for name, weight in model.state_dict().items():  # the base is rounded, and the sum once more
        torch.testing.assert_close(weight.float(), exact[name], rtol=2**-7, atol=2**-8)
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    assert_same(merged(tiny_llama, lora, device_map="auto"), tiny_llama, lora)


def test_a_gguf_gets_an_adapter_as_a_folder_does(tmp_path):
    base = write_llama(tmp_path / "base.gguf")
    folder = local_folder(resolve(str(base)))
    adapter = save_adapter(folder, tmp_path / "adapter")
    prepared(base, adapter=str(adapter))
    tokens = [place % plain(folder).config.vocab_size for place in TOKENS]
    found, expected = (nll(model, tokens) for model in (merged(base, adapter), unmerged(folder, adapter)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(np.array(nll(plain(folder), tokens)) - expected).max() > 1e-3


def test_weights_that_are_put_back_to_plain_numbers_get_an_adapter_and_quantised_ones_do_not(llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter")
    meant, stored = to_fp8(llama), float64(adapter / WEIGHTS)
    prepared(llama, adapter=str(adapter), backend=capabilities("hf"))  # without a GPU's kernels they are plain
    found = merged(llama, adapter).state_dict()
    name = "model.layers.0.self_attn.q_proj"
    assert is_linear(f"{name}.weight")
    key = f"base_model.model.{name}.lora_"
    expected_OI = meant[f"{name}.weight"].double().numpy()
    expected_OI = expected_OI + 1.5 * stored[f"{key}B.weight"] @ stored[f"{key}A.weight"]
    np.testing.assert_allclose(found[f"{name}.weight"].double().numpy(), expected_OI, atol=1e-5)
    with pytest.raises(LongEvalError, match=r"--adapter .*quantised \(fp8\)"):
        prepared(llama, adapter=str(adapter), backend=capabilities("vllm"))


def test_the_digest_is_of_the_contents(tiny_llama, lora, tmp_path):
    first = resolve(str(tiny_llama), adapter=str(lora))
    elsewhere = resolve(str(tiny_llama), adapter=str(shutil.copytree(lora, tmp_path / "elsewhere"))).adapter
    assert elsewhere.digest == first.adapter.digest and elsewhere.name != first.adapter.name
    assert weights_digest(first) == weights_digest(resolve(str(tiny_llama)))
    edit_json(tmp_path / "elsewhere" / CONFIG, lora_alpha=7)
    other = save_adapter(tiny_llama, tmp_path / "other", seed=1)
    digests = {resolve(str(tiny_llama), adapter=str(f)).adapter.digest for f in (lora, other, tmp_path / "elsewhere")}
    assert len(digests) == 3


def test_another_name_of_the_base_is_a_note(tiny_llama, lora):
    assert not any("--adapter" in note for note in prepared(tiny_llama, adapter=str(lora)).notes)
    edit_json(lora / CONFIG, base_model_name_or_path="org/Tiny")
    assert not any("--adapter" in note for note in prepared(tiny_llama, adapter=str(lora)).notes)
    edit_json(lora / CONFIG, base_model_name_or_path="org/Other-7B")
    assert "org/Other-7B" in prepared(tiny_llama, adapter=str(lora)).notes[-1]


def test_nothing_is_fetched_or_unpickled(tiny_llama, lora, monkeypatch):
    shutil.copy(lora / WEIGHTS, lora / "adapter_model.bin")
    edit_json(lora / CONFIG, base_model_name_or_path="org/other", revision="main", task_type=None)
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    edit_json(lora / CONFIG, auto_mapping=mapping)  # as peft writes it where the task type is missing
    for place, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (torch, "load")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("was asked"))
    prepared(tiny_llama, adapter=str(lora))
    merged(tiny_llama, lora)


def test_an_adapter_in_the_hubs_cache_is_found(tiny_llama, lora, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub = tmp_path / "hub"
    snapshot = hub / "models--org--lora" / "snapshots" / ("a" * 40)
    shutil.copytree(lora, snapshot)
    (hub / "models--org--lora" / "refs").mkdir()
    (hub / "models--org--lora" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("was asked"))
    for name in ("org/lora", f"org/lora@{'a' * 40}"):
        found = resolve(str(tiny_llama), adapter=name).adapter
        assert (found.folder, found.name) == (str(snapshot), name)
    assert "hf download org/other" in refused(tiny_llama, "org/other", "org/other: there is no such folder")
    refused(tiny_llama, "org/lora@b", "no such folder")


def test_what_is_no_adapter_is_refused(tiny_llama, lora, tmp_path, monkeypatch):
    refused(tiny_llama, tmp_path / "nowhere", "no such folder")
    refused(tiny_llama, "", "no such folder")
    assert "--model" in refused(tiny_llama, tiny_llama, f"no {CONFIG}")
    (lora / "trainable_params.bin").write_bytes(b"")
    assert "LongLoRA" in refused(tiny_llama, lora, "trainable_params")
    (lora / "trainable_params.bin").unlink()
    (lora / WEIGHTS).rename(lora / "adapter_model.bin")
    assert "save_pretrained" in refused(tiny_llama, lora, "pickle")
    (lora / "adapter_model.bin").rename(lora / WEIGHTS)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        assert "pip install peft" in refused(tiny_llama, lora, "peft can't be imported")
    (lora / WEIGHTS).write_bytes((lora / WEIGHTS).read_bytes()[:-9])
    refused(tiny_llama, lora, "cut off")
    (lora / CONFIG).write_text('{"peft_type": "LORA"')
    refused(tiny_llama, lora, f"{CONFIG} is not readable")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": ["LORA"]}, "LORA.*can't be merged"),
        ({"peft_type": None}, "None"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"auto_mapping": {"base_model_class": "Model", "parent_library": "mine"}}, "auto_mapping"),
        ({"auto_mapping": "mine"}, "auto_mapping"),
        ({"megatron_config": {"a": 1}, "megatron_core": "mine"}, "megatron_config"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"of_a_later_version": True}, "of_a_later_version"),
        ({"target_modules": ["c_attn"]}, "c_attn"),
        ({"target_modules": ["q_proj"]}, "v_proj"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "k_proj"),
        ({"modules_to_save": ["norm"]}, "norm"),
        ({"r": 8}, "shape"),
        ({"r": "8"}, "--adapter"),
        ({"r": 0}, "--adapter"),
        ({"lora_bias": True}, "--adapter"),
        ({"target_modules": "("}, "--adapter"),
    ],
)
def test_what_peft_could_not_merge_or_would_run_is_refused_before_weights_are_loaded(
    tiny_llama, lora, monkeypatch, settings, said
):
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    prepared(tiny_llama, adapter=str(lora))
    edit_json(lora / CONFIG, **settings)
    refused(tiny_llama, lora, said)


@pytest.mark.parametrize("sizes", [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_model_is_refused_and_its_own_named(tiny_llama, tmp_path, sizes):
    other = save_tiny_llama(tmp_path / "other", **sizes)
    adapter = save_adapter(other, tmp_path / "adapter")
    assert str(other) in refused(tiny_llama, adapter, "doesn't fit --model")


def test_weights_that_the_file_lacks_are_not_left_at_random(tiny_llama, lora):
    weights = load_file(lora / WEIGHTS)
    last = max(weights)
    save_file({name: weight for name, weight in weights.items() if name != last}, lora / WEIGHTS)
    refused(tiny_llama, lora, last)


def test_numbers_that_are_none_are_refused(tiny_llama, lora):
    weights = load_file(lora / WEIGHTS)
    weights[min(weights)][0, 0] = float("nan")
    save_file(weights, lora / WEIGHTS)
    with pytest.raises(LongEvalError, match="--adapter"):
        merged(tiny_llama, lora)


def test_a_model_with_code_of_its_own_is_refused(llama, lora):
    edit_config(llama, model_type="mine", auto_map={"AutoConfig": "code.Mine"})
    (llama / "code.py").write_text(
        "from transformers import LlamaConfig\nclass Mine(LlamaConfig):\n  model_type='mine'"
    )
    with pytest.raises(LongEvalError, match=r"--adapter .*code of its own"):
        prepared(llama, adapter=str(lora), trust_remote_code=True)


def test_lora_is_what_the_helper_makes(lora):
    assert json.loads((lora / CONFIG).read_text())["r"] == LORA["r"]
