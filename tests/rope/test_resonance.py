"""Resonance: integer wavelengths, applied last; that angles repeat is in test_periodicity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longeval.errors import LongEvalError
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table
from longeval.rope.resonance import resonate

GEOMETRY = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)


def table_of(wavelengths, attention_factor=1.0):
    return RopeTable(inv_freq_F=2 * np.pi / np.array(wavelengths, dtype=float), attention_factor=attention_factor)


def test_wavelengths_go_to_the_nearest_integer_and_the_attention_factor_stays():
    table = resonate(table_of([6.2831853, 7.49, 7.51, 54410.2], attention_factor=1.25))
    assert table.period_F is not None and table.period_F.tolist() == [6, 7, 8, 54410]
    np.testing.assert_array_equal(table.inv_freq_F, 2 * np.pi / np.array([6.0, 7.0, 8.0, 54410.0]))
    assert table.wavelengths_F.tolist() == [6.0, 7.0, 8.0, 54410.0]
    assert table.attention_factor == 1.25


@given(st.lists(st.floats(0.51, 1e9), min_size=1, max_size=40))
def test_rounding_moves_a_wavelength_by_at_most_half_a_token(wavelengths):
    table = resonate(table_of(wavelengths))
    assert table.period_F is not None and table.period_F.dtype == np.int64
    assert np.all(np.abs(table.period_F - table_of(wavelengths).wavelengths_F) <= 0.5)
    assert resonate(table).same_as(table)


def test_it_is_applied_after_the_method():
    scaled = build_table("resonance_pi", GEOMETRY)
    expected = np.rint(2 * np.pi * 8 / GEOMETRY.base_inv_freq())
    np.testing.assert_array_equal(scaled.wavelengths_F, expected)
    # Rounding first would give 6·8 = 48 tokens here.
    assert scaled.wavelengths_F[0] == 50


@pytest.mark.parametrize("wavelength", [0.4, 1e17])
def test_wavelengths_that_have_no_usable_integer(wavelength):
    with pytest.raises(LongEvalError, match=r"feature 1 has a wavelength of (0\.4|1e\+17) tokens"):
        resonate(table_of([6.0, wavelength]))
