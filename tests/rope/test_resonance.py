"""Resonance: integer wavelengths or several turns, applied last; that angles repeat is in test_periodicity."""

import dataclasses
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longeval.errors import LongEvalError
from longeval.looks import RESONANCE_PARAMETERS
from longeval.rope.base import METHODS, Geometry, RopeTable
from longeval.rope.build import build_table
from longeval.rope.resonance import ResonanceParameters, resonate

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


def nearest_fraction(turns, most):
    """The fraction with a denominator of at most `most` that is nearest to `turns`, found by trying every one."""
    tried = [Fraction(round(turns * p) + more, p) for p in range(1, most + 1) for more in (-1, 0, 1)]
    return min((one for one in tried if one > 0), key=lambda one: (abs(one - turns), one.denominator))


@pytest.mark.parametrize("most", [1, 2, 7, 16, 64, 300])
@pytest.mark.parametrize("name", ["none", "pi", "yarn"])
def test_each_feature_has_the_nearest_fraction_with_a_period_up_to_the_longest(name, most):
    geometry = Geometry(head_dim=32, theta=500.0, native_length=64, factor=3.0)
    base = build_table(name, geometry)
    table = resonate(base, most)
    fractions = table.fractions()
    for j, wavelength in enumerate(base.wavelengths_F.tolist()):
        expected = (
            nearest_fraction(Fraction(1 / wavelength), most) if wavelength <= most else Fraction(1, round(wavelength))
        )
        assert fractions[j] == expected, j
        assert expected.numerator >= 1
    assert table.attention_factor == base.attention_factor


@given(st.lists(st.floats(1.0, 5000.0), min_size=1, max_size=20), st.integers(1, 5000))
def test_no_frequency_changes_by_more_than_its_share_of_the_longest_period(wavelengths, most):
    """Dirichlet: some q/p with p ≤ N is within 1/(p·(N+1)) of 1/λ, which is at most 1/N of 1/λ where λ ≤ N."""
    base = table_of(wavelengths)
    table = resonate(base, most)
    change_F = np.abs(table.inv_freq_F / base.inv_freq_F - 1)
    short_F = base.wavelengths_F <= most
    assert np.all(change_F[short_F] <= 1 / most + 1e-12)
    assert np.all(table.period_F[short_F] <= most)
    np.testing.assert_array_equal(table.period_F[~short_F], np.rint(base.wavelengths_F[~short_F]))


def test_up_to_a_period_of_six_nothing_differs_from_the_rounding_of_the_paper():
    rounded = build_table("resonance", GEOMETRY)
    for most in (1, 6):  # the fastest feature has a wavelength of 6.28 tokens
        table = build_table("resonance", GEOMETRY, resonance=ResonanceParameters(max_period=most))
        assert table.same_as(rounded) and table.digest(100) == rounded.digest(100)
    table = build_table("resonance", GEOMETRY, resonance=ResonanceParameters(max_period=13))
    assert (table.period_F[0], table.turns_F[0], rounded.period_F[0]) == (13, 2, 6)
    assert build_table("resonance", GEOMETRY, resonance=ResonanceParameters()).same_as(rounded)


def test_native_is_the_native_length_and_keeps_the_frequencies_of_smollm2():
    geometry = Geometry(head_dim=64, theta=1e5, native_length=8192, factor=2.0)
    plain = build_table("none", geometry)
    table = build_table("resonance", geometry, resonance=ResonanceParameters(max_period="native"))
    assert table.same_as(build_table("resonance", geometry, resonance=ResonanceParameters(max_period=8192)))
    critical_F = plain.wavelengths_F <= 8192
    assert critical_F.sum() == 20
    # Rounding moves the fastest feature by 4.5%; over 8192 tokens, that is 61 turns.
    drift_F = np.abs(table.inv_freq_F - plain.inv_freq_F)[critical_F] * 8192 / (2 * np.pi)
    assert drift_F.max() < 0.06
    rounded = np.abs(build_table("resonance", geometry).inv_freq_F - plain.inv_freq_F)
    assert rounded.max() * 8192 / (2 * np.pi) > 60
    assert (table.turns_F[critical_F] > 1).sum() >= 15


@pytest.mark.parametrize("name", ["resonance", "resonance_pi"])
def test_angles_are_those_of_exact_arithmetic(name):
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=4096, factor=2.0)
    table = build_table(name, geometry, resonance=ResonanceParameters(max_period="native"))
    positions_T = np.array([0, 1, 2, 4095, 4096, 99_991, 2**20 - 1, 2**40 + 12345])
    angles_TF = table.angles(positions_T)
    with mpmath.workdps(60):
        for row, m in enumerate(positions_T.tolist()):
            for j, (p, q) in enumerate(zip(table.period_F.tolist(), table.turns_F.tolist(), strict=True)):
                exact = 2 * mpmath.pi * mpmath.mpf(m) * q / p
                assert abs(mpmath.cos(exact) - math.cos(angles_TF[row, j])) < 2e-15
                assert abs(mpmath.sin(exact) - math.sin(angles_TF[row, j])) < 2e-15


@pytest.mark.parametrize("wrong", [0, -1, 2**31])
def test_periods_that_are_refused(wrong):
    with pytest.raises(LongEvalError, match=rf"max_period {wrong}: must be from 1"):
        ResonanceParameters(max_period=wrong)


def test_the_defaults_that_reports_know_are_those_of_the_parameters():
    assert dataclasses.asdict(ResonanceParameters()) == RESONANCE_PARAMETERS


def test_no_parameter_of_a_method_has_the_name_of_one_of_resonance():
    own = {field.name for method in METHODS.values() for field in dataclasses.fields(method.parameters)}
    assert not own & RESONANCE_PARAMETERS.keys()
