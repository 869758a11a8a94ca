"""Feature gaps: by brute force and against published values."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rope import rope_reference as reference

from longeval.errors import LongEvalError
from longeval.rope.analysis import gaps
from longeval.rope.analysis.gaps import feature_gaps
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table
from longeval.rope.resonance import ResonanceParameters

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)


def gaps_by_definition(table, geometry):
    native, target = geometry.native_length, geometry.target_length
    if table.period_F is not None:
        turns_F = np.ones_like(table.period_F) if table.turns_F is None else table.turns_F
        pairs = zip(table.period_F.tolist(), turns_F.tolist(), strict=True)
        return [reference.feature_gap(native, target, period=period, turns=turns) for period, turns in pairs]
    return [reference.feature_gap(native, target, theta=float(theta)) for theta in table.inv_freq_F]


@pytest.mark.parametrize("name", ["none", "resonance", "pi", "resonance_yarn", "abf"])
@pytest.mark.parametrize(("native", "factor"), [(16, 4.0), (33, 2.5), (2, 9.0), (50, 1.02), (64, 1.5)])
def test_gaps_equal_the_definition(name, native, factor):
    geometry = Geometry(head_dim=16, theta=300.0, native_length=native, factor=factor)
    table = build_table(name, geometry)
    np.testing.assert_allclose(feature_gaps(table, geometry), gaps_by_definition(table, geometry), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    theta=st.floats(1e-4, 20.0),
    period=st.integers(1, 90),
    turns=st.integers(1, 40),
    native=st.integers(1, 24),
    extra=st.integers(1, 60),
    chunk=st.integers(1, 40),
)
def test_gaps_equal_the_definition_however_it_is_cut_into_chunks(theta, period, turns, native, extra, chunk):
    geometry = Geometry(head_dim=2, theta=10.0, native_length=native, factor=(native + extra) / native)
    plain = RopeTable(inv_freq_F=np.array([theta]), attention_factor=1.0)
    rounded = RopeTable(inv_freq_F=np.array([2 * np.pi / period]), attention_factor=1.0, period_F=np.array([period]))
    frequency_F = np.array([2 * np.pi * turns / period])
    several = dataclasses.replace(rounded, inv_freq_F=frequency_F, turns_F=np.array([turns]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaps, "_CHUNK", chunk)
        for table in (plain, rounded, several):
            expected = gaps_by_definition(table, geometry)
            np.testing.assert_allclose(feature_gaps(table, geometry), expected, atol=1e-11)


@pytest.mark.parametrize("longest", [1000, "native"])
def test_features_that_turn_several_times_in_the_native_length_have_a_gap_of_exactly_zero(longest):
    table = build_table("resonance", LLAMA2, resonance=ResonanceParameters(max_period=longest))
    assert table.turns_F is not None and table.turns_F[:20].max() > 10
    rounded = feature_gaps(build_table("resonance", LLAMA2), LLAMA2)
    found = feature_gaps(table, LLAMA2)
    assert np.all(found[:46] == 0.0) and found[46:].tolist() == rounded[46:].tolist()
    # With periods beyond the native length, some phases are never seen.
    beyond = build_table("resonance", LLAMA2, resonance=ResonanceParameters(max_period=3 * 4096))
    assert feature_gaps(beyond, LLAMA2)[:46].max() > 0


def test_gaps_of_llama2():
    plain = feature_gaps(build_table("none", LLAMA2), LLAMA2)
    rounded = feature_gaps(build_table("resonance", LLAMA2), LLAMA2)
    assert plain[63] == pytest.approx(1.986, abs=5e-4) and rounded[63] == pytest.approx(1.986, abs=5e-4)
    assert int(plain[:46].argmax()) == 12 and plain[12] == pytest.approx(0.0257, abs=5e-5)
    assert np.all(rounded[:46] == 0.0) and np.all(rounded[46:] > 0.1)


def test_gaps_are_zero_up_to_the_native_length():
    geometry = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=1.0)
    assert feature_gaps(build_table("none", geometry), geometry).tolist() == [0.0] * 64


@pytest.mark.parametrize("factor", [1e6, 1e9])
def test_gaps_out_of_reach_are_refused_before_any_work(factor):
    geometry = dataclasses.replace(LLAMA2, factor=factor)
    with pytest.raises(LongEvalError, match=r"--factor 1e\+0"):
        feature_gaps(build_table("none", LLAMA2), geometry)
