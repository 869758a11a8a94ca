"""What can be exported, up to which length, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_families import encoding_of

from longeval.errors import LongEvalError

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}


def test_the_table_is_that_of_the_target_length(family):
    _, _, encoding = encoding_of(family("llama"), "pi", 2.5)
    assert (encoding.native_length, encoding.target_length) == (64, 160)
    assert np.allclose(encoding.table.inv_freq_F * 2.5, [10000.0 ** (-j / 8) for j in range(8)], rtol=1e-14)
    assert encoding.describe() == "pi, s = 2.5 (64 to 160)"


@pytest.mark.parametrize(
    ("pe", "arguments", "advised"),
    [("yarn", {}, False), ("resonance_yarn", {}, True), ("resonance_yarn", {"max_period": "native"}, False)],
)
def test_rounding_is_advised_against_where_a_model_was_not_trained_with_it(family, pe, arguments, advised):
    _, _, encoding = encoding_of(family("llama"), pe, **arguments)
    assert (encoding.advice() is not None) == advised
    of_trained = dataclasses.replace(
        encoding.rope, shipped=dataclasses.replace(encoding.rope.shipped, base="yarn", resonance=True)
    )
    assert dataclasses.replace(encoding, rope=of_trained).advice() is None


def test_parameters_come_with_their_defaults(family):
    _, _, encoding = encoding_of(family("llama"), "yarn", beta_fast=16.0)
    assert encoding.arguments == {"beta_fast": 16.0, "beta_slow": 1.0, "attention_factor": None}


@pytest.mark.parametrize(
    ("name", "pe", "settings", "factor", "target"),
    [
        # Methods that s doesn't decide reach what the model reaches already.
        ("llama", "resonance", {"factor": None}, 1.0, 64),
        ("llama", "abf", {"factor": None, "base": 50000.0}, 1.0, 64),
        ("llama3", "resonance", {"factor": None}, 8.0, 512),
        ("llama3", "none", {"factor": None}, 8.0, 512),
        ("llama3", "yarn", {"factor": 2.0}, 2.0, 128),
        ("llama3", "pi", {"factor": 2.0, "scale_from": "shipped"}, 2.0, 1024),
    ],
)
def test_the_target_length(family, name, pe, settings, factor, target):
    _, _, encoding = encoding_of(family(name), pe, **settings)
    assert (encoding.factor, encoding.target_length) == (factor, target)


def test_a_method_builds_on_the_scaling_that_the_model_comes_with(family):
    _, _, encoding = encoding_of(family("llama3"), "pi", 2.0, scale_from="shipped")
    assert encoding.table.inv_freq_F[-1] == pytest.approx(10000.0 ** (-7 / 8) / 16, rel=1e-12)


@pytest.mark.parametrize(("name", "static"), [("dynamic_ntk", "ntk"), ("resonance_dynamic_yarn", "resonance_yarn")])
def test_a_method_that_follows_the_length_is_refused(family, name, static):
    with pytest.raises(LongEvalError, match=rf"--pe {name}: .*\b{static} with --factor"):
        encoding_of(family("llama"), name)


def test_a_factor_that_is_needed_is_asked_for(family):
    with pytest.raises(LongEvalError, match=r"--factor: .*resonance_yarn"):
        encoding_of(family("llama"), "resonance_yarn", None)


def test_a_shipped_scaling_that_follows_the_length_is_refused(family):
    folder = family("phi3", rope_parameters=LONGROPE, max_position_embeddings=512)
    for name, static in (("none", "longrope"), ("resonance", "resonance_longrope")):
        with pytest.raises(LongEvalError, match=f"--pe {name}: .*--pe {static} --factor S"):
            encoding_of(folder, name)
    _, _, encoding = encoding_of(folder, "longrope", 8.0)
    assert encoding.table.inv_freq_F[0] == 0.5


@pytest.mark.parametrize(("name", "factor"), [("none", None), ("none", 4.0), ("yarn", 1.0), ("pi", 1.0)])
def test_what_the_model_has_already_is_not_exported(family, name, factor):
    with pytest.raises(LongEvalError, match=f"--pe {name}: "):
        encoding_of(family("llama"), name, factor)


def test_the_same_method_on_a_scaled_model_is_news(family):
    """pi with s = 1 on a model that comes with linear scaling takes that scaling away."""
    folder = family("llama", rope_parameters=LINEAR, max_position_embeddings=512)
    _, _, encoding = encoding_of(folder, "pi", 1.0, native=64)
    assert encoding.table.inv_freq_F[0] == 1.0
