"""Scores, intervals and paired comparisons of task samples, against scipy, closed forms and plain loops."""

import itertools
import math

import numpy as np
import pytest
from records import make_sample, make_samples
from scipy import stats as scipy_stats

from longeval.stats import scores
from longeval.stats.scores import bonett_price, mcnemar, paired_score, score, wilson


def slow_clustered_stderr(values, clusters):
    """Miller 2024, equation 4, as two nested loops, with the correction for a finite number of clusters."""
    n, mean = len(values), sum(values) / len(values)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if clusters[i] == clusters[j]:
                total += (values[i] - mean) * (values[j] - mean)
    num = len(set(clusters))
    return math.sqrt(total / n**2 * num / (num - 1))


@pytest.mark.parametrize(("right", "wrong"), [(9, 11), (0, 5), (5, 0)])
def test_independent_right_or_wrong_samples_have_wilsons_interval(right, wrong):
    n = right + wrong
    found = score(make_samples([1.0] * right + [0.0] * wrong), "accuracy")
    reference = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
    assert found.value == right / n
    assert found.stderr == pytest.approx(math.sqrt(right / n * wrong / n / (n - 1)), rel=1e-12)  # as lm-eval
    assert (found.ci_low, found.ci_high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert (found.n, found.clusters) == (n, None)
    assert found.how == {"method": "wilson", "kind": "sample", "units": n, "level": 0.95}


def test_one_sample_has_no_standard_error():
    found = score(make_samples([1.0]), "accuracy")
    assert (found.value, found.stderr, found.n) == (1.0, None, 1)
    assert found.ci_low == pytest.approx(0.2065, abs=1e-4)


def test_documents_cluster_the_standard_error():
    values = [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.25]
    clusters = ["a", "a", "b", "b", "b", "c", "c"]
    found = score(make_samples(values, clusters), "accuracy")
    assert found.stderr == pytest.approx(slow_clustered_stderr(values, clusters), rel=1e-12)
    assert found.clusters == 3
    assert (found.ci_low, found.how) == (None, None), "three documents are too few to resample"
    alone = score(make_samples(values), "accuracy")
    assert alone.stderr == pytest.approx(scipy_stats.sem(values), rel=1e-12)


def test_documents_with_one_sample_each_are_independent_samples():
    values = [1.0, 0.0, 1.0, 1.0]
    named, unnamed = score(make_samples(values, list("abcd")), "accuracy"), score(make_samples(values), "accuracy")
    assert (named.stderr, named.ci_low, named.how) == (unnamed.stderr, unnamed.ci_low, unnamed.how)
    assert (named.clusters, unnamed.clusters) == (4, None)


def test_a_sample_without_a_document_is_a_unit_of_its_own():
    values, clusters = [1.0, 0.0, 0.5, 1.0], ["a", "a", None, None]
    found = score(make_samples(values, clusters), "accuracy")
    assert found.stderr == pytest.approx(slow_clustered_stderr(values, ["a", "a", "x", "y"]), rel=1e-12)
    assert found.clusters == 1


def test_whole_documents_are_resampled(monkeypatch):
    monkeypatch.setattr(scores, "MIN_UNITS", 3)
    values, clusters = [1.0, 1.0, 0.0, 0.0, 0.0, 1.0], ["a", "a", "b", "b", "b", "c"]
    groups = [(2, 2.0), (3, 0.0), (1, 1.0)]
    means = [
        sum(groups[g][1] for g in draw) / sum(groups[g][0] for g in draw)
        for draw in itertools.product(range(3), repeat=3)
    ]
    found = score(make_samples(values, clusters), "accuracy", resamples=40_000)
    assert found.ci_low == pytest.approx(np.quantile(np.repeat(means, 1000), 0.025), abs=1e-9)
    assert found.ci_high == pytest.approx(np.quantile(np.repeat(means, 1000), 0.975), abs=1e-9)
    assert found.how["kind"] == "document"
    assert found.how["units"] == 3


def test_graded_samples_are_bootstrapped():
    values = np.random.default_rng(3).random(200).tolist()
    found = score(make_samples(values), "accuracy", seed=5)
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 * scipy_stats.sem(values), rel=0.08)
    assert found.how == {
        "method": "bootstrap", "kind": "sample", "units": 200, "level": 0.95, "resamples": 2000, "seed": 5,
    }  # fmt: skip
    assert found == score(make_samples(values), "accuracy", seed=5)
    assert found.ci_low != score(make_samples(values), "accuracy", seed=6).ci_low


