"""The mean of token values by protocol, and the units that are resampled for its interval."""

import math

import numpy as np
import pytest
from records import make_nll

from longeval.stats.bootstrap import resampling_units

PROTOCOLS = ["prefix", "sliding", "sliding_window_mean", "stream"]


def test_mean_weighs_tokens_except_under_sliding_window_mean():
    nll = make_nll([[1.0, 1.0, 1.0], [5.0]])
    assert nll.mean("prefix") == nll.mean("sliding") == nll.mean("stream") == 2.0
    assert nll.mean("sliding_window_mean") == 3.0


def test_mean_is_float64():
    # 20 million 0.1s would show it at once; so do a big and many small values.
    nll = make_nll([[1e4] + [1e-4] * 100_000])
    exact = (float(np.float32(1e4)) + 100_000 * float(np.float32(1e-4))) / 100_001
    assert nll.mean("prefix") == pytest.approx(exact, rel=1e-12)


def test_nothing_scored_is_refused():
    with pytest.raises(ValueError, match="no token"):
        make_nll([]).mean("prefix")
    with pytest.raises(ValueError, match="no token"):
        resampling_units(make_nll([]), "prefix")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("num_documents", [1, 9, 10])
def test_units_give_the_mean_back(protocol, num_documents):
    random = np.random.default_rng(num_documents)
    windows = [random.exponential(2.0, size) for _ in range(num_documents) for size in (700, 256, 256, 31)]
    nll = make_nll(windows, documents=[w // 4 for w in range(len(windows))], starts=[700, 256, 256, 31] * num_documents)
    units = resampling_units(nll, protocol)
    assert units.mean == pytest.approx(nll.mean(protocol), rel=1e-12)


def test_ten_documents_are_units_nine_are_cut_into_blocks():
    ten = resampling_units(make_nll([[1.0, 3.0]] * 10), "prefix")
    assert (ten.kind, len(ten)) == ("document", 10)
    assert ten.numerator_U.tolist() == [4.0] * 10
    assert ten.denominator_U.tolist() == [2.0] * 10
    nine = resampling_units(make_nll([np.ones(2048)] * 9), "prefix")
    assert (nine.kind, len(nine)) == ("block", 9 * 4)
    assert set(nine.denominator_U.tolist()) == {512.0}
    unscored_between = make_nll([[1.0, 3.0]] * 10, documents=[2 * d for d in range(10)])
    assert len(resampling_units(unscored_between, "prefix")) == 10


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(4096, 32), (640, 32), (160, 10), (20, 1)])
def test_short_text_gets_shorter_blocks(num_tokens, num_blocks):
    assert len(resampling_units(make_nll([np.ones(num_tokens)]), "prefix")) == num_blocks


def test_blocks_are_contiguous_and_stay_in_their_document():
    nll = make_nll([np.repeat([1.0, 2.0], 512), np.repeat([3.0], 512)] * 16, documents=[0, 1] * 16)
    units = resampling_units(nll, "sliding")
    means = units.numerator_U / units.denominator_U
    assert len(units) == 48
    assert sorted(means.tolist()) == [1.0] * 16 + [2.0] * 16 + [3.0] * 16


def test_window_mean_units_are_runs_of_windows():
    nll = make_nll([np.full(1024, 4.0)] + [np.full(256, 1.0)] * 60, documents=[0] * 61)
    units = resampling_units(nll, "sliding_window_mean")
    # The first window fills a block by itself, then two of 256 do.
    assert units.denominator_U.tolist() == [1.0] + [2.0] * 30
    assert units.numerator_U.tolist() == [4.0] + [2.0] * 30


def test_window_mean_units_stay_in_their_document():
    windows = [np.ones(256)] * 129
    nll = make_nll(windows, documents=[w // 43 for w in range(129)])
    assert resampling_units(nll, "sliding_window_mean").denominator_U.tolist() == ([2.0] * 21 + [1.0]) * 3


def test_stream_blocks_cover_a_window_length():
    overlapping = make_nll([np.ones(2047)] * 40, documents=[0] * 40, starts=[1 + 256 * w for w in range(40)])
    assert resampling_units(overlapping, "stream").denominator_U.tolist() == [8 * 2047.0] * 5
    disjoint = make_nll([np.ones(2047)] * 40, documents=[0] * 40, starts=[1 + 2048 * w for w in range(40)])
    assert len(resampling_units(disjoint, "stream")) == 40


def test_stream_documents_shorter_than_a_window_are_no_units():
    starts = [1 + 256 * w for w in range(80)]
    short = make_nll([np.ones(2047)] * 80, documents=[w // 4 for w in range(80)], starts=starts)
    assert resampling_units(short, "stream").kind == "block"
    long = make_nll([np.ones(2047)] * 80, documents=[w // 8 for w in range(80)], starts=starts)
    assert resampling_units(long, "stream").kind == "document"


def test_bits_per_byte():
    nll = make_nll([[math.log(2)] * 6, [2 * math.log(2)] * 2], num_bytes=5)
    assert nll.bits_per_byte() == pytest.approx(10 / 40)
    assert make_nll([[1.0]], num_bytes=-1).bits_per_byte() is None
