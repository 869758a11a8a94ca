"""The description of a method: the contract's keys, and each number against an independent one."""

import dataclasses
import json
import math

import numpy as np
import pytest

from longeval.rope.analysis.description import describe, describe_tables
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)


def test_description_is_plain_json_with_these_keys():
    description = describe("resonance_yarn", LLAMA2)
    keys = """
        name head_dim theta native_length factor length inv_freq wavelengths attention_factor
        pre_critical unique_positions feature_gap feature_gaps
        rotations rounding_errors periods turns interpolation decay collisions precision
    """
    assert list(description) == keys.split()
    table = build_table("resonance_yarn", LLAMA2)
    assert json.loads(json.dumps(description, allow_nan=False))["inv_freq"] == table.inv_freq_F.tolist()
    assert (description["name"], description["factor"], description["length"]) == ("resonance_yarn", 8.0, 32768)
    assert description["feature_gap"] == 0.0 and max(description["feature_gaps"]) > 1.9
    assert describe("none", LLAMA2)["feature_gap"] == pytest.approx(0.025727399635838907, rel=1e-9)


@pytest.mark.parametrize(
    ("wavelength", "native", "count", "unique"),
    [
        (62.83, 63, 2, "126"),
        (62.83, 62, 1, "6"),
        (63.25, 63, 1, "6"),  # rounded to the native length, but longer before
        (62.83, 2, 0, "1"),
    ],
)
def test_features_are_pre_critical_by_their_wavelength_before_rounding(wavelength, native, count, unique):
    theta = (wavelength / (2 * math.pi)) ** 2
    geometry = Geometry(head_dim=4, theta=theta, native_length=native, factor=2.0)
    rounded = describe("resonance", geometry)
    assert rounded["wavelengths"] == [6.0, 63.0]
    assert (rounded["pre_critical"], rounded["unique_positions"]) == (count, unique)
    plain = describe("none", geometry)
    assert (plain["pre_critical"], plain["unique_positions"]) == (count, None)


def test_rotations_rounding_and_interpolation():
    stretched = [4 * 2 * math.pi * 10000 ** (j / 32) for j in range(32)]
    rounded = [round(wavelength) for wavelength in stretched]
    geometry = Geometry(head_dim=64, theta=10000.0, native_length=4096, factor=4.0)
    plain = describe("pi", geometry)
    assert plain["rotations"] == pytest.approx([4096 / wavelength for wavelength in stretched], rel=1e-12)
    assert plain["rounding_errors"] == [0.0] * 32
    assert plain["interpolation"] == pytest.approx([4.0] * 32, rel=1e-15)
    whole = describe("resonance_pi", geometry)
    assert whole["rotations"] == [4096 / wavelength for wavelength in rounded]
    changes = [after / before for after, before in zip(rounded, stretched, strict=True)]
    assert whole["rounding_errors"] == pytest.approx([change - 1 for change in changes], abs=1e-15)
    # Rounding is part of what the method does to a frequency: 25 tokens for 2π is 3.979 of 4.
    assert whole["interpolation"] == pytest.approx([4 * change for change in changes], rel=1e-14)
    assert whole["interpolation"][0] == pytest.approx(25 / (2 * math.pi))


def test_interpolation_counts_from_where_the_method_starts():
    start = tuple(0.5 * 10000.0 ** (-j / 4) for j in range(4))
    geometry = Geometry(head_dim=8, theta=10000.0, native_length=64, factor=2.0, start=start)
    assert describe("pi", geometry)["interpolation"] == [2.0] * 4
    assert describe("none", geometry)["interpolation"] == [1.0] * 4