def test_no_interval_below_eight_units_or_without_a_spread():
    assert score(make_samples([0.5] * 3 + [0.25] * 4), "accuracy").ci_low is None
    assert score(make_samples([0.5] * 4 + [0.25] * 4), "accuracy").ci_low is not None
    assert score(make_samples([0.1] * 20), "accuracy").how is None
    assert score(make_samples([0.1] * 20), "accuracy").stderr == 0.0


def test_documents_that_are_all_right_count_as_samples():
    found = score(make_samples([1.0] * 20, ["a", "b", "c", "d"] * 5), "accuracy")
    assert found.ci_low == pytest.approx(scipy_stats.binomtest(4, 4).proportion_ci(method="wilson").low, rel=1e-12)
    assert found.how == {"method": "wilson", "kind": "document", "units": 4, "level": 0.95}


def test_samples_without_the_metric_are_left_out():
    samples = [*make_samples([1.0, 0.0]), make_sample(2, 0.0, scores={"other": 1.0})]
    assert score(samples, "accuracy").n == 2
    with pytest.raises(ValueError, match="no sample has the metric f1"):
        score(samples, "f1")


@pytest.mark.parametrize(("a_only", "b_only"), [(0, 0), (0, 5), (0, 6), (3, 9), (40, 25), (1200, 1300)])
def test_mcnemar_is_the_exact_binomial_test(a_only, b_only):
    reference = scipy_stats.binomtest(a_only, a_only + b_only).pvalue if a_only + b_only else 1.0
    assert mcnemar(a_only, b_only) == pytest.approx(reference, rel=1e-9)
    assert mcnemar(b_only, a_only) == mcnemar(a_only, b_only)


def test_bonett_and_prices_interval_in_numbers():
    # Worked by hand for 3 against 11 of 40: p̃ = 12/42 and 4/42.
    low, high, how = bonett_price(3, 11, 40)
    centre, spread = 8 / 42, math.sqrt((16 / 42 - (8 / 42) ** 2) / 42)
    assert (low, high) == pytest.approx((centre - 1.959964 * spread, centre + 1.959964 * spread), abs=1e-6)
    assert how["method"] == "bonett_price"
    assert bonett_price(0, 10, 10)[1] == 1.0
    assert bonett_price(10, 0, 10)[0] == -1.0


def test_pairs_of_right_or_wrong_samples():
    a = make_samples([1.0] * 12 + [0.0] * 8)
    b = make_samples([1.0] * 10 + [0.0] * 2 + [1.0] * 7 + [0.0])
    found = paired_score(a, b, "accuracy")
    assert (found.value_a, found.value_b) == (0.6, 0.85)
    assert found.difference == pytest.approx(0.25)
    assert (found.a_only, found.b_only, found.discordant, found.n, found.unmatched) == (2, 7, 9, 20, 0)
    assert found.p == pytest.approx(scipy_stats.binomtest(2, 9).pvalue, rel=1e-12)
    assert (found.ci_low, found.ci_high) == bonett_price(2, 7, 20)[:2]
    assert found.stderr == pytest.approx(scipy_stats.sem([-1] * 2 + [1] * 7 + [0] * 11), rel=1e-12)
    swapped = paired_score(b, a, "accuracy")
    assert (swapped.difference, swapped.ci_low, swapped.p) == (-found.difference, -found.ci_high, found.p)


