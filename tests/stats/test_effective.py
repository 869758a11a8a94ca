"""Effective lengths: closed forms, an independent calculation, and how often intervals cover a known truth."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from records import make_nll, make_samples
from scipy.stats import norm

from longeval.report.collect import collect
from longeval.stats.bootstrap import resampling_units
from longeval.stats.effective import (
    Joint,
    effective_length,
    from_values,
    joint_nll,
    joint_scores,
    keeps_base,
    not_above_first,
    num_base,
    num_documents,
    reaches_bar,
)

LENGTHS = (1024, 2048, 4096, 8192)


@pytest.mark.parametrize(
    ("rule", "values", "length"),
    [
        (not_above_first, [3.0, 2.9, 3.1, 2.8], 2048),  # passing at 8k again is luck
        (not_above_first, [3.0, 3.0, 3.0, 3.0], 8192),  # equal is not worse
        (not_above_first, [3.0, 3.1, 2.0, 2.0], 1024),
        (not_above_first, [np.inf, np.inf, 3.0, 2.0], 8192),
        (not_above_first, [3.0, 2.0, np.inf, 2.0], 2048),
        (keeps_base(1), [1.0, 0.85, 0.84, 0.9], 2048),  # 85% itself is enough
        (keeps_base(2), [0.8, 1.0, 0.9, 0.9], None),  # the base is the best of two, and the first misses it
        (keeps_base(2), [0.9, 1.0, 0.85, 0.2], 4096),
        (keeps_base(1), [0.0, 0.0, 0.0, 0.0], None),  # 85% of nothing
        (reaches_bar, [0.95, 0.856, 0.855, 0.9], 2048),
        (reaches_bar, [0.85, 0.99, 0.99, 0.99], None),
    ],
)
def test_first_failure_ends_the_effective_length(rule, values, length):
    found = from_values(LENGTHS, rule, values)
    assert (found.length, found.ends, found.lengths) == (length, None, LENGTHS)


def test_base_scores_are_those_up_to_1k_or_the_shortest():
    assert num_base([256, 512, 1024, 2048]) == 3
    assert num_base([4096, 8192]) == 1


def prefix(documents, lengths):
    """NLLs at several lengths of documents that are lists of token values, one window each."""
    found = []
    for length in lengths:
        inside = [d for d, values in enumerate(documents) if len(values) >= length - 1]
        names = tuple(f"doc{d}" for d in range(len(documents)))
        windows = [documents[d][: length - 1] for d in inside]
        found.append(make_nll(windows, documents=inside, names=names))
    return found


def test_documents_are_drawn_at_all_lengths_together():
    """Documents differ widely, and each is worse by 0.01 at 128: with joint draws that is certain."""
    documents = [[level] * 63 + [level + 0.02] * 64 for level in np.linspace(1, 9, 12)]
    joint = joint_nll(prefix(documents, (64, 128)), "prefix")
    assert joint.kind == "document"
    assert joint.numerator_NU.shape == (2, 12)
    found = effective_length((64, 128), not_above_first, [joint], resamples=500)
    assert (found.length, found.ends.low, found.ends.high) == (64, 64, 64)
    assert (found.ends.units, found.ends.kind) == (12, "document")


def test_blocks_of_one_document_keep_text_that_only_longer_windows_reach_apart():
    dice = np.random.default_rng(0)
    text = dice.gamma(2.0, 1.5, 4095)
    nlls = prefix([text], (1024, 2048, 4096))
    joint = joint_nll(nlls, "prefix")
    assert joint.kind == "block"
    assert np.bincount(joint.stratum_U).tolist() == [33, 32, 32]  # 1,023 tokens make blocks of 31
    np.testing.assert_allclose(joint.denominator_NU.sum(axis=1), [1023, 2047, 4095])
    np.testing.assert_allclose(joint.value_N, [nll.mean("prefix") for nll in nlls], rtol=1e-12)
    # What 1k scores is the same blocks at 2k, and blocks that it does not reach are empty.
    np.testing.assert_array_equal(joint.numerator_NU[0, :33], joint.numerator_NU[1, :33])
    assert not joint.denominator_NU[0, 33:].any()


@pytest.mark.parametrize("protocol", ["sliding", "sliding_window_mean", "stream"])
def test_blocks_of_windows_sum_to_the_value_of_each_length(protocol):
    dice = np.random.default_rng(1)
    nlls = []
    for size in (64, 128):
        starts = list(range(0, 4096, size))
        windows = [dice.gamma(2.0, 1.5, size) for _ in starts]
        nlls.append(make_nll(windows, documents=[0] * len(starts), starts=[s + 1 for s in starts], names=("doc0",)))
    joint = joint_nll(nlls, protocol)
    assert joint.kind == "block"
    np.testing.assert_allclose(joint.value_N, [nll.mean(protocol) for nll in nlls], rtol=1e-12)
    assert joint.can_resample


def test_only_documents_that_every_length_has_are_compared():
    documents = [[2.0] * 127, [9.0] * 63, [2.0] * 127]
    nlls = prefix(documents, (64, 128))
    joint = joint_nll(nlls, "prefix")
    np.testing.assert_allclose(joint.value_N, [2.0, 2.0])
    assert num_documents(nlls) == (2, 3)
    apart = [make_nll([[1.0] * 9], names=("a",)), make_nll([[1.0] * 19], names=("b",))]
    assert joint_nll(apart, "prefix") is None


def test_samples_are_matched_by_index_and_documents_drawn_whole():
    short = make_samples([1, 1, 0, 1], clusters=["a", "a", "b", "c"])
    long = make_samples([1, 0, 0, 1], clusters=["a", "a", "b", "c"])
    joint = joint_scores([short, long[:3]], "accuracy")
    np.testing.assert_array_equal(joint.numerator_NU, [[2, 0], [1, 0]])
    np.testing.assert_array_equal(joint.denominator_NU, [[2, 1], [2, 1]])
    assert joint.kind == "document"
    assert joint_scores([short[:1], long[1:]], "accuracy") is None


def test_no_interval_of_few_units():
    joint = joint_scores([make_samples([1] * 7), make_samples([0] * 7)], "accuracy")
    found = effective_length((1024, 2048), keeps_base(1), [joint])
    assert (found.length, found.ends) == (1024, None)


def test_an_average_is_the_mean_of_its_tasks_whatever_their_samples():
    many = joint_scores([make_samples([1] * 100), make_samples([1] * 100)], "accuracy")
    few = joint_scores([make_samples([1] * 10), make_samples([0] * 10)], "accuracy")
    found = effective_length((1024, 2048), keeps_base(1), [many, few])  # 1.0, then 0.5; by samples 0.91
    assert (found.length, found.ends.low, found.ends.high, found.ends.units) == (1024, 1024, 1024, 110)


def test_interval_against_plain_loops():
    """The same interval from an independent bootstrap in plain Python, with other random numbers."""
    dice = np.random.default_rng(5)
    documents = [list(dice.gamma(2.0, 1.0 + 0.2 * dice.random(), 1023)) for _ in range(14)]
    lengths = (128, 256, 512, 1024)
    nlls = prefix(documents, lengths)
    resamples = 4000
    found = effective_length(lengths, not_above_first, [joint_nll(nlls, "prefix")], resamples=resamples, seed=3)

    means = [[sum(document[: length - 1]) / (length - 1) for length in lengths] for document in documents]
    draw = random.Random(8)
    passed, alone = [], [0] * len(lengths)
    for _ in range(resamples):
        drawn = draw.choices(means, k=len(means))
        values = [sum(mean[n] for mean in drawn) for n in range(len(lengths))]
        passes = [value <= values[0] for value in values]
        alone = [count + hit for count, hit in zip(alone, passes, strict=True)]
        passed.append(next((n for n, hit in enumerate(passes) if not hit), len(lengths)))
    low = sorted(passed)[round(0.025 * resamples) - 1]
    high = next((n for n, count in enumerate(alone) if count < 0.025 * resamples), len(lengths))
    values = [sum(mean[n] for mean in means) for n in range(len(lengths))]
    point = next((n for n, value in enumerate(values) if value > values[0]), len(lengths))
    expected = [lengths[count - 1] for count in (point, low, high)]
    assert [found.length, found.ends.low, found.ends.high] == expected
    assert low < high  # an interval that says something
    assert resampling_units(nlls[0], "prefix").kind == "document"


def test_blocks_of_a_real_run_against_plain_loops():
    """yarn at 64 and 128 tokens of two documents, as a model gave it; blocks cut and drawn in plain Python."""
    collection = collect([str(Path(__file__).parents[1] / "golden" / "runs" / "ppl")])
    records = {r.length: r for r in collection.records if r.metric == "perplexity" and r.pe == "resonance_yarn"}
    short, long = (collection.nll(records[length].cell) for length in (64, 128))
    joint = joint_nll([short, long], "prefix")
    np.testing.assert_allclose(np.exp(joint.value_N), [records[n].value for n in (64, 128)], rtol=1e-6)

    own, further = [], []
    for d in range(2):
        near = [float(x) for x in short.of_window(d, 1)]
        far = [float(x) for x in long.of_window(d, 1)]
        cuts = [-(-b * 63 // 4) for b in range(5)]  # 63 tokens: four blocks
        own += [(sum(near[a:b]), sum(far[a:b]), b - a) for a, b in itertools.pairwise(cuts)]
        further += [sum(far[63 + 16 * b : 79 + 16 * b]) for b in range(4)]
    draw, passes = random.Random(2), 0
    for _ in range(10_000):
        near = draw.choices(own, k=8)
        tokens = sum(block[2] for block in near)
        first = sum(block[0] for block in near) / tokens
        second = (sum(block[1] for block in near) + sum(draw.choices(further, k=8))) / (tokens + 128)
        passes += second <= first
    value_RN = joint.resampled(10_000, 1)
    share = (value_RN[:, 1] <= value_RN[:, 0]).mean()
    assert 0.02 < share < 0.98
    assert share == pytest.approx(passes / 10_000, abs=0.02)


STUDIES = 200


def coverage(truth_N, study, rule):
    """Share of studies whose interval holds the effective length of the true curve, and of intervals below all."""
    lengths = [1024 * 2**n for n in range(len(truth_N))]
    truth = from_values(lengths, rule, truth_N).length or 0
    hits = short = 0
    for number in range(STUDIES):
        value_UN = study(np.random.default_rng(number))
        joint = Joint(
            numerator_NU=value_UN.T.copy(),
            denominator_NU=np.ones_like(value_UN.T),
            stratum_U=np.zeros(len(value_UN), dtype=np.int64),
            kind="document",
        )
        ends = effective_length(lengths, rule, [joint], resamples=500, seed=number).ends
        hits += (ends.low or 0) <= truth <= (ends.high or 0)
        short += ends.low != lengths[0] or ends.high != lengths[-1]
    return hits / STUDIES, short / STUDIES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth_N", "least", "informative"),
    [
        ([3.0, 2.97, 2.98, 3.05], 0.95, 0.9),  # fails clearly at the fourth
        ([3.0, 2.985, 3.015, 3.1], 0.95, 0.9),  # near the threshold on both sides
        ([3.0, 2.97, 2.94, 2.92], 0.95, 0.5),  # passes everywhere
        ([3.0, 3.04, 3.1, 3.2], 0.95, 0.9),  # fails at once
        ([3.0, 3.0, 3.0, 3.0], 0.88, 0.0),  # on the threshold throughout: the worst case
    ],
)
def test_intervals_of_perplexity_cover_the_true_effective_length(truth_N, least, informative):
    """200 studies of 20 documents, which differ by 0.3 nats and have 0.05 nats of their own at each length.

    The truth is one of few lengths, so intervals cover it at least as often as they say, not just as often. Three
    standard errors of 200 studies are 4.6 points.
    """

    def study(dice):
        return np.array(truth_N) + dice.normal(0, 0.3, (20, 1)) + dice.normal(0, 0.05, (20, len(truth_N)))

    covered, short = coverage(truth_N, study, not_above_first)
    assert covered >= least - 0.046, covered
    assert short >= informative, short


@pytest.mark.slow
@pytest.mark.parametrize("truth_N", [[0.95, 0.9, 0.7, 0.3], [0.98, 0.95, 0.9, 0.6], [0.95, 0.93, 0.78, 0.5]])
def test_intervals_of_scores_cover_the_true_effective_length(truth_N):
    """200 studies of 50 samples that are right or wrong; a hard sample is hard at every length."""

    def study(dice):
        latent = np.sqrt(0.5) * (dice.normal(size=(50, 1)) + dice.normal(size=(50, len(truth_N))))
        return (norm.cdf(latent) < np.array(truth_N)).astype(float)

    covered, short = coverage(truth_N, study, keeps_base(1))
    assert covered >= 0.95 - 0.046, covered
    assert short >= 0.9, short


@pytest.mark.slow
def test_intervals_of_blocks_cover_the_true_effective_length():
    """200 studies of one document whose tokens correlate with their neighbours; the truth is 2k.

    The mean of token t falls by 0.05 per doubling of t up to 2k, and is 2.75 beyond, so perplexity rises again.
    """
    lengths = (512, 1024, 2048, 4096)
    place = np.arange(1, 4096)
    mean = np.where(place < 2048, 3 - 0.05 * np.log2(place), 2.75)
    curve = [mean[: length - 1].mean() for length in lengths]
    truth = from_values(lengths, not_above_first, curve).length
    assert truth == 2048
    hits = short = 0
    for number in range(STUDIES):
        dice = np.random.default_rng(number)
        noise = dice.normal(0, 2.0, len(place))
        noise[1:] += 0.3 * noise[:-1]
        values = np.maximum(mean + 0.3 * noise, 0)
        joint = joint_nll(prefix([values], lengths), "prefix")
        found = effective_length(lengths, not_above_first, [joint], resamples=500, seed=number)
        hits += found.ends.low <= truth <= found.ends.high
        short += found.ends.low == found.ends.high
    assert hits / STUDIES >= 0.95 - 0.046, hits / STUDIES
    assert short > 0
