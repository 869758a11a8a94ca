"""The picture: the right kind of file, with every method named."""

import pytest

from longeval.errors import LongEvalError
from longeval.rope.analysis import describe
from longeval.rope.base import Geometry
from longeval.rope.plot import draw, plot_format


def test_svg_names_every_method_and_both_lengths():
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)
    descriptions = [describe(name, geometry) for name in ("none", "resonance", "dynamic_yarn")]
    svg = draw(descriptions, "svg").decode()
    for text in ("none", "resonance", "dynamic_yarn", "native 64", "target 256", "feature gap"):
        assert f">{text}<" in svg
    assert draw(descriptions, "svg").decode() == svg


def test_png_without_any_gap():
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64)
    assert draw([describe("resonance", geometry)], "png").startswith(b"\x89PNG")


def test_suffixes():
    assert (plot_format("a.b/c.PNG"), plot_format("c.svg")) == ("png", "svg")
    with pytest.raises(LongEvalError, match=r"--plot c\.pdf: neither"):
        plot_format("c.pdf")
