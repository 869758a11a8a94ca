"""Every method against an independent reference, its closed-form endpoints, and transformers where formulas agree."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rope import rope_reference as reference
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longeval.errors import LongEvalError
from longeval.rope.base import METHODS, Geometry
from longeval.rope.build import build_table, make_parameters
from longeval.rope.ntk_by_parts import _index

GEOMETRIES = [
    (128, 10000.0, 4096, 8.0),
    (64, 100000.0, 8192, 2.0),
    (64, 10000.0, 64, 4.0),
    (256, 1e6, 131072, 1.5),
    (16, 10.0, 360, 4.0),  # the ramp of yarn ends beyond the last feature
]


def geometry(d=128, b=10000.0, native=4096, s=8.0):
    return Geometry(head_dim=d, theta=b, native_length=native, factor=s)


def frequencies(name, shape, seq_len=None, **values):
    base = name.removeprefix("resonance_")
    return build_table(name, geometry(*shape), make_parameters(base, values), seq_len).inv_freq_F


def test_methods_are_registered_in_the_order_shown():
    expected = "none pi ntk dynamic_ntk ntk_by_parts yarn dynamic_yarn llama3 longrope abf"
    assert list(METHODS) == expected.split()
    without_factor = [name for name, method in METHODS.items() if not method.uses_factor]
    assert without_factor == ["none", "dynamic_ntk", "dynamic_yarn", "abf"]
    assert [name for name, method in METHODS.items() if method.length_dependent] == ["dynamic_ntk", "dynamic_yarn"]


@pytest.mark.parametrize("shape", GEOMETRIES)
def test_frequencies_equal_the_reference(shape):
    d, b, native, s = shape
    n = round(native * 2.5)
    factors = [1 + 0.1 * j for j in range(d // 2)]
    theta = reference.base_frequencies(d, b)
    expected = {
        "none": theta,
        "pi": [x / s for x in theta],
        "ntk": reference.ntk(d, b, s),
        "dynamic_ntk": reference.ntk(d, b, n / native),
        "ntk_by_parts": reference.by_parts(d, b, native, s),
        "yarn": reference.by_parts(d, b, native, s),
        "dynamic_yarn": reference.by_parts(d, b, native, n / native),
        "llama3": reference.llama3(d, b, native, s),
        "longrope": [x / f for x, f in zip(theta, factors, strict=True)],
        "abf": reference.base_frequencies(d, 500000.0),
    }
    assert set(expected) == set(METHODS)
    for name, values in expected.items():
        settings = {"short_factor": [1.0] * (d // 2), "long_factor": factors} if name == "longrope" else {}
        actual = frequencies(name, shape, n, **settings)
        assert actual.dtype == np.float64 and actual.shape == (d // 2,)
        np.testing.assert_allclose(actual, values, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", GEOMETRIES)
def test_parameters_reach_the_formula(shape):
    d, b, native, s = shape
    ramp, bands = {"beta_fast": 8, "beta_slow": 2}, {"low_freq_factor": 2, "high_freq_factor": 8}
    for name, values, expected in (
        ("ntk", {"base_rule": "linear"}, reference.ntk(d, b, s, "linear")),
        ("dynamic_ntk", {"base_rule": "linear"}, reference.ntk(d, b, s, "linear")),
        ("yarn", ramp, reference.by_parts(d, b, native, s, 8, 2)),
        ("ntk_by_parts", ramp, reference.by_parts(d, b, native, s, 8, 2)),
        ("llama3", bands, reference.llama3(d, b, native, s, 2, 8)),
        ("abf", {"base": 77.0}, reference.base_frequencies(d, 77.0)),
    ):
        np.testing.assert_allclose(frequencies(name, shape, **values), expected, rtol=1e-12, err_msg=name)


def test_endpoints():
    theta = geometry().base_inv_freq()
    # ntk's base is chosen so that the highest frequency stays and the lowest one is divided by exactly s.
    ntk = frequencies("ntk", (128, 10000.0, 4096, 8.0))
    assert ntk[0] == 1.0 and ntk[-1] == pytest.approx(theta[-1] / 8, rel=1e-12)
    for name in ("yarn", "ntk_by_parts", "llama3"):
        table = frequencies(name, (128, 10000.0, 4096, 8.0))
        # Not the other way round: the highest frequency stays bit for bit, the lowest one is interpolated.
        assert table[0] == theta[0] and table[10] == theta[10]
        assert table[-1] == theta[-1] / 8
        assert np.all(np.diff(table) < 0)


@pytest.mark.parametrize("name", ["pi", "ntk", "dynamic_ntk", "ntk_by_parts", "yarn", "dynamic_yarn", "llama3"])
def test_factor_one_is_the_model_itself(name):
    table = build_table(name, geometry(s=1.0))
    assert table.same_as(build_table("none", geometry(s=1.0)))


@pytest.mark.parametrize("name", ["dynamic_ntk", "dynamic_yarn"])
def test_dynamic_methods_use_the_sequence_and_nothing_else(name):
    static = name.removeprefix("dynamic_")
    for seq_len in (4096, 1):
        assert build_table(name, geometry(), seq_len=seq_len).same_as(build_table("none", geometry(s=1.0)))
    assert build_table(name, geometry(s=2.0), seq_len=3 * 4096).same_as(build_table(static, geometry(s=3.0)))
    assert build_table(name, geometry()).same_as(build_table(static, geometry()))


def test_attention_factors():
    def factor(name, s, seq_len=None, **values):
        base = name.removeprefix("resonance_")
        return build_table(name, geometry(s=s), make_parameters(base, values), seq_len).attention_factor

    lists = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    assert factor("yarn", 8.0) == factor("resonance_yarn", 8.0) == pytest.approx(1.2079441541679836, rel=1e-15)
    assert factor("dynamic_yarn", 8.0, 8192) == pytest.approx(0.1 * math.log(2) + 1, rel=1e-15)
    assert factor("dynamic_yarn", 8.0, 100) == 1.0
    assert factor("yarn", 8.0, attention_factor=1.0) == 1.0
    assert factor("longrope", 16.0, **lists) == pytest.approx(math.sqrt(1 + 4 / 12), rel=1e-15)
    assert factor("longrope", 1.0, **lists) == 1.0
    assert factor("longrope", 16.0, **lists, attention_factor=1.5) == 1.5
    assert {factor(name, 8.0) for name in ("none", "pi", "ntk", "ntk_by_parts", "llama3", "abf")} == {1.0}


def test_longrope_chooses_its_list_by_the_target_length():
    lists = {"short_factor": [2.0] * 64, "long_factor": [4.0] * 64}
    assert frequencies("longrope", (128, 10000.0, 4096, 1.0), 100000, **lists)[0] == 0.5
    assert frequencies("longrope", (128, 10000.0, 4096, 2.0), 10, **lists)[0] == 0.25


@given(
    d=st.integers(2, 40).map(lambda pairs: 2 * pairs),
    b=st.floats(1.5, 1e7),
    native=st.integers(2, 200_000),
    s=st.floats(1, 64),
)
def test_blends_stay_between_the_model_and_interpolation(d, b, native, s):
    theta = geometry(d, b, native, s).base_inv_freq()
    for name in ("ntk_by_parts", "yarn", "llama3"):
        table = build_table(name, geometry(d, b, native, s)).inv_freq_F
        assert np.all(table <= theta) and np.all(table >= theta / s * (1 - 1e-15))
        # A share that falls with the wavelength: the ratio to θ never rises again.
        assert np.all(np.diff(table / theta) <= 1e-12)


def transformers_table(rope_type, shape, seq_len=None, **extra):
    d, b, native, s = shape
    rope = {"rope_type": rope_type, "rope_theta": b, "factor": s, "original_max_position_embeddings": native, **extra}
    config = LlamaConfig(
        hidden_size=2 * d,
        num_attention_heads=2,
        head_dim=d,
        max_position_embeddings=round(native * s),
        rope_parameters=rope,
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=seq_len)
    return inv_freq.double().numpy(), factor


@pytest.mark.parametrize("shape", GEOMETRIES)
def test_equal_to_transformers_where_the_formula_is_the_same(shape):
    d, _, native, s = shape
    lists = {"short_factor": [1.0] * (d // 2), "long_factor": [1 + 0.25 * j for j in range(d // 2)]}
    cases = [
        ("pi", "linear", {}),
        ("yarn", "yarn", {}),
        ("llama3", "llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("longrope", "longrope", lists),
    ]
    for name, theirs, extra in cases:
        table = build_table(name, geometry(*shape), make_parameters(name, extra))
        inv_freq, factor = transformers_table(theirs, shape, seq_len=round(native * s), **extra)
        np.testing.assert_allclose(table.inv_freq_F, inv_freq, rtol=1e-6, err_msg=name)
        assert table.attention_factor == pytest.approx(factor, rel=1e-12)


def test_a_very_short_native_length_interpolates_instead_of_turning_the_ramp_around():
    # Both bounds lie below 0 here: the ramp must stay a step upwards.
    table = frequencies("ntk_by_parts", (16, 10.0, 4, 2.0))
    np.testing.assert_array_equal(table[1:], geometry(16, 10.0, native=4).base_inv_freq()[1:] / 2)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("ntk", (2, 10000.0, 64, 2.0), "--head-dim 2"),
        ("dynamic_ntk", (2, 10000.0, 64, 1.0), "--head-dim 2"),
        ("ntk", (4, 10000.0, 64, 1e200), r"--factor 1e\+200"),
        ("yarn", (64, 1.0, 64, 2.0), "--theta 1"),
        ("ntk_by_parts", (64, 0.5, 64, 2.0), "--theta 0.5"),
    ],
)
def test_geometries_for_which_a_method_is_undefined(name, shape, words):
    with pytest.raises(LongEvalError, match=words):
        build_table(name, geometry(*shape), seq_len=64)


def test_longrope_refuses_lists_of_another_model():
    parameters = make_parameters("longrope", {"short_factor": [1.0] * 32, "long_factor": [1.0] * 64})
    with pytest.raises(LongEvalError, match=r"longrope\.short_factor: 32 .* 128 .* 64"):
        build_table("longrope", geometry(), parameters)


def test_a_long_table_is_its_rows():
    table = build_table("yarn", Geometry(head_dim=8, theta=10000.0, native_length=64, factor=4.0))
    cos_TF, sin_TF = table.cos_sin(np.arange(5, 20005, dtype=np.int64))
    assert cos_TF.dtype == sin_TF.dtype == np.float32
    for row in (0, 8191, 8192, 8193, 19999):
        angle_F = (row + 5) * table.inv_freq_F
        np.testing.assert_array_equal(cos_TF[row], (np.cos(angle_F) * table.attention_factor).astype(np.float32))
        np.testing.assert_array_equal(sin_TF[row], (np.sin(angle_F) * table.attention_factor).astype(np.float32))


@pytest.mark.parametrize(
    ("frequency", "index"), [(1.0, 0.0), (10**-0.5, 0.5), (1e-2, 1.5), (10**-3.25, 2.25), (10**0.5, -0.5), (1e-6, 5.0)]
)
def test_the_index_of_a_frequency_that_comes_from_no_base_is_linear_in_its_logarithm(frequency, index):
    # ln θ falls by 1, 2 and 1 times ln 10 from feature to feature; beyond the ends as at the ends.
    assert _index(np.array([1.0, 1e-1, 1e-3, 1e-4]), np.log(frequency)) == pytest.approx(index, abs=1e-12)
