"""Values that papers and released models state, and transformers' own functions where no factor tells them apart."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longeval.rope.analysis.description import describe
from longeval.rope.base import Geometry
from longeval.rope.build import build_table, make_parameters


def llama2(factor=1.0, native=4096):
    return Geometry(head_dim=128, theta=10000.0, native_length=native, factor=factor)


def test_pre_critical_features_and_unique_positions_of_the_resonance_paper():
    # Wang et al. 2024: 46 and 41 features, "7e51" positions. Its PosGen models (d 64, L 64) have 9 by its own
    # definition, λ ≤ L, where its text says 17.
    assert describe("resonance", llama2())["pre_critical"] == 46
    assert describe("resonance", llama2(native=2048))["pre_critical"] == 41
    posgen = Geometry(head_dim=64, theta=10000.0, native_length=64)
    assert describe("resonance", posgen)["pre_critical"] == 9
    assert describe("resonance", llama2())["unique_positions"] == "7057974406910048702415100928873416964126012399455200"


@pytest.mark.parametrize(("factor", "attention"), [(16.0, 1.2772588722239782), (32.0, 1.3465735902799727)])
@pytest.mark.parametrize("name", ["yarn", "resonance_yarn"])
def test_the_released_yarn_models(name, factor, attention):
    # Peng et al. 2024, Llama 2 at s = 16 and 32, β 32 and 1: the ramp runs from feature 20 to feature 46.
    table = build_table(name, llama2(factor))
    theta_F = llama2().base_inv_freq()
    assert table.attention_factor == pytest.approx(attention, rel=1e-15)
    if name == "yarn":
        np.testing.assert_array_equal(table.inv_freq_F[:21], theta_F[:21])
        np.testing.assert_array_equal(table.inv_freq_F[46:], theta_F[46:] / factor)
        assert np.all((table.inv_freq_F < theta_F)[21:46]) and np.all((table.inv_freq_F > theta_F / factor)[21:46])
    else:
        assert table.period_F[0] == 6 and table.period_F[-1] == round(2 * math.pi / theta_F[-1] * factor)


def test_the_attention_factor_of_phi_3():
    # Ding et al. 2024; Phi-3-mini-128k goes from 4k to 128k: sqrt(1 + ln 32 / ln 4096).
    parameters = make_parameters("longrope", {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48})
    geometry = Geometry(head_dim=96, theta=10000.0, native_length=4096, factor=32.0)
    assert build_table("longrope", geometry, parameters).attention_factor == pytest.approx(1.1902380714238083)


def config(**rope_parameters):
    return LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 10000.0, **rope_parameters},
    )


def test_plain_rope_is_that_of_transformers():
    module = LlamaRotaryEmbedding(config(rope_type="default"))
    np.testing.assert_allclose(build_table("none", llama2()).inv_freq_F, module.inv_freq.double().numpy(), rtol=1e-6)
    assert module.attention_scaling == 1.0


@pytest.mark.parametrize("length", [100, 4096, 8192, 20000])
def test_dynamic_ntk_is_that_of_transformers_at_factor_one(length):
    # Its s·n/L − (s−1) is n/L there; with any other factor it is another formula.
    dynamic = config(rope_type="dynamic", factor=1.0)
    theirs, attention = ROPE_INIT_FUNCTIONS["dynamic"](dynamic, torch.device("cpu"), seq_len=length)
    ours = build_table("dynamic_ntk", llama2(), seq_len=length)
    np.testing.assert_allclose(ours.inv_freq_F, theirs.double().numpy(), rtol=2e-6)
    assert attention == ours.attention_factor == 1.0
