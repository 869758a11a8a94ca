"""Attention by distance: distances that a curve and a table need, and the mean cosine in closed form."""

import itertools
import math

import numpy as np
import pytest

from longeval.rope.analysis.description import decay_distances, mean_cosines
from longeval.rope.base import Geometry, RopeTable


def geometry(native=4096, factor=8.0):
    return Geometry(head_dim=128, theta=10000.0, native_length=native, factor=factor)


@pytest.mark.parametrize(
    ("native", "factor"), [(2, 1.0), (3, 1.0), (5, 3.0), (100, 1.0), (3000, 2.5), (4096, 8.0), (2**20, 64.0)]
)
def test_distances_reach_from_0_to_the_last_position_about_log_spaced(native, factor):
    distances = decay_distances(geometry(native, factor)).tolist()
    target = round(native * factor)
    assert distances == sorted(set(distances)) and len(distances) <= 400
    assert (distances[0], distances[-1]) == (0, target - 1)
    # Steps stay below 8% of the distance, or three tokens.
    assert all(b - a <= max(3, 0.08 * b) for a, b in itertools.pairwise(distances))
    round_ones = [2**k for k in range(40) if 2**k < target] + ([native] if native < target else [])
    assert set(round_ones) <= set(distances)


def test_a_single_position_has_no_distance_but_0():
    assert decay_distances(Geometry(head_dim=2, theta=10.0, native_length=1)).tolist() == [0]


def test_mean_cosines_equal_the_definition():
    thetas = [1.0, 0.3, 0.001]
    table = RopeTable(inv_freq_F=np.array(thetas), attention_factor=3.0)
    distances = np.array([0, 1, 2, 17, 1000])
    expected = [sum(math.cos(distance * theta) for theta in thetas) / 3 for distance in distances.tolist()]
    np.testing.assert_allclose(mean_cosines(table, distances), expected, atol=1e-14)


def test_rounded_features_come_back_exactly_however_far():
    period_F = np.array([6, 35, 100])
    table = RopeTable(inv_freq_F=2 * np.pi / period_F, attention_factor=1.0, period_F=period_F)
    multiple = 2100
    distances = np.array([0, multiple, 499 * multiple, 3 + multiple * 498])
    mean = mean_cosines(table, distances)
    assert mean[:3].tolist() == [1.0, 1.0, 1.0]
    expected = (math.cos(math.pi) + math.cos(2 * math.pi * 3 / 35) + math.cos(2 * math.pi * 3 / 100)) / 3
    assert mean[3] == pytest.approx(expected, abs=1e-15)
