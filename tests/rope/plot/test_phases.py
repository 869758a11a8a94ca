"""Seen and unseen phases: where the dots lie, which feature is shown, and that rounded phases repeat exactly."""

import cmath
import math

import numpy as np
import pytest
from plot_panels import SMALL, description, headline, panels

from longeval.rope.analysis import gaps
from longeval.rope.analysis.description import describe
from longeval.rope.base import Geometry

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


def test_short_unseen_stretches_get_a_quarter_of_the_height_and_long_ones_eight_lengths():
    short = panels(
        *(describe(name, Geometry(head_dim=16, theta=1e4, native_length=200, factor=1.1)) for name in ("none",))
    )
    assert short[4].get_ylim() == (140, 220)
    long = panels(
        *(describe(name, Geometry(head_dim=16, theta=1e4, native_length=64, factor=50)) for name in ("none",))
    )
    assert long[4].get_ylim() == (0, 512)


def test_llama2_shows_feature_12():
    descriptions = [describe(name, LLAMA2) for name in ("none", "resonance", "resonance_yarn")]
    example = gaps.choose_example(descriptions)
    assert (example.name, example.rounded_name, example.feature, example.period) == ("none", "resonance", 12, 35)
    assert example.wavelength == pytest.approx(2 * math.pi * 10000 ** (24 / 128))
    assert example.gap == pytest.approx(0.0257, abs=5e-5)


def test_example_prefers_a_pair_then_what_is_there():
    wide, plain, paired = description("pi", scale=1.4), description("yarn"), description("resonance_yarn")
    choose = gaps.choose_example
    assert choose([wide, plain]).name == "pi" and choose([wide, plain]).rounded_name is None
    assert choose([wide, plain, paired]).name == "yarn"
    # A pair without a pre-critical feature is no example.
    stretched = [description(name, scale=50.0) for name in ("pi", "resonance_pi")]
    assert choose([plain, *stretched]).name == "yarn"
    assert choose(stretched) is None
    assert choose([description("none", native=2**23)]) is None


def test_only_rounded_methods_are_shown_before_rounding():
    unrounded, rounded = describe("yarn", SMALL), describe("resonance_yarn", SMALL)
    example = gaps.choose_example([rounded])
    worst = int(np.argmax(unrounded["feature_gaps"][: unrounded["pre_critical"]]))
    assert (example.name, example.rounded_name) == ("resonance_yarn before rounding", "resonance_yarn")
    assert example.feature == worst
    assert example.wavelength == pytest.approx(unrounded["wavelengths"][worst], rel=1e-12)
    assert example.gap == pytest.approx(unrounded["feature_gaps"][worst], rel=1e-9)


def test_unseen_positions_are_all_or_a_sample():
    assert gaps.unseen_positions(64, 68, 4).tolist() == [64, 65, 66, 67]
    sample = gaps.unseen_positions(64, 4064, 300)
    assert (
        250 < len(set(sample.tolist())) == len(sample) <= 300
        and 64 <= sample.min() < 164
        and 3964 <= sample.max() < 4064
    )
    # No regular steps: each remainder comes about as often.
    assert min(np.bincount(sample % 7)) > 20
    assert gaps.unseen_positions(64, 64, 4).size == 0


@pytest.mark.parametrize("wavelength", [6.3, 7, 19.87, 0.9])
@pytest.mark.parametrize("native", [1, 5, 64])
def test_distances_to_seen_phases(wavelength, native):
    unseen = np.arange(native, 4 * native + 3)
    expected = [
        min(abs((m - n) / wavelength - round((m - n) / wavelength)) for n in range(native)) for m in unseen.tolist()
    ]
    np.testing.assert_allclose(gaps.distances_to_seen(wavelength, native, unseen), expected, atol=1e-12)


def test_close_seen_phases_are_one_band():
    bands = gaps.seen_intervals(np.array([0.5, 0.1, 0.11, 0.3, 0.105]), 0.05)
    assert bands == [(0.1, 0.11), (0.3, 0.3), (0.5, 0.5)]
    assert gaps.seen_intervals(np.array([]), 0.05) == []


def test_phase_headline_says_what_is_there(pair):
    assert headline(pair[4]) == (
        "4. Why: past 64, feature 1 of none (red) falls between phases seen in training (grey); "
        "rounded, it falls on them."
    )
    # Whole but for the rounding of float64.
    whole = description("none", wavelengths=[8 + 1e-12, 16.0, 32.0, 700.0], feature_gaps=[1e-12, 0.0, 0.0, 0.1])
    assert headline(panels(whole)[4]) == "4. Past 64, feature 0 of none (red) falls on phases seen in training (grey)."
    same = headline(panels(description("none", factor=1.0, feature_gaps=[0.0] * 4))[4])
    assert same == "4. All positions of feature 0 of none up to the target are seen in training."
    nothing = panels(description("pi", scale=50.0))[4]
    assert headline(nothing).startswith("4. No feature turns once within the native 64 tokens")
    assert not nothing.axison and not nothing.get_lines()
    assert (
        headline(panels(description("none", native=2**23))[4])
        == "4. A native length of 8m has too many phases to draw."
    )
