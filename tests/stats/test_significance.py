import itertools

import numpy as np
import pytest
from records import make_nll, make_samples

from longeval.stats.bootstrap import same_windows, shared_windows
from longeval.stats.scores import mcnemar, paired_units
from longeval.stats.significance import FLIPS, holm, sign_flip


def test_few_units_are_tested_exactly():
    difference_U = np.array([0.3, -0.1, 0.25, 0.4, -0.05, 0.1])
    signs = itertools.product((1, -1), repeat=6)
    as_far = sum(abs(np.dot(sign, difference_U)) >= abs(difference_U.sum()) - 1e-12 for sign in signs)
    assert sign_flip(difference_U) == as_far / 64


def test_it_is_mcnemars_test_for_right_and_wrong():
    difference_U = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 2)
    assert sign_flip(difference_U) == pytest.approx(mcnemar(2, 9), abs=1e-12)
    many_U = np.array([1.0] * 20 + [-1.0] * 8 + [0.0] * 100)
    assert sign_flip(many_U) == pytest.approx(mcnemar(8, 20), abs=4 * np.sqrt(0.03 / FLIPS))


def test_many_units_agree_with_the_normal_limit_and_are_repeatable():
    difference_U = np.random.default_rng(1).normal(0.15, 1.0, size=200)
    from scipy.stats import norm

    z = difference_U.sum() / np.sqrt((difference_U**2).sum())
    p = sign_flip(difference_U)
    assert p == pytest.approx(2 * norm.sf(abs(z)), abs=0.02)
    assert p == sign_flip(difference_U) == sign_flip(-difference_U)
    assert sign_flip(np.full(60, 0.5)) == 1 / (FLIPS + 1)
    assert sign_flip(np.zeros(60)) == 1.0


def test_p_is_uniform_where_nothing_differs():
    random = np.random.default_rng(2)
    p_M = [sign_flip(random.standard_normal(10)) for _ in range(400)]
    assert np.mean(np.array(p_M) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p_M) == pytest.approx(0.5, abs=0.06)


def reference_holm(p_M, alpha):
    """Holm's procedure by its definition: from the smallest p on, until one is not below alpha / (number left)."""
    rejected = set()
    for rank, place in enumerate(np.argsort(p_M, kind="stable")):
        if not p_M[place] < alpha / (len(p_M) - rank):
            break
        rejected.add(int(place))
    return rejected


def test_holm_rejects_what_its_procedure_rejects():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1.0, 1.0]
    random = np.random.default_rng(3)
    for _ in range(200):
        p_M = list(random.random(7) ** 3)
        for alpha in (0.01, 0.05, 0.2):
            assert {place for place, p in enumerate(holm(p_M)) if p < alpha} == reference_holm(p_M, alpha)


def with_digests(windows, digests, **options):
    import dataclasses

    return dataclasses.replace(make_nll(windows, **options), windows_W=np.array(digests, dtype=np.uint64))


def test_windows_are_shared_by_their_digests():
    a = with_digests([[1, 2], [3], [4, 5, 6]], [7, 9, 8])
    b = with_digests([[40, 50, 60], [70, 70], [10, 20]], [8, 1, 7], names=("x", "y", "z"))
    of_a, of_b = shared_windows(a, b)
    assert of_a.nll_S.tolist() == [1, 2, 4, 5, 6]
    assert of_b.nll_S.tolist() == [10, 20, 40, 50, 60]
    assert same_windows(of_a, of_b) and of_a.document_W.tolist() == [0, 2]
    assert len(shared_windows(a, with_digests([[1, 2]], [5]))[0].nll_S) == 0
    assert shared_windows(a, make_nll([[1, 2]])) is None


def test_differences_of_scores_are_summed_by_document():
    a = make_samples([1, 0, 0, 1], ["x", "x", "y", "z"])
    b = make_samples([0, 0, 1, 1], ["x", "x", "y", "z"])
    assert paired_units(a, b, "accuracy").tolist() == [-1, 1, 0]
