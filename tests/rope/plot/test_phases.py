"""Seen and unseen phases: where the dots lie, which feature is shown, and that rounded phases repeat exactly."""

import cmath
import math
import re

import numpy as np
import pytest
from plot_panels import SMALL, description, headline, panels

from longeval.rope.analysis.description import describe
from longeval.rope.base import Geometry
from longeval.rope.plot import phases
from longeval.rope.resonance import ResonanceParameters

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)


def dots(axes):
    """(x, position) of seen dots and of unseen ones: what has markers."""
    seen, unseen = (line for line in axes.get_lines() if line.get_marker() == "o")
    return [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in (seen, unseen)]


@pytest.fixture(scope="module")
def pair():
    """Plain RoPE and its resonance form, drawn."""
    return panels(*(describe(name, SMALL) for name in ("none", "resonance")))


def test_phases_of_the_feature_with_the_largest_gap(pair):
    """Against complex numbers: dots lie at their angle, an unseen one that is farthest from all seen in the middle."""
    wavelength = 2 * math.pi * 10000 ** (2 * 1 / 16)
    assert [text.get_text() for text in pair[4].texts] == ["none: wavelength 19.8692 tokens"]
    assert headline(pair["4b"]) == "resonance: wavelength 20 tokens"
    points = [cmath.exp(2j * math.pi * m / wavelength) for m in range(256)]
    gaps = [min(abs(point - seen) for seen in points[:64]) for point in points]
    seen, unseen = dots(pair[4])
    assert {m for _, m in seen} < set(range(64)) and {m for _, m in unseen} < set(range(64, 256))
    distance, middle = min((abs(x), m) for x, m in unseen)
    assert distance < 1e-12 and gaps[middle] == pytest.approx(max(gaps))
    for x, m in seen + unseen:
        assert points[middle] * cmath.exp(2j * math.pi * x) == pytest.approx(points[m])
    # All that lie within the part shown.
    low, high = pair[4].get_xlim()
    offsets = [cmath.phase(point / points[middle]) / (2 * math.pi) for point in points]
    assert len(seen + unseen) == sum(low <= offset <= high for offset in offsets) > 30


def test_rounded_phases_are_seen_ones_exactly(pair):
    seen, unseen = dots(pair["4b"])
    assert {m % 20 for _, m in unseen} == {m % 20 for _, m in seen}
    assert {x for x, _ in unseen} == {x for x, _ in seen} and len(unseen) > len(seen) > 3
    # The same width of the circle, around the nearest rounded phase.
    assert pair["4b"].get_xlim() == pair[4].get_xlim() and 0.0 in {x for x, _ in seen}


def test_seen_phases_are_bands_over_all_positions(pair):
    seen = dots(pair[4])[0]
    bands = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in pair[4].patches]
    assert all(any(start <= x <= stop for start, stop in bands) for x, _ in seen)
    assert not any(start <= 0 <= stop for start, stop in bands)
    assert all((patch.get_y(), patch.get_height()) == (0, 1) for patch in pair[4].patches)
    assert pair[4].get_ylim() == (0, 256)
    ticks = dict(zip(pair[4].get_yticks(), (label.get_text() for label in pair[4].get_yticklabels()), strict=True))
    assert ticks == {0: "0", 64: "64", 256: "256"}


def test_the_hole_is_wide_enough_to_see():
    """6.28 tokens at 32k: holes of 5e-4 turns, which 3 repeats of 6 tokens (half the circle) would not show."""
    geometry = Geometry(head_dim=64, theta=1e6, native_length=32768, factor=4.0)
    descriptions = [describe(name, geometry) for name in ("none", "resonance")]
    axes = panels(*descriptions)[4]
    gap_turns = math.asin(max(descriptions[0]["feature_gaps"][: descriptions[0]["pre_critical"]]) / 2) / math.pi
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    assert width == pytest.approx(30 * gap_turns, rel=1e-6) and width < 0.02
    assert all(len(some) <= 1200 for some in dots(axes))


@pytest.mark.parametrize(("native", "factor", "limits"), [(200, 1.1, (140, 220)), (64, 50.0, (0, 512))])
def test_unseen_positions_get_a_quarter_of_the_height_and_at_most_eight_lengths(native, factor, limits):
    geometry = Geometry(head_dim=16, theta=1e4, native_length=native, factor=factor)
    assert panels(describe("none", geometry))[4].get_ylim() == limits


def test_llama2_shows_feature_12():
    descriptions = [describe(name, LLAMA2) for name in ("none", "resonance", "resonance_yarn")]
    example = phases.choose_example(descriptions)
    assert (example.name, example.rounded_name, example.feature, example.period) == ("none", "resonance", 12, 35)
    assert example.wavelength == pytest.approx(2 * math.pi * 10000 ** (24 / 128))
    assert example.gap == pytest.approx(0.0257, abs=5e-5)


