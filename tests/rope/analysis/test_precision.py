"""Floating-point errors: the truth against exact fractions, stock engines' errors against transformers' own module."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from longeval.rope.analysis.precision import ENDS, exact_cos_sin, float_errors
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)
PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


def exact(position, theta):
    """cos and sin of a product without any rounding: whole turns are taken off in fractions."""
    angle = position * Fraction(float(theta))
    rest = float(angle - round(angle / (2 * PI)) * 2 * PI)
    return math.cos(rest), math.sin(rest)


@pytest.mark.parametrize("name", ["none", "yarn", "abf"])
def test_the_truth_is_exact_where_a_float64_product_is_not(name):
    table = build_table(name, LLAMA2)
    positions = np.array([0, 1, 4095, 131071, 999_983, 2**20 - 1])
    expected = np.array([[exact(m, theta) for theta in table.inv_freq_F] for m in positions.tolist()])
    cos_TF, sin_TF = exact_cos_sin(table, positions)
    np.testing.assert_allclose(np.stack((cos_TF, sin_TF), axis=-1), expected, atol=4e-16)
    product = np.cos(positions[:, None] * table.inv_freq_F)
    assert np.abs(product - expected[..., 0]).max() > 1e-12


def test_the_truth_of_rounded_features_is_their_part_of_a_turn():
    table = build_table("resonance", LLAMA2)
    positions = np.array([999_983, 2**20 - 1])
    cos_TF, sin_TF = exact_cos_sin(table, positions)
    for row, m in enumerate(positions.tolist()):
        for j, period in enumerate(table.period_F.tolist()):
            turn = 2 * math.pi * float(Fraction(m, period) % 1)
            assert cos_TF[row, j] == pytest.approx(math.cos(turn), abs=1e-15)
            assert sin_TF[row, j] == pytest.approx(math.sin(turn), abs=1e-15)


def stock_module(inv_freq_F):
    """transformers' rotary module, holding these frequencies in float32."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=256, num_attention_heads=2, head_dim=128)
    module = LlamaRotaryEmbedding(config)
    module.inv_freq = torch.from_numpy(inv_freq_F).float()
    return module


@pytest.mark.parametrize("name", ["none", "resonance_yarn"])
@pytest.mark.parametrize("end", ENDS)
def test_errors_of_stock_engines_are_those_of_transformers(name, end):
    table = build_table(name, LLAMA2)
    positions = np.arange(end - 4096, end)
    truth = exact_cos_sin(table, positions)
    errors = float_errors(table, end)
    for dtype, stated in ((torch.float32, errors["float32_product"]), (torch.bfloat16, errors["bfloat16_inv_freq"])):
        module = stock_module(table.inv_freq_F).to(dtype)
        assert module.inv_freq.dtype == dtype
        parts = module(torch.zeros(1, dtype=torch.float32), torch.from_numpy(positions)[None])
        measured = max(
            np.abs(part[0, :, :64].double().numpy() - true).max() for part, true in zip(parts, truth, strict=True)
        )
        assert stated == pytest.approx(measured, abs=2e-7)
    assert errors["positions"] == end


def test_drift_of_plain_rope_grows_with_the_position():
    # The angle of feature 0 is the position itself, exact in float32; the largest error is that of θ_1's 24 bits.
    near, far = (float_errors(build_table("none", LLAMA2), end) for end in ENDS)
    assert (near["float32_product"], far["float32_product"]) == pytest.approx((0.00772, 0.06184), abs=5e-6)
    assert far["float32_product"] / near["float32_product"] == pytest.approx(8.0, rel=0.05)
    assert near["bfloat16_inv_freq"] > 1.99 and far["bfloat16_inv_freq"] > 1.99


@pytest.mark.parametrize("name", ["none", "resonance", "yarn", "resonance_yarn", "dynamic_ntk"])
@pytest.mark.parametrize("end", ENDS)
def test_ours_is_within_half_a_unit_of_float32_at_any_position(name, end):
    # 2^-25 is half a float32 step below 1; it is reached almost, so nothing less than the rounding is told.
    assert 2.9e-8 < float_errors(build_table(name, LLAMA2), end)["longeval"] < 2.0**-25 * 1.01


def test_the_attention_factor_is_left_out():
    table = build_table("yarn", LLAMA2)
    assert table.attention_factor > 1.2
    without = dataclasses.replace(table, attention_factor=1.0)
    assert float_errors(table, 131072) == float_errors(without, 131072)


def test_fewer_positions_than_are_looked_at():
    errors = float_errors(RopeTable(inv_freq_F=np.array([0.1]), attention_factor=1.0), 5)
    exact_values = [function(m * 0.1) for m in range(5) for function in (math.cos, math.sin)]
    worst = max(abs(float(np.float32(value)) - value) for value in exact_values)
    assert errors["longeval"] == pytest.approx(worst, rel=1e-6)
