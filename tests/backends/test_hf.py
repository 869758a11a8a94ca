"""The hf backend on tiny models: equal to an independent float64 computation, to plain transformers, and to itself."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
import transformers
from llama_reference import llama_nll
from transformers import AutoModelForCausalLM

from longeval.backends.base import OutOfMemoryError
from longeval.backends.hf import parts
from longeval.backends.hf.backend import HFBackend
from longeval.errors import LongEvalError
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

GEOMETRY = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)


@pytest.fixture
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture
def tokens_T():
    return np.random.default_rng(0).integers(1, 300, 200).astype(np.int32)


def reference_angles(name, num_tokens):
    """Angles written out with Python floats; yarn's ramp ends for d=16, b=1e4, L=64 worked out by hand."""
    theta_F = [10000.0 ** (-2 * j / 16) for j in range(8)]
    if name.endswith("yarn"):
        bound = [16 * math.log(64 / (2 * math.pi * rotations)) / (2 * math.log(10000.0)) for rotations in (32, 1)]
        low, high = max(math.floor(bound[0]), 0), min(math.ceil(bound[1]), 15)
        ramp_F = [min(max((j - low) / max(high - low, 0.001), 0), 1) for j in range(8)]
        theta_F = [(1 - r) * t + r * t / 4 for t, r in zip(theta_F, ramp_F, strict=True)]
    if name.startswith("resonance"):
        period_F = [round(2 * math.pi / t) for t in theta_F]
        return np.array([[2 * math.pi * (m % p) / p for p in period_F] for m in range(num_tokens)])
    return np.array([[m * t for t in theta_F] for m in range(num_tokens)])


@pytest.mark.parametrize("name", ["none", "resonance", "yarn", "resonance_yarn"])
def test_injected_method_equals_an_independent_float64_forward_pass(model, tokens_T, name):
    factor = 0.1 * math.log(4) + 1 if name.endswith("yarn") else 1.0
    expected_S = llama_nll(model, tokens_T, reference_angles(name, len(tokens_T)), factor)
    backend = HFBackend(model)
    backend.serve(build_table(name, GEOMETRY), len(tokens_T))
    np.testing.assert_allclose(backend.score(tokens_T, 1), expected_S, atol=2e-4)


def test_injection_changes_what_the_model_computes(model, tokens_T):
    backend = HFBackend(model)
    nlls = {}
    for name in ("none", "resonance", "pi", "yarn"):
        backend.serve(build_table(name, GEOMETRY), len(tokens_T))
        nlls[name] = backend.score(tokens_T, 1)
    # The first scored token has one token of context, position 1: already there the methods differ.
    for other in ("resonance", "pi", "yarn"):
        assert np.abs(nlls["none"] - nlls[other]).max() > 0.01
    backend.serve(build_table("none", GEOMETRY), len(tokens_T))
    np.testing.assert_array_equal(backend.score(tokens_T, 1), nlls["none"])


FAMILIES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "gpt_neox": transformers.GPTNeoXConfig,
    "cohere": transformers.CohereConfig,
    "granite": transformers.GraniteConfig,
    "mixtral": transformers.MixtralConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}
