"""Our table in vLLM's `rope_parameters`, without vLLM."""

from __future__ import annotations

import json

import numpy as np
import pytest

from longeval.backends.vllm.rope import ROPE_TYPE, from_parameters, to_parameters
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table
from longeval.rope.resonance import ResonanceParameters

GEOMETRY = Geometry(head_dim=64, theta=1e5, native_length=8192, factor=2.0)


def table_of(value, local=None):
    return RopeTable(inv_freq_F=np.array([1.0, value]), attention_factor=1.0, local=local)


@pytest.mark.parametrize("name", ["none", "resonance", "yarn", "resonance_yarn"])
def test_a_table_comes_back_bit_for_bit_from_json_and_from_lists_that_became_tuples(name):
    table = build_table(name, GEOMETRY)
    parameters = json.loads(json.dumps(to_parameters(table, 12_289, {"rope_theta": 1e5}, by_layer_type=False)))
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    for found in (from_parameters(parameters), from_parameters(tuples)):
        assert found.table.same_as(table)
        assert found.length == 12_289
        assert (found.table.period_F is None) == (not name.startswith("resonance"))


def test_periods_with_several_turns_come_back_too():
    table = build_table("resonance_yarn", GEOMETRY, resonance=ResonanceParameters(max_period="native"))
    parameters = json.loads(json.dumps(to_parameters(table, 100, {"rope_theta": 1e5}, by_layer_type=False)))
    found = from_parameters(parameters).table
    assert found.digest(10_000) == table.digest(10_000) and found.fractions() == table.fractions()
    assert table.turns_F.max() > 1


def test_what_says_how_much_of_a_head_rotates_is_kept_and_nothing_else():
    own = {"rope_type": "yarn", "rope_theta": 1e5, "partial_rotary_factor": 0.25, "factor": 8.0, "mscale": 1.0}
    parameters = to_parameters(build_table("none", GEOMETRY), 10, own, by_layer_type=False)
    kept = {name: parameters[name] for name in ("rope_type", "partial_rotary_factor", "rope_theta")}
    assert kept == {"rope_type": ROPE_TYPE, "partial_rotary_factor": 0.25, "rope_theta": 1e5}
    assert not {"factor", "mscale", "attention_factor"} & parameters.keys()


def test_layers_with_a_window_keep_their_settings_unless_they_are_scaled_too():
    own = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    kept = to_parameters(table_of(0.5), 10, own, by_layer_type=True)
    assert kept["sliding_attention"] == own["sliding_attention"]
    assert from_parameters(kept["full_attention"]).table.same_as(table_of(0.5))
    both = to_parameters(table_of(0.5, table_of(0.25)), 10, own, by_layer_type=True)
    assert from_parameters(both["sliding_attention"]).table.same_as(table_of(0.25))
    assert both["sliding_attention"]["rope_theta"] == 1e4
