"""A stock engine's error against an independent one, and where it can be told beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longeval.export.encoding import multiplied, running, stock_error
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table
from longeval.rope.resonance import ResonanceParameters

GEOMETRY = Geometry(head_dim=16, theta=10000.0, native_length=4096, factor=4.0)


@pytest.mark.parametrize(
    ("name", "max_period"), [("yarn", "rounded"), ("resonance_yarn", "rounded"), ("resonance_yarn", "native")]
)
def test_the_error_of_a_float32_product_is_that_of_torch(name, max_period):
    table = build_table(name, GEOMETRY, resonance=ResonanceParameters(max_period=max_period))
    inv_freq_F = table.inv_freq_F.astype(np.float32)
    got = stock_error(multiplied(inv_freq_F), table.attention_factor, table, 10_000)
    positions_T = torch.arange(10_000)
    exact_TF = positions_T[:, None] * torch.from_numpy(table.inv_freq_F)
    if table.period_F is not None:
        period_F = torch.from_numpy(table.period_F)
        turns_F = 1 if table.turns_F is None else torch.from_numpy(table.turns_F)
        exact_TF = 2 * math.pi * (positions_T[:, None] * turns_F % period_F).double() / period_F
    theirs_TF = positions_T[:, None].float() * torch.from_numpy(inv_freq_F)
    off_TF = torch.maximum(
        (theirs_TF.cos().double() - exact_TF.cos()).abs(), (theirs_TF.sin().double() - exact_TF.sin()).abs()
    )
    position, feature = divmod(int(off_TF.argmax()), 8)
    assert got.largest == pytest.approx(off_TF.max().item() * table.attention_factor, rel=0.01)
    assert got.largest > 1e-4
    assert got.feature == feature
    assert abs(got.position - position) <= 7  # neighbours by a turn may be as bad


def test_a_frequency_that_float32_holds_is_off_by_the_product_alone():
    """θ = 1: the product is exact below 2^24, so only the cosine's own rounding is left."""
    table = RopeTable(inv_freq_F=np.array([1.0]), attention_factor=1.0)
    assert stock_error(multiplied(np.array([1.0], dtype=np.float32)), 1.0, table, 20_000).largest < 1e-7


def test_every_position_counts():
    """One position of all, in the last rows: a stock engine that is wrong there alone."""
    table = RopeTable(inv_freq_F=np.array([0.001, 0.0]), attention_factor=2.0)

    def stock(positions_T):
        angle_TF = (positions_T[:, None] * np.array([0.001, 0.0])).astype(np.float32)
        angle_TF[positions_T == 8999, 1] = 0.5
        return angle_TF

    got = stock_error(stock, 2.0, table, 9000)
    assert (got.position, got.feature) == (8999, 1)
    assert got.largest == pytest.approx(2 * math.sin(0.5), rel=1e-6)
    assert stock_error(stock, 2.0, table, 8999).largest < 1e-3


def test_another_attention_factor_is_an_error_too():
    table = RopeTable(inv_freq_F=np.array([1.0]), attention_factor=1.5)
    assert stock_error(multiplied(np.array([1.0], dtype=np.float32)), 1.0, table, 1).largest == 0.5


def test_llama_cpps_running_product():
    """Feature by feature in single floats, as `ggml_rope_cache_init` does, in plain Python."""
    divisor_F = np.array([1.0, 1.5, 2.25, 4.0], dtype=np.float32)
    got_TF = running(500000.0, divisor_F)(np.array([0, 1, 77, 131071], dtype=np.float32))
    scale = np.float32(500000.0 ** (-2 / 8))
    for row, position in enumerate((0, 1, 77, 131071)):
        theta = np.float32(position)
        for j in range(4):
            assert got_TF[row, j] == np.float32(theta / divisor_F[j])
            theta = np.float32(theta * scale)