OWN = {
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 16},
    "gemma3_text": {"num_hidden_layers": 6, "sliding_window": 32, "head_dim": 16},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_equals_plain_transformers_with_the_familys_own_head_and_layout(family, tokens_T, monkeypatch):
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    kv = {} if family == "gpt_neox" else {"num_key_value_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    settings = {**sizes, **kv, **special, "vocab_size": 300, "initializer_range": 0.3, **OWN.get(family, {})}
    config = FAMILIES[family](**settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids_T = torch.from_numpy(tokens_T.astype(np.int64))
    with torch.no_grad():
        logits_TV = model(ids_T[None]).logits[0].float()
    expected_S = torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none").numpy()
    monkeypatch.setattr(parts, "LOGITS_BYTES", 4 * 300 * 17)  # chunks of 17 positions
    backend = HFBackend(model)
    backend.serve(backend.shipped.table(), len(tokens_T))
    np.testing.assert_allclose(backend.score(tokens_T, 1), expected_S, atol=1e-4)
    np.testing.assert_allclose(backend.score(tokens_T, 150), expected_S[149:], atol=1e-4)
    # The decoder is itself again: a plain call still works.
    with torch.no_grad():
        np.testing.assert_allclose(model(ids_T[None]).logits[0].float().numpy(), logits_TV.numpy(), atol=1e-4)


def test_never_more_logits_than_a_chunk(model, tokens_T, monkeypatch):
    monkeypatch.setattr(parts, "LOGITS_BYTES", 4 * 300 * 10)
    shapes = []
    model.lm_head.register_forward_hook(lambda *arguments: shapes.append(tuple(arguments[2].shape)))
    backend = HFBackend(model)
    backend.serve(build_table("none", GEOMETRY), len(tokens_T))
    backend.score(tokens_T, 165)
    assert [shape[1] for shape in shapes] == [10, 10, 10, 5]


def test_digest_is_of_the_table_in_the_model(model):
    backend = HFBackend(model)
    backend.serve(build_table("resonance_yarn", GEOMETRY), 100)
    factor = 0.1 * math.log(4) + 1
    angle_TF = reference_angles("resonance_yarn", 70)
    parts = [(f(angle_TF) * factor).astype(np.float32).tobytes() for f in (np.cos, np.sin)]
    assert backend.rope_digest(70) == hashlib.sha256(b"".join(parts)).hexdigest()
    held = model.model.rotary_emb
    held._held.cos_TF[3, 2] += 1e-6
    assert backend.rope_digest(70) != hashlib.sha256(b"".join(parts)).hexdigest()


def test_rounded_features_repeat_bit_for_bit_in_the_models_dtype(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    HFBackend(model)._rotary.serve(build_table("resonance", GEOMETRY), 4096)
    x_BTD = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    cos_BTD, sin_BTD = model.model.rotary_emb(x_BTD, torch.arange(4096)[None])
    assert cos_BTD.dtype == torch.bfloat16
    for feature, period in enumerate((6, 20, 63)):
        for part_BTD in (cos_BTD, sin_BTD):
            column_T = part_BTD[0, :, feature]
            assert torch.equal(column_T[period:], column_T[:-period])


def test_casting_the_model_does_not_reach_the_table(model):
    backend = HFBackend(model)
    backend.serve(build_table("yarn", GEOMETRY), 64)
    before = backend.rope_digest(64)
    model.to(torch.bfloat16)
    assert backend.rope_digest(64) == before


def test_a_model_without_rope_is_refused():
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    with pytest.raises(LongEvalError, match="model type gpt2: no rotary position embedding to replace"):
        HFBackend(AutoModelForCausalLM.from_config(config))
    config = transformers.XGLMConfig(d_model=32, num_layers=1, attention_heads=2, vocab_size=50, ffn_dim=32)
    with pytest.raises(LongEvalError, match="no rotary embedding found in a xglm model"):
        HFBackend(AutoModelForCausalLM.from_config(config))


def test_a_rotary_module_that_cannot_be_reproduced_is_refused_and_left_alone(model, monkeypatch):
    original = model.model.rotary_emb
    monkeypatch.setattr(type(original), "forward", lambda self, x, position_ids: (x * 0 + 3, x * 0))
    with pytest.raises(LongEvalError, match="can't be replaced exactly"):
        HFBackend(model)
    assert model.model.rotary_emb is original


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_told_apart_from_bugs(model, tokens_T, monkeypatch, error):
    def fail(*_, **__):
        raise error

    backend = HFBackend(model)
    backend.serve(build_table("none", GEOMETRY), len(tokens_T))
    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(OutOfMemoryError):
        backend.score(tokens_T, 1)
    error = RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        backend.score(tokens_T, 1)
