"""Feature gaps, pre-critical features, unique positions: by brute force and against published values."""

import json
import math
import time

import numpy as np
import pytest
import rope_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from longeval.errors import LongEvalError
from longeval.rope import analysis
from longeval.rope.analysis import describe, feature_gaps, pre_critical_count, unique_positions
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)


def gaps_by_definition(table, geometry):
    native, target = geometry.native_length, geometry.target_length
    if table.period_F is not None:
        return [reference.feature_gap(native, target, period=int(period)) for period in table.period_F]
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
    native=st.integers(1, 24),
    extra=st.integers(1, 60),
    chunk=st.integers(1, 40),
)
def test_gaps_equal_the_definition_however_it_is_cut_into_chunks(theta, period, native, extra, chunk):
    geometry = Geometry(head_dim=2, theta=10.0, native_length=native, factor=(native + extra) / native)
    plain = RopeTable(inv_freq_F=np.array([theta]), attention_factor=1.0)
    rounded = RopeTable(inv_freq_F=np.array([2 * np.pi / period]), attention_factor=1.0, period_F=np.array([period]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "_CHUNK", chunk)
        for table in (plain, rounded):
            expected = gaps_by_definition(table, geometry)
            np.testing.assert_allclose(feature_gaps(table, geometry), expected, atol=1e-11)


def test_gaps_of_llama2():
    plain = feature_gaps(build_table("none", LLAMA2), LLAMA2)
    rounded = feature_gaps(build_table("resonance", LLAMA2), LLAMA2)
    assert plain[63] == pytest.approx(1.986, abs=5e-4) and rounded[63] == pytest.approx(1.986, abs=5e-4)
    assert int(plain[:46].argmax()) == 12 and plain[12] == pytest.approx(0.0257, abs=5e-5)
    assert np.all(rounded[:46] == 0.0) and np.all(rounded[46:] > 0.1)


def test_gaps_are_zero_up_to_the_native_length():
    geometry = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=1.0)
    assert feature_gaps(build_table("none", geometry), geometry).tolist() == [0.0] * 64


def test_gaps_of_a_long_target_take_seconds_at_most():
    geometry = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=32.0)
    start = time.perf_counter()
    feature_gaps(build_table("none", geometry), geometry)
    # About 0.2 s; a quadratic search would take minutes.
    assert time.perf_counter() - start < 10


def test_gaps_out_of_reach_are_refused_before_any_work():
    for factor in (1e6, 1e306):
        geometry = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=factor)
        with pytest.raises(LongEvalError, match=r"--factor 1e\+(06|306): a target length of"):
            describe("none", geometry)


@pytest.mark.parametrize(
    ("d", "b", "native", "count"), [(128, 1e4, 4096, 46), (128, 1e4, 2048, 41), (64, 1e4, 64, 9), (64, 1e4, 2, 0)]
)
def test_pre_critical_counts(d, b, native, count):
    geometry = Geometry(head_dim=d, theta=b, native_length=native)
    assert pre_critical_count(build_table("none", geometry), geometry) == count
    assert describe("resonance", geometry)["pre_critical"] == count


def test_a_wavelength_that_only_rounding_brings_to_the_native_length_does_not_count():
    # λ_1 = 2π·10 = 62.83 rounds to 63: above L=62, but pre-critical neither before nor after; L=63 has it.
    geometry = Geometry(head_dim=4, theta=100.0, native_length=62, factor=2.0)
    assert describe("resonance", geometry)["pre_critical"] == 1
    # λ_1 = 63.25 rounds to 63 = L: before rounding it is longer, so it does not count.
    geometry = Geometry(head_dim=4, theta=(63.25 / (2 * math.pi)) ** 2, native_length=63, factor=2.0)
    description = describe("resonance", geometry)
    assert description["wavelengths"] == [6.0, 63.0]
    assert description["pre_critical"] == 1 and description["unique_positions"] == "6"


def test_unique_positions():
    digits = describe("resonance", LLAMA2)["unique_positions"]
    assert digits == "7057974406910048702415100928873416964126012399455200"
    assert unique_positions(None) is None
    assert unique_positions(np.array([], dtype=np.int64)) == "1"
    assert unique_positions(np.array([6, 10, 15])) == "30"


def test_unique_positions_have_all_their_digits_however_many():
    periods = np.arange(1, 12000)
    digits = unique_positions(periods)
    assert digits is not None and len(digits) > 4300
    # Checked in parts, because Python's int() refuses so many digits: the number modulo 10^9 and modulo 9.
    exact = math.lcm(*periods.tolist())
    assert int(digits[-9:]) == exact % 10**9
    assert sum(map(int, digits)) % 9 == exact % 9
    assert len(digits) == math.floor(math.log10(exact >> 10000) + 10000 * math.log10(2)) + 1


def test_description_is_the_contract():
    description = describe("resonance_yarn", LLAMA2)
    keys = """
        name head_dim theta native_length factor length inv_freq wavelengths attention_factor
        pre_critical unique_positions feature_gap feature_gaps
    """
    assert list(description) == keys.split()
    table = build_table("resonance_yarn", LLAMA2)
    assert description["name"] == "resonance_yarn" and description["factor"] == 8.0
    assert description["length"] == 32768
    assert json.loads(json.dumps(description, allow_nan=False))["inv_freq"] == table.inv_freq_F.tolist()
    assert description["feature_gap"] == 0.0 and max(description["feature_gaps"]) > 1.9
    assert describe("none", LLAMA2)["feature_gap"] == pytest.approx(0.025727399635838907, rel=1e-9)
    assert describe("none", LLAMA2)["unique_positions"] is None


def test_the_sequence_length_reaches_dynamic_methods_only():
    assert describe("dynamic_ntk", LLAMA2, seq_len=4096)["inv_freq"] == describe("none", LLAMA2)["inv_freq"]
    assert describe("dynamic_ntk", LLAMA2)["inv_freq"] == describe("ntk", LLAMA2)["inv_freq"]
    short = describe("yarn", LLAMA2, seq_len=4096)
    assert short["length"] == 4096 and short["inv_freq"] == describe("yarn", LLAMA2)["inv_freq"]