def test_decay_collisions_and_precision_are_those_of_this_table():
    geometry = Geometry(head_dim=8, theta=10000.0, native_length=100, factor=3.0)
    rounded, plain = describe("resonance", geometry), describe("none", geometry)
    distances, mean_cos = rounded["decay"]["distances"], rounded["decay"]["mean_cos"]
    assert (distances[0], distances[-1], len(distances)) == (0, 299, len(mean_cos))
    assert all(isinstance(distance, int) for distance in distances)
    at_128 = np.mean([math.cos(2 * math.pi * (128 % period) / period) for period in (6, 63, 628, 6283)])
    assert mean_cos[distances.index(128)] == pytest.approx(at_128, abs=1e-15)
    # 6 and 63 tokens: 126 positions, of 300.
    assert rounded["unique_positions"] == "126"
    assert rounded["collisions"] == {"pre_critical": 174, "float32": 0, "bfloat16": 0}
    assert plain["collisions"]["pre_critical"] is None
    assert [row["positions"] for row in rounded["precision"]] == [131072, 1048576]
    assert list(rounded["precision"][0]) == ["positions", "float32_product", "bfloat16_inv_freq", "longeval"]


def test_collisions_are_counted_up_to_the_target():
    # One feature of 6 tokens: everything from position 6 on is a repetition.
    geometry = Geometry(head_dim=2, theta=1e4, native_length=10, factor=5.0)
    for length in (None, 7):
        counts = describe("resonance", geometry, seq_len=length)["collisions"]
        assert counts == {"pre_critical": 44, "float32": 44, "bfloat16": 44}
    # No pre-critical feature tells nothing apart.
    geometry = Geometry(head_dim=2, theta=1e4, native_length=2, factor=5.0)
    assert describe("resonance", geometry)["collisions"] == {"pre_critical": 9, "float32": 4, "bfloat16": 4}
    # More unique positions than there are positions: none is lost.
    assert describe("resonance", LLAMA2)["collisions"]["pre_critical"] == 0


def test_too_many_positions_to_compare_are_null(monkeypatch):
    monkeypatch.setattr("longeval.rope.analysis.precision._MOST_VALUES", 100)
    geometry = Geometry(head_dim=4, theta=1e4, native_length=17, factor=3.0)
    assert describe("none", geometry)["collisions"] == {"pre_critical": None, "float32": None, "bfloat16": None}


def test_unique_positions_have_all_their_digits(monkeypatch):
    monkeypatch.setattr("longeval.rope.analysis.gaps._MOST_EVALUATIONS", 2**64)
    geometry = Geometry(head_dim=2048, theta=1e15, native_length=2**50)
    described = describe("resonance", geometry)
    expected = math.lcm(*(int(period) for period in described["wavelengths"][: described["pre_critical"]]))
    digits = described["unique_positions"]
    assert len(digits) > 4300
    # Checked by remainders, because Python's int() refuses so many digits.
    for prime in (10**9 + 7, 10**9 + 9):
        remainder = 0
        for digit in digits:
            remainder = (10 * remainder + int(digit)) % prime
        assert remainder == expected % prime


def test_tables_that_were_built_elsewhere():
    unrounded = build_table("pi", LLAMA2)
    table = build_table("resonance_pi", LLAMA2)
    description = describe_tables("resonance_pi", LLAMA2, unrounded=unrounded, table=table, length=32768)
    assert description == describe("resonance_pi", LLAMA2)
    other = dataclasses.replace(table, attention_factor=1.25)
    described = describe_tables("resonance_x", LLAMA2, unrounded=unrounded, table=other, length=77)
    assert (described["name"], described["attention_factor"], described["length"]) == ("resonance_x", 1.25, 77)


def test_the_sequence_length_reaches_dynamic_methods_only():
    assert describe("dynamic_ntk", LLAMA2, seq_len=4096)["inv_freq"] == describe("none", LLAMA2)["inv_freq"]
    assert describe("dynamic_ntk", LLAMA2)["inv_freq"] == describe("ntk", LLAMA2)["inv_freq"]
    short = describe("yarn", LLAMA2, seq_len=4096)
    assert short["length"] == 4096 and short["inv_freq"] == describe("yarn", LLAMA2)["inv_freq"]
