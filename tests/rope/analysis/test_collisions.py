"""Positions that can't be told apart: by brute force over whole rows, and by their closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longeval.rope.analysis import precision
from longeval.rope.analysis.precision import Collisions, bfloat16_bits, count_collisions, round_to_bfloat16
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table


def repeats_by_definition(table, length):
    """Every row, all columns at once, as torch casts it: how many were there before."""
    cos_TF, sin_TF = (torch.from_numpy(part) for part in table.cos_sin(np.arange(length)))
    rows = torch.cat((cos_TF, sin_TF), dim=1)
    counts = [
        length - len(np.unique(rows.to(dtype).float().numpy(), axis=0)) for dtype in (torch.float, torch.bfloat16)
    ]
    return Collisions(*counts)


@settings(max_examples=40, deadline=None)
@given(
    wavelengths=st.lists(st.floats(2.0, 3000.0), min_size=1, max_size=5),
    rounded=st.booleans(),
    length=st.integers(1, 400),
    attention=st.sampled_from([1.0, 1.2079441541679836]),
)
def test_counts_equal_the_definition(wavelengths, rounded, length, attention):
    period_F = np.rint(wavelengths).astype(np.int64) if rounded else None
    wavelength_F = np.array(wavelengths) if period_F is None else period_F
    table = RopeTable(inv_freq_F=2 * np.pi / wavelength_F, attention_factor=attention, period_F=period_F)
    assert count_collisions(table, length) == repeats_by_definition(table, length)


@pytest.mark.parametrize("name", ["none", "resonance"])
@pytest.mark.parametrize(("d", "theta"), [(2, 10000.0), (8, 100.0), (16, 1e9), (32, 1.0)])
def test_counts_of_methods_equal_the_definition(name, d, theta):
    table = build_table(name, Geometry(head_dim=d, theta=theta, native_length=512, factor=4.0))
    assert count_collisions(table, 2048) == repeats_by_definition(table, 2048)


def test_rows_repeat_after_the_common_multiple():
    period_F = np.array([6, 10])
    table = RopeTable(inv_freq_F=2 * np.pi / period_F, attention_factor=1.0, period_F=period_F)
    assert count_collisions(table, 100) == Collisions(float32=70, bfloat16=70)
    assert count_collisions(table, 30) == Collisions(float32=0, bfloat16=0)


def test_too_many_to_count(monkeypatch):
    table = RopeTable(inv_freq_F=np.array([1.0, 0.1]), attention_factor=1.0)
    monkeypatch.setattr(precision, "_MOST_VALUES", 20)
    assert count_collisions(table, 10) == Collisions(float32=0, bfloat16=0)
    assert count_collisions(table, 11) is None


def test_bfloat16_rounds_as_torch_does():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    # Exact ties and their neighbours, above an even and above an odd last bit; the smallest numbers.
    ties = (rng.integers(0, 2**16, 1000, dtype=np.uint32) << np.uint32(16)) + np.uint32(0x8000)
    bits = np.concatenate((bits, ties, ties - np.uint32(1), ties + np.uint32(1), np.arange(100, dtype=np.uint32)))
    values = bits.view(np.float32)
    values = values[np.abs(values) < 3.3e38]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(round_to_bfloat16(values).view(np.uint32), expected.float().numpy().view(np.uint32))
    assert bfloat16_bits(np.array([1.0, -2.0], dtype=np.float32)).tolist() == [0x3F80, 0xC000]