def test_a_feature_that_turns_several_times_repeats_after_its_period():
    several = describe("resonance", SMALL, resonance=ResonanceParameters(max_period="native"))
    drawn = panels(describe("none", SMALL), several)
    # λ = 19.87 tokens, which 3 turns in 60 are no nearer to than 1 in 20; feature 0 turns 7 times in 44.
    example = phases.choose_example([describe("none", SMALL), several])
    assert (example.period, example.resonant) == (
        several["periods"][example.feature],
        several["wavelengths"][example.feature],
    )
    seen, unseen = dots(drawn["4b"])
    assert {m % example.period for _, m in unseen} <= {m % example.period for _, m in seen}
    (crosses,) = (line for line in drawn[1].get_lines() if line.get_marker() == "x")
    expected = [(j, p) for j, (p, q) in enumerate(zip(several["periods"], several["turns"], strict=True)) if q > 1]
    assert list(zip(crosses.get_xdata(), crosses.get_ydata(), strict=True)) == expected and expected[0] == (0, 44)
    assert not any(line.get_marker() == "x" for line in panels(describe("resonance", SMALL))[1].get_lines())


def test_example_prefers_a_pair_then_what_is_there():
    wide, plain, paired = description("pi", scale=1.4), description("yarn"), description("resonance_yarn")
    # A pair without a pre-critical feature is no example.
    stretched = [description(name, scale=50.0) for name in ("pi", "resonance_pi")]
    for items, expected in (
        ([wide, plain], ("pi", None)),
        ([wide, plain, paired], ("yarn", "resonance_yarn")),
        ([plain, *stretched], ("yarn", None)),
    ):
        example = phases.choose_example(items)
        assert (example.name, example.rounded_name) == expected
    assert phases.choose_example(stretched) is None
    assert phases.choose_example([description("none", native=2**23)]) is None


def test_only_rounded_methods_are_shown_before_rounding():
    unrounded, rounded = describe("yarn", SMALL), describe("resonance_yarn", SMALL)
    example = phases.choose_example([rounded])
    worst = int(np.argmax(unrounded["feature_gaps"][: unrounded["pre_critical"]]))
    assert (example.name, example.rounded_name) == ("resonance_yarn before rounding", "resonance_yarn")
    assert example.feature == worst
    assert example.wavelength == pytest.approx(unrounded["wavelengths"][worst], rel=1e-12)
    assert example.gap == pytest.approx(unrounded["feature_gaps"][worst], rel=1e-9)


@pytest.mark.parametrize("wavelength", [6.3, 7, 19.87, 0.9])
@pytest.mark.parametrize("native", [1, 5, 64])
def test_distances_to_seen_phases(wavelength, native):
    unseen = np.arange(native, 4 * native + 3)
    expected = [
        min(abs((m - n) / wavelength - round((m - n) / wavelength)) for n in range(native)) for m in unseen.tolist()
    ]
    np.testing.assert_allclose(phases.distances_to_seen(wavelength, native, unseen), expected, atol=1e-12)


def test_unseen_positions_are_all_or_a_sample_without_regular_steps():
    assert phases.unseen_positions(64, 68, 4).tolist() == [64, 65, 66, 67]
    assert phases.unseen_positions(64, 64, 4).size == 0
    sample = phases.unseen_positions(64, 4064, 300)
    assert 250 < len(set(sample.tolist())) == len(sample) <= 300
    assert 64 <= sample.min() < 164 and 3964 <= sample.max() < 4064
    assert min(np.bincount(sample % 7)) > 20


def test_close_seen_phases_are_one_band():
    bands = phases.seen_intervals(np.array([0.5, 0.1, 0.11, 0.3, 0.105]), 0.05)
    assert bands == [(0.1, 0.11), (0.3, 0.3), (0.5, 0.5)]


# Whole but for the rounding of float64.
WHOLE = {"wavelengths": [8 + 1e-12, 16.0, 32.0, 700.0], "feature_gaps": [1e-12, 0.0, 0.0, 0.1]}


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([describe("none", SMALL), describe("resonance", SMALL)], "past 64, feature 1 of none .* falls between"),
        ([description("none", **WHOLE)], "Past 64, feature 0 of none .* falls on"),
        ([description("none", factor=1.0, feature_gaps=[0.0] * 4)], "All positions of feature 0 of none"),
        ([description("pi", scale=50.0)], "No feature turns once .* 64 tokens"),
        ([description("none", native=2**23)], "8m has too many phases"),
    ],
)
def test_phase_headline_says_what_is_there(items, said):
    assert re.match(f"4. .*{said}", headline(panels(*items)[4]))


def test_without_an_example_nothing_is_drawn():
    axes = panels(description("pi", scale=50.0))[4]
    assert not axes.axison and not axes.get_lines()
