"""The installed transformers is asked before anything is written, and what it answers is believed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, NATIVE, encoding_of

from longeval.errors import LongEvalError
from longeval.export.encoding import multiplied, stock_error
from longeval.export.form import new_config
from longeval.export.stock import check_stock, check_stock_type, vllm_reason
from longeval.models.resolve import resolve


@pytest.fixture
def check(family, tmp_path):
    """Returns a function that has the new config.json of a family's model checked, alone and edited, in a folder."""

    def run(name, pe="resonance_yarn", edit=lambda new: None, **settings):
        folder = family(name)
        _, config, encoding = encoding_of(folder, pe, 8.0, **settings)
        new = new_config(json.loads((folder / "config.json").read_text()), config, encoding)
        edit(new)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text(json.dumps(new))
        return encoding, check_stock(str(tmp_path / "out"), encoding, config).error.largest

    return run


def error_of(table):
    """The error of a stock engine with our frequencies, rounded to float32."""
    return stock_error(multiplied(table.inv_freq_F.astype(np.float32)), table.attention_factor, table, 512).largest


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_our_frequencies(check, name):
    encoding, error = check(name)
    assert encoding.target_length == 8 * NATIVE
    ours = error_of(encoding.table)
    assert ours / 3 < error < 3 * ours  # not the same: transformers rounds more often


def test_local_layers_count_where_they_are_scaled(check):
    encoding, error = check("gemma3", pe="yarn", layers="all")
    errors = [error_of(table) for table in (encoding.table, encoding.table.local)]
    assert max(errors) > 3 * min(errors)
    assert 0.8 * max(errors) < error < 3 * max(errors)


def halve(values):
    return [value / 2 for value in values]


def flat(edit):
    """An edit of the form of a family that has one for all layers."""

    def edit_both(new):
        edit(new["rope_parameters"])
        new["rope_scaling"] = new["rope_parameters"]

    return edit_both


def with_native_length(new):
    """transformers then fails at the second sequence beyond it, where layers are told apart."""
    for parameters in (new["rope_parameters"]["full_attention"], new["rope_scaling"]):
        parameters["original_max_position_embeddings"] = NATIVE


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("llama", flat(lambda form: form.update(short_factor=halve(form["short_factor"]))), "frequencies are off"),
        ("llama", flat(lambda form: form.update(long_factor=halve(form["long_factor"]))), "frequencies are off"),
        ("llama", flat(lambda form: form.update(attention_factor=1.0)), "cosines"),
        ("llama", flat(lambda form: form.update(rope_type="default")), "frequencies are off"),
        ("llama", flat(lambda form: form.update(rope_theta=5000.0)), "frequencies are off"),
        ("llama", flat(lambda form: form.update(partial_rotary_factor=0.5)), "dimensions|columns|length"),
        ("llama", flat(lambda form: form.pop("long_factor")), "KeyError"),
        ("phi3", flat(lambda form: form.update(short_factor=form["short_factor"][:-1])), "must have length 8"),
        ("gemma3", lambda new: new["rope_parameters"]["sliding_attention"].update(rope_theta=5000.0), "sliding_att"),
        ("gemma3", with_native_length, "UnboundLocalError"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(check, name, edit, words):
    with pytest.raises(LongEvalError, match=rf"stock transformers .* {name}\w* model .*({words})"):
        check(name, edit=edit)


def test_a_family_that_rotates_in_its_own_way_is_refused(check, monkeypatch):
    from transformers.models.llama import modeling_llama

    forward = modeling_llama.LlamaRotaryEmbedding.forward

    def shifted(self, x, position_ids):
        return forward(self, x, position_ids + 1)

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", shifted)
    with pytest.raises(LongEvalError, match="cosines"):
        check("llama")


def test_building_the_module_needs_no_weights(check, monkeypatch):
    sizes = []
    empty = torch.nn.Parameter.__new__

    def seen(cls, data=None, requires_grad=True):
        if data is not None and data.device.type != "meta":
            sizes.append(data.numel())
        return empty(cls, data, requires_grad)

    def watch(new):
        monkeypatch.setattr(torch.nn.Parameter, "__new__", seen)

    check("llama", edit=watch)
    assert sizes == []
    torch.nn.Parameter(torch.zeros(3))
    assert sizes == [3]


def test_a_model_with_code_of_its_own_is_refused(family):
    folder = family("llama")
    raw = json.loads((folder / "config.json").read_text())
    own = {"model_type": "homemade", "auto_map": {"AutoConfig": "configuration_homemade.HomemadeConfig"}}
    (folder / "config.json").write_text(json.dumps(raw | own))
    with pytest.raises(LongEvalError, match="'homemade'"):
        check_stock_type(resolve(str(folder)))


def test_what_is_known_against_vllm():
    assert "cohere" in vllm_reason("cohere")
    assert vllm_reason("llama") is None
