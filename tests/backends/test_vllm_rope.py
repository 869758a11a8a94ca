"""Our table in vLLM's `rope_parameters`, without vLLM."""

from __future__ import annotations

import json

import numpy as np
import pytest

from longeval.backends.vllm.rope import ROPE_TYPE, from_parameters, to_parameters
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import build_table

GEOMETRY = Geometry(head_dim=64, theta=1e5, native_length=8192, factor=2.0)


def through_json(parameters):
    return json.loads(json.dumps(parameters))


@pytest.mark.parametrize("name", ["none", "resonance", "yarn", "resonance_yarn", "ntk", "pi"])
def test_a_table_comes_back_bit_for_bit(name):
    table = build_table(name, GEOMETRY)
    parameters = through_json(to_parameters(table, 12_289, {"rope_theta": 1e5}, None))
    found = from_parameters(parameters)
    assert found.table.same_as(table)
    assert found.length == 12_289
    assert (found.table.period_F is None) == (not name.startswith("resonance"))


def test_lists_that_became_tuples_are_read_too():
    table = build_table("resonance_yarn", GEOMETRY)
    parameters = to_parameters(table, 10, {}, None)
    assert from_parameters(
        {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    ).table.same_as(table)


def test_what_says_how_much_of_a_head_rotates_is_kept_and_nothing_else():
    own = {"rope_type": "yarn", "rope_theta": 1e5, "partial_rotary_factor": 0.25, "factor": 8.0, "mscale": 1.0}
    parameters = to_parameters(build_table("none", GEOMETRY), 10, own, None)
    assert parameters["rope_type"] == ROPE_TYPE
    assert parameters["partial_rotary_factor"] == 0.25
    assert parameters["rope_theta"] == 1e5
    assert not {"factor", "mscale", "attention_factor"} & parameters.keys()


def table_of(value, local=None):
    return RopeTable(inv_freq_F=np.array([1.0, value]), attention_factor=1.0, local=local)


def test_layers_with_a_window_keep_their_settings_unless_they_are_scaled_too():
    own = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    kept = to_parameters(table_of(0.5), 10, own, list(own))
    assert kept["sliding_attention"] == own["sliding_attention"]
    assert from_parameters(kept["full_attention"]).table.same_as(table_of(0.5))
    both = to_parameters(table_of(0.5, table_of(0.25)), 10, own, list(own))
    assert from_parameters(both["sliding_attention"]).table.same_as(table_of(0.25))
    assert both["sliding_attention"]["rope_theta"] == 1e4


@pytest.mark.parametrize("key", ["inv_freq", "rope_attention_factor", "table_length"])
def test_an_incomplete_table_is_refused(key):
    parameters = to_parameters(table_of(0.5), 10, {}, None)
    del parameters[key]
    with pytest.raises(ValueError, match=key):
        from_parameters(parameters)


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="yarn"):
        from_parameters({"rope_type": "yarn"})
