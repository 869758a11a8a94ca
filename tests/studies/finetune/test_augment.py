"""Augmentations draw by the published laws, and refuse what they aren't made for."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from longeval.errors import LongEvalError
from longeval.rope.build import parse_method_name
from longeval.studies.finetune.augment import (
    AUGMENTATIONS,
    E2,
    Placement,
    Pose,
    Unaugmented,
    make_augmentation,
    parse_augment_args,
)
from longeval.studies.finetune.batch import Span
from longeval.studies.finetune.request import Augment

YARN = parse_method_name("yarn")


def nondecreasing(most, number):
    """The law of draws, each uniform from the one before it to `most`: draws → probability."""
    law = {(): Fraction(1)}
    for _ in range(number):
        law = {
            (*draws, drawn): chance / (most - max((0, *draws)) + 1)
            for draws, chance in law.items()
            for drawn in range(max((0, *draws)), most + 1)
        }
    return law


def pose_law(chunks, window, text, target):
    """PoSE's law in plain loops: (text indices, positions) → probability."""
    law = Counter()
    lengths = list(itertools.product(range(1, (window + 1) // chunks + 1), repeat=chunks - 1))
    for own, (text_skips, text_chance), (skips, chance) in itertools.product(
        lengths,
        nondecreasing(text - window, chunks - 1).items(),
        nondecreasing(target - window, chunks - 1).items(),
    ):
        indices, positions = [], []
        for length, text_skip, skip in zip((*own, window - sum(own)), (0, *text_skips), (0, *skips), strict=True):
            start = len(indices)
            indices += [start + text_skip + offset for offset in range(length)]
            positions += [start + skip + offset for offset in range(length)]
        law[tuple(indices), tuple(positions)] += text_chance * chance / len(lengths)
    return law


def p_value(augmentation, law, span, text, draws=20_000):
    """That draws follow a law of placements; 0 where one is drawn that the law doesn't have."""
    rng = np.random.default_rng(0)
    drawn = Counter()
    for _ in range(draws):
        indices_T, positions_T = augmentation.place(rng, text, span, None)
        drawn[tuple(indices_T.tolist()), tuple(positions_T.tolist())] += 1
    if not drawn.keys() <= law.keys():
        return 0.0
    expected = [float(law[each]) * draws for each in law]
    assert min(expected) > 5
    return chisquare([drawn[each] for each in law], expected).pvalue


SPANS = {2: (Span(window=6, target=10, native=6), 9), 3: (Span(window=8, target=10, native=8), 10)}
"""By number of chunks: small spans, and tokens of text."""


@pytest.mark.parametrize("chunks", SPANS)
def test_pose_draws_by_its_law(chunks):
    span, text = SPANS[chunks]
    law = pose_law(chunks, span.window, text, span.target)
    assert sum(law.values()) == 1
    assert p_value(Pose(chunks=chunks), law, span, text) > 1e-4


def test_the_law_of_two_chunks_is_the_published_one():
    """r₁ uniform in 1 … ⌊(c+1)/2⌋, the end of the second chunk in c … len, its skip in 0 … target − c."""
    published = Counter()
    for first, end, skip in itertools.product(range(1, 4), range(6, 10), range(5)):
        second = range(end - (6 - first), end)
        positions = (*range(first), *(index + skip for index in range(first, 6)))
        published[(*range(first), *second), positions] += Fraction(1, 3 * 4 * 5)
    assert pose_law(2, 6, 9, 10) == published


@dataclass(frozen=True)
class Wrong:
    """A law that a reader of the paper might take for PoSE's."""

    law: str
    chunks: int

    def place(self, rng, num_tokens, span, factor):
        window, most, text = span.window, span.target - span.window, num_tokens - span.window
        cut = (window + 1) // self.chunks
        lengths = rng.integers(1, cut + 1, self.chunks - 1)
        skips, text_skips = [0], [0]
        for _ in lengths:
            skips.append(rng.integers(skips[-1], most + 1))
            text_skips.append(rng.integers(text_skips[-1], text + 1))
        if self.law == "even":
            lengths[:] = window // self.chunks
        elif self.law == "accumulated":
            skips = np.minimum(np.cumsum([0, *rng.integers(0, most + 1, self.chunks - 1)]), most)
        elif self.law == "sorted":
            skips = [0, *np.sort(rng.integers(0, most + 1, self.chunks - 1))]
        elif self.law == "target":
            skips = [0, *np.sort(rng.integers(0, span.target + 1, self.chunks - 1))]
        elif self.law == "same skips":
            text_skips = np.minimum(skips, text)
        elif self.law == "length":
            lengths = rng.integers(1, cut, self.chunks - 1)
        elif self.law == "skip":
            skips = [min(skip, most - 1) for skip in skips]
        elif self.law == "end":
            text_skips = [min(skip, text - 1) for skip in text_skips]
        lengths = [*lengths, window - sum(lengths)]
        index_T = np.arange(window)
        return Placement(index_T + np.repeat(text_skips, lengths), index_T + np.repeat(skips, lengths))


@pytest.mark.parametrize(
    ("law", "chunks"),
    [
        *itertools.product(("even", "target", "same skips", "length", "skip", "end"), (2, 3)),
        *itertools.product(("accumulated", "sorted"), (3,)),
    ],
)
def test_other_laws_would_be_noticed(law, chunks):
    span, text = SPANS[chunks]
    assert p_value(Wrong(law, chunks), pose_law(chunks, span.window, text, span.target), span, text) < 1e-8


def test_the_right_law_in_other_words_is_not_refused():
    span, text = SPANS[3]
    assert p_value(Wrong("", 3), pose_law(3, span.window, text, span.target), span, text) > 1e-4


def test_e2_draws_every_factor_alike():
    rng = np.random.default_rng(0)
    drawn = Counter(E2().step_factor(rng) for _ in range(20_000))
    assert set(drawn) == set(map(float, range(1, 21)))
    assert chisquare(list(drawn.values())).pvalue > 1e-4
    assert {E2(max_factor=3).step_factor(rng) for _ in range(100)} == {1.0, 2.0, 3.0}


def test_e2_draws_every_offset_alike():
    """t uniform in 0 … g·L − R, here 0 … 3·10 − 12; the first four tokens stay."""
    rng, span = np.random.default_rng(0), Span(window=12, target=40, native=10)
    offsets = Counter()
    for _ in range(20_000):
        indices_T, positions_T = E2().place(rng, 12, span, 3.0)
        offset = positions_T[4] - 4
        assert indices_T.tolist() == list(range(12))
        assert positions_T.tolist() == [0, 1, 2, 3, *range(4 + offset, 12 + offset)]
        offsets[offset] += 1
    assert set(offsets) == set(range(19))
    assert chisquare(list(offsets.values())).pvalue > 1e-4


def test_e2_shifts_nothing_where_the_window_is_longer_than_the_factor_reaches():
    rng, span = np.random.default_rng(0), Span(window=12, target=40, native=10)
    assert E2().place(rng, 12, span, 1.0).positions_T.tolist() == list(range(12))


def test_only_e2_draws_factors():
    assert Unaugmented().step_factor(np.random.default_rng(0)) is None
    assert Pose().step_factor(np.random.default_rng(0)) is None


@given(st.data())
def test_positions_stay_below_the_target_and_text_within_its_piece(data):
    name = data.draw(st.sampled_from(sorted(AUGMENTATIONS)))
    window = data.draw(st.integers(2, 40))
    native = data.draw(st.integers(2, 60))
    target = window + data.draw(st.integers(1 if name == "pose" else 0, 100))
    arguments = {}
    if name == "pose":
        arguments = {"chunks": data.draw(st.integers(2, window)), "text": data.draw(st.integers(1, 6))}
    elif name == "e2":
        arguments = {"max_factor": data.draw(st.integers(-(-window // native), 80))}
    augmentation = make_augmentation(name, arguments)
    span = Span(window, target, native)
    augmentation.check(span, YARN)
    piece = augmentation.piece_tokens(window)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    factor = augmentation.step_factor(rng)
    placement = augmentation.place(rng, piece, span, factor)
    for index_T, end in ((placement.text_T, piece), (placement.positions_T, max(target, (factor or 0) * native))):
        assert index_T.dtype == np.int64 and index_T.shape == (window,)
        assert index_T[0] == 0 and (np.diff(index_T) >= 1).all() and index_T[-1] < end


def test_the_same_generator_gives_the_same():
    span = Span(8, 100, 8)
    one, other = (Pose(chunks=3).place(np.random.default_rng(7), 40, span, None) for _ in range(2))
    assert np.array_equal(one, other)


def test_text_of_a_sequence():
    assert [Unaugmented().piece_tokens(8), E2().piece_tokens(8), Pose().piece_tokens(8)] == [8, 8, 40]
    indices_T = Pose(text=1).place(np.random.default_rng(0), 8, Span(8, 100, 8), None).text_T
    assert indices_T.tolist() == list(range(8)), "continuous text"


@pytest.mark.parametrize(
    ("name", "arguments", "span", "method", "words"),
    [
        ("pose", {}, Span(8, 8, 8), "yarn", "--augment pose: no target above the window of 8"),
        ("pose", {"chunks": 9}, Span(8, 80, 8), "yarn", "--augment-arg pose.chunks=9: "),
        ("e2", {}, Span(8, 80, 8), "abf", "abf"),
        ("e2", {}, Span(8, 80, 8), "resonance", "resonance "),
        ("e2", {}, Span(8, 80, 8), "dynamic_ntk", "dynamic_ntk"),
        ("e2", {"max_factor": 3}, Span(25, 80, 8), "pi", "--augment-arg e2.max_factor=3: "),
    ],
)
def test_lengths_and_methods_that_an_augmentation_is_not_made_for(name, arguments, span, method, words):
    with pytest.raises(LongEvalError, match=words):
        make_augmentation(name, arguments).check(span, parse_method_name(method))


def test_lengths_at_the_limit_are_allowed():
    Pose(chunks=8).check(Span(8, 9, 8), YARN)
    E2(max_factor=3).check(Span(24, 80, 8), YARN)
    Unaugmented().check(Span(8, 80, 8), parse_method_name("none"))


def test_notes_tell_a_control_and_a_generalisation():
    assert Unaugmented().notes(Span(8, 80, 8), YARN) and not Unaugmented().notes(Span(80, 80, 8), YARN)
    assert "resonance_pi" in E2().notes(Span(8, 80, 8), parse_method_name("resonance_pi"))[0]
    assert not E2().notes(Span(8, 80, 8), parse_method_name("pi"))


def test_settings_know_the_same_augmentations():
    assert get_args(Augment) == tuple(AUGMENTATIONS)


def test_parameters_of_augmentations():
    assert parse_augment_args(["pose.chunks=3", "e2.max_factor=4", "pose.chunks=3"], ["pose", "e2"]) == {
        "pose": {"chunks": 3},
        "e2": {"max_factor": 4},
    }
    assert make_augmentation("pose", {"chunks": "3"}) == make_augmentation("pose", {"chunks": 3}) == Pose(chunks=3)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("pose=2", "--augment-arg pose=2: "),
        ("psoe.chunks=2", "--augment-arg psoe.chunks=2: .*pose"),
        ("e2.max_factor=2", "--augment-arg e2.max_factor=2: .*--augment"),
        ("pose.chnks=2", "--augment-arg pose.chnks: .*chunks"),
        ("pose.chunks=2.5", "--augment-arg pose.chunks=2.5: "),
        ("none.chunks=2", "--augment-arg none.chunks: "),
    ],
)
def test_wrong_parameters_name_the_flag(item, words):
    with pytest.raises(LongEvalError, match=words):
        parse_augment_args([item], ["pose", "none"])


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("pose", {"chunks": 1}, "--augment-arg pose.chunks 1: "),
        ("pose", {"text": 0}, "--augment-arg pose.text 0: "),
        ("e2", {"max_factor": "0"}, "--augment-arg e2.max_factor 0: "),
        ("pose", {"chunks": True}, "--augment-arg pose.chunks=True: "),
        ("pse", {}, "--augment pse: "),
    ],
)
def test_impossible_values(name, arguments, words):
    with pytest.raises(LongEvalError, match=words):
        make_augmentation(name, arguments)