def test_pairs_go_by_index_and_prompt():
    a = [make_sample(4, 1.0), make_sample(0, 0.0), make_sample(1, 1.0), make_sample(2, 1.0)]
    b = [make_sample(0, 1.0), make_sample(1, 0.0, digest="cut to another length"), make_sample(9, 1.0)]
    found = paired_score(a, b, "accuracy")
    assert (found.n, found.difference, found.unmatched) == (1, 1.0, 4)
    assert paired_score(a, [make_sample(1, 1.0, digest="other")], "accuracy") is None
    assert paired_score(a, [], "accuracy") is None
    assert paired_score(a, b, "f1") is None


def test_pairs_that_share_documents_resample_documents():
    random = np.random.default_rng(0)
    clusters = [str(c) for c in range(12) for _ in range(5)]
    a = random.integers(0, 2, 60).astype(float)
    b = np.clip(a + np.repeat(random.integers(0, 2, 12), 5), 0, 1).astype(float)
    found = paired_score(make_samples(a, clusters), make_samples(b, clusters), "accuracy")
    assert found.p is None
    assert found.how["method"] == "bootstrap"
    assert (found.how["kind"], found.how["units"], found.clusters) == ("document", 12, 12)
    assert found.stderr == pytest.approx(slow_clustered_stderr((b - a).tolist(), clusters), rel=1e-12)
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 * found.stderr, rel=0.15)
    assert found.excludes_zero


def test_pairs_of_graded_samples_have_no_mcnemar():
    a, b = make_samples([0.25, 1.0] * 10), make_samples([0.5, 1.0] * 10)
    found = paired_score(a, b, "accuracy")
    assert (found.p, found.difference, found.b_only, found.a_only) == (None, 0.125, 10, 0)
    assert found.ci_low > 0


def test_no_difference_in_any_sample_is_not_certainty():
    same = make_samples([1.0, 0.0] * 10)
    found = paired_score(same, same, "accuracy")
    assert (found.difference, found.p, found.discordant) == (0.0, 1.0, 0)
    assert found.ci_high == -found.ci_low == pytest.approx(1.959964 * math.sqrt(2 / 22 / 22), abs=1e-6)
    shared = make_samples([1.0, 0.0] * 10, ["a", "b", "c", "d"] * 5)
    assert paired_score(shared, shared, "accuracy").ci_high == pytest.approx(bonett_price(0, 0, 4)[1])
    graded = make_samples([0.25, 0.5] * 10)
    assert paired_score(graded, graded, "accuracy").ci_low is None
    assert not found.excludes_zero


def test_wilson_covers_the_truth_as_often_as_it_says():
    """Exact coverage, summed over all outcomes: 93 to 98% at n = 20 for these truths; a Wald interval has 88 to 93%."""
    for truth in (0.1, 0.25, 0.5, 0.8):
        covered = 0.0
        for k in range(21):
            low, high, _ = wilson(k / 20, 20)
            covered += scipy_stats.binom.pmf(k, 20, truth) * (low <= truth <= high)
        assert 0.93 <= covered <= 0.98


def test_the_clustered_bootstrap_covers_nearly_as_often_as_it_says():
    """400 made-up tasks of 30 documents with 5 samples each, document effects large: 96%, and 79% as if independent."""
    random = np.random.default_rng(1)
    clusters = [str(c) for c in range(30) for _ in range(5)]
    hits = blind = 0
    for seed in range(400):
        share = np.repeat(random.beta(0.4, 0.4, 30), 5)
        values = (random.random(150) < share).astype(float)
        found = score(make_samples(values, clusters), "accuracy", seed=seed, resamples=500)
        low, high, _ = wilson(found.value, 150)
        hits += found.ci_low <= 0.5 <= found.ci_high
        blind += low <= 0.5 <= high
    assert 0.90 <= hits / 400 <= 0.97
    assert blind / 400 < 0.85
