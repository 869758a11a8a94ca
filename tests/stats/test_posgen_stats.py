"""Means over seeds: Student's quantiles against printed tables and the density, intervals in closed form."""

import math

import numpy as np
import pytest

from longeval.stats.seeds import over_seeds, paired_over_seeds, t_quantile

# Two-sided 95% points as printed in tables of Student's t.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize("degrees", PRINTED)
def test_quantiles_are_those_of_printed_tables(degrees):
    assert round(t_quantile(degrees), 3) == PRINTED[degrees]


@pytest.mark.parametrize("degrees", [2, 3, 12, 31])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_density_holds_the_level_within_the_quantile(degrees, level):
    t = t_quantile(degrees, level)
    x = np.linspace(-t, t, 400_001)
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = np.exp(log_scale - (degrees + 1) / 2 * np.log1p(x**2 / degrees))
    assert np.trapezoid(density, x) == pytest.approx(level, abs=1e-7)


def test_mean_variance_and_interval_in_closed_form():
    found = over_seeds({0: 60.0, 3: 62.0, 7: 64.0})
    assert (found.n, found.mean, found.variance) == (3, 62.0, 4.0)
    assert found.high - found.mean == pytest.approx(4.302653 * 2 / math.sqrt(3), abs=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_seed_has_neither_variance_nor_interval():
    found = over_seeds({4: 70.0})
    assert (found.n, found.mean, found.variance, found.low, found.high) == (1, 70.0, None, None, None)
    assert not found.excludes_zero
    assert over_seeds({}) is None


def test_intervals_end_where_values_must():
    found = over_seeds({0: 99.0, 1: 100.0}, lowest=0.0, highest=100.0)
    assert (found.low, found.high) == (pytest.approx(99.5 - 12.706 * 0.5, abs=1e-3), 100.0)
    assert over_seeds({0: 0.0, 1: 1.0}, lowest=0.0).low == 0.0
    assert over_seeds({0: 99.0, 1: 100.0}).high > 105


def test_differences_are_taken_seed_by_seed():
    base = {0: 50.0, 1: 70.0, 2: 90.0, 5: 1.0}
    resonance = {0: 51.0, 1: 71.0, 2: 91.0, 6: 99.0}
    found = paired_over_seeds(base, resonance)
    assert (found.n, found.mean, found.variance) == (3, 1.0, 0.0)
    assert found.excludes_zero
    assert paired_over_seeds(resonance, base).mean == -1.0
    assert paired_over_seeds({0: 1.0}, {1: 1.0}) is None


def test_an_interval_that_holds_zero_says_so():
    assert not paired_over_seeds({0: 50.0, 1: 50.0}, {0: 51.0, 1: 49.5}).excludes_zero
    assert paired_over_seeds({0: 50.0, 1: 50.0, 2: 50.0}, {0: 49.0, 1: 48.9, 2: 49.1}).excludes_zero
