"""Intervals of means and of paired differences: closed forms, all resamples of small examples, coverage."""

import itertools
import math

import numpy as np
import pytest
from records import make_nll

from longeval.stats import bootstrap as stats
from longeval.stats.bootstrap import Units, averaged, by_position, interval, paired, position_edges, resampling_units


def units_of(numerator, denominator, kind="document"):
    return Units(numerator_U=np.array(numerator, float), denominator_U=np.array(denominator, float), kind=kind)


def test_equal_tokens_give_an_interval_of_no_width():
    found = interval(resampling_units(make_nll([[2.0] * 100] * 12), "prefix"))
    assert (found.low, found.high) == pytest.approx((math.exp(2), math.exp(2)), rel=1e-12)
    assert (found.kind, found.units, found.level, found.resamples, found.seed) == ("document", 12, 0.95, 2000, 0)


def test_a_handful_of_units_gives_no_interval():
    assert interval(units_of(np.arange(7), np.ones(7))) is None
    assert interval(units_of(np.arange(8), np.ones(8))) is not None


def test_interval_agrees_with_all_resamples_of_a_tiny_example(monkeypatch):
    monkeypatch.setattr(stats, "MIN_UNITS", 2)
    numerator, denominator = [1.0, 4.0, 9.0, 2.0], [1.0, 2.0, 3.0, 4.0]
    means = sorted(
        sum(numerator[i] for i in draw) / sum(denominator[i] for i in draw)
        for draw in itertools.product(range(4), repeat=4)
    )
    found = interval(units_of(numerator, denominator), resamples=40_000, level=0.5)
    assert found.low == pytest.approx(math.exp(np.quantile(means, 0.25)), rel=0.01)
    assert found.high == pytest.approx(math.exp(np.quantile(means, 0.75)), rel=0.01)


def test_interval_is_reproducible_and_its_seed_matters():
    units = units_of(np.arange(20), np.ones(20))
    assert interval(units, seed=1) == interval(units, seed=1)
    assert interval(units, seed=1).low != interval(units, seed=2).low


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(stats, "_INDEX_BUDGET", 1000)
    units = units_of(np.arange(400), np.ones(400))
    small = interval(units, resamples=500)
    assert small.low < math.exp(199.5) < small.high
    assert math.log(small.high) - math.log(small.low) == pytest.approx(2 * 1.96 * 115.5 / 20, rel=0.15)


@pytest.mark.parametrize("budget", [1 << 21, 100])
def test_means_are_those_of_fresh_draws_however_often_they_were_drawn_before(monkeypatch, budget):
    monkeypatch.setattr(stats, "_INDEX_BUDGET", budget)
    numerator, denominator = np.arange(20.0), np.linspace(1.0, 3.0, 20)
    for seed, num_units in [(0, 20), (1, 20), (0, 12), (0, 20), (0, 12)]:
        drawn = np.random.default_rng(seed).integers(num_units, size=(50, num_units))
        weight = denominator[:num_units]
        once, twice = stats.resampled_means(weight, (numerator[:num_units], 2 * weight), 50, seed)
        expected = [sum(numerator[i] for i in draw) / sum(denominator[i] for i in draw) for draw in drawn]
        np.testing.assert_allclose(once, expected, rtol=1e-12)
        np.testing.assert_allclose(twice, 2.0, rtol=1e-12)


def test_a_collapsed_model_gives_infinity_without_a_warning(recwarn):
    found = interval(units_of([800.0, 900.0, 850.0] * 3, [1.0] * 9))
    assert (found.low, found.high) == (math.inf, math.inf)
    fine, collapsed = make_nll([[1.0]] * 10), make_nll([[800.0 + d] for d in range(10)])
    difference = paired(fine, collapsed, "prefix")
    assert (difference.ratio, difference.low) == (math.inf, math.inf)
    assert math.isfinite(difference.points)
    assert not recwarn.list


@pytest.mark.parametrize("protocol", ["prefix", "sliding_window_mean"])
def test_coverage_over_documents(protocol):
    """Documents with means of their own: 95% intervals cover the population's mean about 95% of the time."""
    random, truth, covered = np.random.default_rng(5), 2.0, 0
    for trial in range(200):
        windows = [random.normal(truth + 0.3 * random.normal(), 1.0, 50) for _ in range(30)]
        found = interval(resampling_units(make_nll(windows), protocol), resamples=400, seed=trial)
        covered += found.low <= math.exp(truth) <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_coverage_over_blocks_of_correlated_tokens():
    """One document with autocorrelated tokens: blocks cover the mean, single tokens as units would not."""
    random, truth, rho, covered, covered_tokens = np.random.default_rng(6), 2.0, 0.9, 0, 0
    for trial in range(120):
        noise = random.normal(0, math.sqrt(1 - rho**2), 12_000).tolist()
        state = random.normal()
        series = np.array([state := rho * state + step for step in noise]) + truth
        nll = make_nll([series])
        found = interval(resampling_units(nll, "prefix"), resamples=300, seed=trial)
        covered += found.low <= math.exp(truth) <= found.high
        half = 1.96 * series.std() / math.sqrt(len(series))
        covered_tokens += abs(series.mean() - truth) <= half
    assert covered / 120 >= 0.86
    assert covered_tokens / 120 < 0.7


