"""The hf backend on tiny models: equal to an independent float64 computation, to plain transformers, and to itself."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import transformers
from answer_reference import GEOMETRY, SIZES
from llama_reference import llama_nll
from rotation_reference import rotation
from transformers import AutoModelForCausalLM

from longeval.backends.base import OutOfMemoryError
from longeval.backends.hf import parts
from longeval.backends.hf.backend import HFBackend
from longeval.errors import LongEvalError
from longeval.rope.build import build_table

TOKENS_T = np.random.default_rng(0).integers(1, 300, 200).astype(np.int32)
METHODS = ("none", "resonance", "yarn", "resonance_yarn")


@pytest.fixture
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture
def served(model):
    """The backend with a method's table, from `serve`."""
    backend = HFBackend(model)

    def serve(method="none"):
        backend.serve(build_table(method, GEOMETRY), len(TOKENS_T))
        return backend

    return serve


def test_each_method_equals_an_independent_float64_forward_pass(model, served):
    nlls = []
    for method in METHODS:
        by = rotation(method, 16, 10000.0, 64, 4.0)
        nlls.append(served(method).score(TOKENS_T, 1))
        expected_S = llama_nll(model, TOKENS_T, by.angles(len(TOKENS_T)), by.factor)
        np.testing.assert_allclose(nlls[-1], expected_S, atol=2e-4)
    # Else nothing would be shown.
    assert all(np.abs(nlls[0] - other_S).max() > 0.01 for other_S in nlls[1:])
    np.testing.assert_array_equal(served("none").score(TOKENS_T, 1), nlls[0])


HEADS = {
    "LlamaConfig": {},
    "Gemma2Config": {"final_logit_softcapping": 0.5},
    "Gemma3TextConfig": {"num_hidden_layers": 6, "sliding_window": 32},
    "GPTNeoXConfig": {},
    "CohereConfig": {"logit_scale": 0.3},
    "GraniteConfig": {"logits_scaling": 3.0},
    "MixtralConfig": {},
    "Qwen3MoeConfig": {},
}


@pytest.mark.parametrize("config", HEADS)
def test_scoring_equals_plain_transformers_with_the_familys_own_head_and_layout(config, monkeypatch):
    torch.manual_seed(1)
    settings = SIZES | {"initializer_range": 0.3} | HEADS[config]
    model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings)).eval()
    ids_T = torch.from_numpy(TOKENS_T.astype(np.int64))
    with torch.no_grad():
        logits_TV = model(ids_T[None]).logits[0].float()
    expected_S = torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none").numpy()
    monkeypatch.setattr(parts, "LOGITS_BYTES", 4 * 300 * 17)  # chunks of 17 positions
    backend = HFBackend(model)
    backend.serve(backend.shipped.table(), len(TOKENS_T))
    np.testing.assert_allclose(backend.score(TOKENS_T, 1), expected_S, atol=1e-4)
    np.testing.assert_allclose(backend.score(TOKENS_T, 150), expected_S[149:], atol=1e-4)
    others_BT = np.stack([TOKENS_T[::-1], TOKENS_T, np.roll(TOKENS_T, 7)])
    firsts = (1, 150, 40)
    together = backend.score_batch(others_BT, firsts)
    for tokens_T, first, nll_S in zip(others_BT, firsts, together, strict=True):
        np.testing.assert_allclose(nll_S, backend.score(tokens_T, first), atol=1e-5)
    # The decoder is itself again: a plain call still works.
    with torch.no_grad():
        np.testing.assert_allclose(model(ids_T[None]).logits[0].float().numpy(), logits_TV.numpy(), atol=1e-4)


def test_never_more_logits_than_a_chunk(model, served, monkeypatch):
    monkeypatch.setattr(parts, "LOGITS_BYTES", 4 * 300 * 10)
    shapes = []
    model.lm_head.register_forward_hook(lambda *arguments: shapes.append(arguments[2].shape[1]))
    served().score(TOKENS_T, 165)
    assert shapes == [10, 10, 10, 5]
    shapes.clear()
    served().score_batch(np.stack([TOKENS_T] * 3), (193, 165, 190))  # 7, 35 and 10 scored
    assert shapes == [10, 10, 10, 10, 10, 2]


def test_digest_is_of_the_table_in_the_model(model, served):
    backend = served("resonance_yarn")
    by = rotation("resonance_yarn", 16, 10000.0, 64, 4.0)
    parts = [(f(by.angles(70)) * by.factor).astype(np.float32).tobytes() for f in (np.cos, np.sin)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    assert backend.rope_digest(70) == digest
    model.to(torch.bfloat16)  # doesn't reach the table
    assert backend.rope_digest(70) == digest
    model.model.rotary_emb._held.cos_TF[3, 2] += 1e-6
    assert backend.rope_digest(70) != digest


def test_rounded_features_repeat_bit_for_bit_in_the_models_dtype(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    HFBackend(model).serve(build_table("resonance", GEOMETRY), 4096)
    x_BTD = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    cos_BTD, sin_BTD = model.model.rotary_emb(x_BTD, torch.arange(4096)[None])
    assert cos_BTD.dtype == torch.bfloat16
    for feature, period in enumerate((6, 20, 63)):
        for part_BTD in (cos_BTD, sin_BTD):
            column_T = part_BTD[0, :, feature]
            assert torch.equal(column_T[period:], column_T[:-period])


def test_a_rotary_module_that_cannot_be_reproduced_is_refused_and_left_alone(model, monkeypatch):
    original = model.model.rotary_emb
    monkeypatch.setattr(type(original), "forward", lambda self, x, position_ids: (x * 0 + 3, x * 0))
    with pytest.raises(LongEvalError, match="can't be replaced exactly"):
        HFBackend(model)
    assert model.model.rotary_emb is original


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), OutOfMemoryError),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried …"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("shape mismatch"), RuntimeError),
    ],
)
def test_memory_that_runs_out_is_told_apart_from_bugs(model, served, monkeypatch, error, told):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(told) as caught:
        served().score(TOKENS_T, 1)
    assert caught.type is told
