"""The longrope form: its numbers against the formula, and what it does to a configuration."""

from __future__ import annotations

import copy
import json
import math

import pytest
from tiny_families import default, encoding_of, save_family

from longeval.errors import LongEvalError
from longeval.export.form import longrope_form, new_config
from longeval.rope.base import Geometry
from longeval.rope.build import build_table


def read(folder):
    return json.loads((folder / "config.json").read_text())


def written(folder, pe="yarn", **settings):
    """The new configuration of a folder's model."""
    _, config, encoding = encoding_of(folder, pe, **settings)
    raw = read(folder)
    new = new_config(raw, config, encoding)
    assert raw == read(folder), "the original is left alone"
    return new


def test_the_form_divides_to_our_frequencies():
    geometry = Geometry(head_dim=8, theta=10000.0, native_length=4096, factor=4.0)
    table = build_table("resonance_yarn", geometry)
    form = longrope_form(table, theta=10000.0, original=4096, factor=4.0)
    for j, (short, long) in enumerate(zip(form["short_factor"], form["long_factor"], strict=True)):
        assert short == long
        assert 10000.0 ** (-2 * j / 8) / short == pytest.approx(2 * math.pi / table.period_F[j], rel=1e-15)
    attention = 0.1 * math.log(4) + 1
    for key in ("attention_factor", "short_mscale", "long_mscale"):
        assert form[key] == pytest.approx(attention, rel=1e-15)
    assert (form["rope_type"], form["rope_theta"], form["factor"]) == ("longrope", 10000.0, 4.0)
    assert form["original_max_position_embeddings"] == 4096
    json.dumps(form, allow_nan=False)


def test_only_the_position_encoding_changes(family):
    folder = family("llama")
    raw, new = read(folder), written(folder)
    assert new["max_position_embeddings"] == 256
    changed = {key for key in {*raw, *new} if raw.get(key) != new.get(key)}
    assert changed == {"rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings"}
    # transformers 4 reads these two; transformers 5 takes rope_scaling before rope_parameters
    assert new["rope_theta"] == 10000.0
    assert new["rope_scaling"] == new["rope_parameters"]


def test_layers_with_a_window_stay(family):
    new = written(family("gemma3"))
    parameters = new["rope_parameters"]
    assert parameters["sliding_attention"] == default()
    assert parameters["full_attention"]["rope_theta"] == 1e6
    # the second long pass of transformers 5 fails beyond this length
    assert parameters["full_attention"]["original_max_position_embeddings"] == 256
    assert new["original_max_position_embeddings"] == 64
    assert new["rope_scaling"] == parameters["full_attention"]


def test_layers_with_a_window_change_where_all_shall(family):
    parameters = written(family("gemma3"), "pi", layers="all")["rope_parameters"]
    assert parameters["sliding_attention"]["rope_theta"] == 10000.0
    for kind in ("sliding_attention", "full_attention"):
        assert parameters[kind]["long_factor"] == pytest.approx([4.0] * 8, rel=1e-15)


def test_the_rotated_part_is_said(family):
    new = written(family("gpt_neox"), "pi")
    assert new["rope_parameters"]["partial_rotary_factor"] == 0.25
    assert len(new["rope_parameters"]["long_factor"]) == 4


def test_the_size_of_a_head_is_said(family):
    folder = family("mixtral")
    assert read(folder)["head_dim"] is None
    assert written(folder, "pi")["head_dim"] == 16


def test_phi3_tells_its_native_length_outside(family):
    new = written(family("phi3"), "pi", native=32)
    assert new["original_max_position_embeddings"] == 32
    assert new["rope_parameters"]["original_max_position_embeddings"] == 32
    assert new["max_position_embeddings"] == 128


def test_code_of_the_model_is_named_no_more(family):
    folder = family("phi3")
    own = {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}
    (folder / "config.json").write_text(json.dumps(read(folder) | own))
    assert "auto_map" not in written(folder)


def test_the_language_model_of_a_multimodal_one(tmp_path):
    from transformers import Gemma3Config

    folder = save_family("gemma3", tmp_path / "text")
    config = Gemma3Config(text_config=read(folder), vision_config={"hidden_size": 32, "num_attention_heads": 2})
    _, _, encoding = encoding_of(folder, "yarn")
    raw = config.to_dict()
    new = new_config(copy.deepcopy(raw), config, encoding)
    assert new["text_config"]["rope_parameters"]["full_attention"]["rope_type"] == "longrope"
    assert new["text_config"]["max_position_embeddings"] == 256
    assert new["vision_config"] == raw["vision_config"]
    assert "rope_parameters" not in new
    del raw["text_config"]
    with pytest.raises(LongEvalError, match="text_config"):
        new_config(raw, config, encoding)


@pytest.mark.parametrize(("key", "what"), [("mscale_all_dim", "attention"), ("llama_4_scaling_beta", "queries")])
def test_settings_that_say_more_than_frequencies_are_not_thrown_away(family, key, what):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64, key: 1.0}
    with pytest.raises(LongEvalError, match=rf"{what}.*{key}|{key}.*{what}"):
        written(family("llama", rope_parameters=yarn, max_position_embeddings=512), "pi")