def test_paired_difference_in_closed_form():
    a = make_nll([[1.0, 2.0]] * 10)
    b = make_nll([[1.5, 2.5]] * 10)
    found = paired(a, b, "prefix")
    assert found.ratio == pytest.approx(math.expm1(0.5))
    assert (found.low, found.high) == pytest.approx((math.expm1(0.5), math.expm1(0.5)))
    assert found.points == pytest.approx(math.exp(2.0) - math.exp(1.5))
    assert found.excludes_zero
    assert paired(b, a, "prefix").ratio == pytest.approx(math.expm1(-0.5))


def test_paired_difference_of_equal_cells_is_zero():
    nll = make_nll(list(np.random.default_rng(0).exponential(2.0, (12, 80))))
    found = paired(nll, nll, "prefix")
    assert (found.ratio, found.low, found.high, found.points) == (0.0, 0.0, 0.0, 0.0)
    assert not found.excludes_zero


def test_paired_interval_is_much_narrower_than_unpaired_ones():
    random = np.random.default_rng(1)
    shared = [random.exponential(2.0, 400) + random.normal(0, 0.4) ** 2 for _ in range(30)]
    a = make_nll(shared)
    b = make_nll([window + random.normal(0.01, 0.02, 400) for window in shared])
    found = paired(a, b, "prefix")
    alone = interval(resampling_units(a, "prefix"))
    relative = (alone.high - alone.low) / math.exp(resampling_units(a, "prefix").mean)
    assert found.high - found.low < relative / 20
    assert found.low < math.expm1(0.01) < found.high
    assert found.excludes_zero


def test_paired_covers_the_true_difference():
    random, covered = np.random.default_rng(2), 0
    for trial in range(150):
        shared = [random.exponential(2.0, 60) + random.exponential(1.0) for _ in range(25)]
        b = make_nll([window + 0.02 + random.normal(0, 0.05) for window in shared])
        found = paired(make_nll(shared), b, "prefix", resamples=400, seed=trial)
        covered += found.low <= math.expm1(0.02) <= found.high
    assert 0.88 <= covered / 150 <= 0.99


@pytest.mark.parametrize(
    ("num_windows", "change"),
    [
        (11, {}),
        (10, {"contexts": [2] * 10}),
        (10, {"starts": [5] * 10}),
        (10, {"names": tuple(f"other{d}" for d in range(10))}),
    ],
)
def test_other_windows_are_not_paired(num_windows, change):
    other = make_nll([[1.0, 2.0]] * num_windows, **change)
    assert paired(make_nll([[1.0, 2.0]] * 10), other, "prefix") is None


def test_by_position_counts_context_and_leaves_out_what_is_outside_the_edges():
    nll = make_nll([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0]], contexts=[1, 3])
    curve = by_position(nll, np.array([1.0, 3.0, 5.0, 9.0]))
    assert curve.tokens_K.tolist() == [2, 4, 0]
    assert curve.mean_nll_K[:2].tolist() == [1.5, (3.0 + 4.0 + 10.0 + 20.0) / 4]
    assert math.isnan(curve.mean_nll_K[2])
    inner = by_position(make_nll([[1.0, 2.0, 3.0, 4.0]]), np.array([2.0, 4.0]))
    assert (inner.tokens_K.tolist(), inner.mean_nll_K.tolist()) == ([2], [2.5])


@pytest.mark.parametrize("spacing", ["log", "linear"])
def test_edges_cover_every_position_once(spacing):
    edges = position_edges(1000, bins=10, spacing=spacing)
    assert (edges[0], edges[-1]) == (1, 1000)
    assert (np.diff(edges) > 0).all()
    nll = make_nll([np.ones(999)])
    assert by_position(nll, edges).tokens_K.sum() == 999
    if spacing == "linear":
        assert len(edges) == 11
        assert np.ptp(np.diff(edges)) <= 1
    else:
        assert edges[5] == pytest.approx(math.sqrt(1000), abs=1)


def test_the_mean_over_models_is_the_geometric_mean_of_their_perplexities():
    one, other = make_nll([[1.0, 2.0]] * 10), make_nll([[3.0, 2.5]] * 10)
    mean = averaged([one, other])
    assert mean.nll_S.tolist() == [2.0, 2.25] * 10
    expected = math.sqrt(math.exp(one.mean("prefix")) * math.exp(other.mean("prefix")))
    assert math.exp(mean.mean("prefix")) == pytest.approx(expected)
    assert averaged([one]) is one
    assert averaged([]) is None


def test_models_that_scored_other_tokens_have_no_mean():
    assert averaged([make_nll([[1.0, 2.0]] * 10), make_nll([[1.0, 2.0, 3.0]] * 10)]) is None
    assert averaged([make_nll([[1.0, 2.0]] * 2), make_nll([[1.0, 2.0]] * 2, names=("a", "b"))]) is None
