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


def exported(folder, target, pe="resonance_yarn", factor=8.0, edit=None, **settings):
    """The encoding of a folder's model, and a folder with nothing but its new config.json."""
    _, config, encoding = encoding_of(folder, pe, factor, **settings)
    new = new_config(json.loads((folder / "config.json").read_text()), config, encoding)
    if edit is not None:
        edit(new)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(new))
    return config, encoding


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_our_frequencies(family, tmp_path, name):
    config, encoding = exported(family(name), tmp_path / "out")
    stock = check_stock(str(tmp_path / "out"), encoding, config)
    assert encoding.target_length == 8 * NATIVE
    ours = stock_error(
        multiplied(encoding.table.inv_freq_F.astype(np.float32)), encoding.table.attention_factor, encoding.table, 512
    )
    assert ours.largest / 3 < stock.error.largest < 3 * ours.largest  # not the same: transformers rounds more often


def test_local_layers_where_they_are_scaled(family, tmp_path):
    config, encoding = exported(family("gemma3"), tmp_path / "out", pe="yarn", layers="all")
    errors = [
        stock_error(multiplied(table.inv_freq_F.astype(np.float32)), table.attention_factor, table, 512).largest
        for table in (encoding.table, encoding.table.local)
    ]
    assert max(errors) > 3 * min(errors)
    got = check_stock(str(tmp_path / "out"), encoding, config).error.largest
    assert 0.8 * max(errors) < got < 3 * max(errors)


def halve(lists):
    return [value / 2 for value in lists]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda form: form.update(short_factor=halve(form["short_factor"])), "its frequencies are off by"),
        (lambda form: form.update(long_factor=halve(form["long_factor"])), "its frequencies are off by"),
        (lambda form: form.update(attention_factor=1.0), "its cosines are not those"),
        (lambda form: form.update(rope_type="default"), "its frequencies are off by"),
        (lambda form: form.update(rope_theta=5000.0), "its frequencies are off by"),
        (lambda form: form.update(partial_rotary_factor=0.5), "dimensions|columns|length"),
        (lambda form: form.pop("long_factor"), "KeyError"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(family, tmp_path, edit, reason):
    def both(new):
        edit(new["rope_parameters"])
        del new["rope_scaling"]

    config, encoding = exported(family("llama"), tmp_path / "out", edit=both)
    with pytest.raises(LongEvalError, match=rf"stock transformers .* llama model .*({reason})"):
        check_stock(str(tmp_path / "out"), encoding, config)


def test_a_family_that_refuses_the_settings_is_a_message(family, tmp_path):
    """Phi-3 checks the lengths of the lists by itself, and says so in an exception of another kind."""

    def edit(new):
        for parameters in (new["rope_parameters"], new["rope_scaling"]):
            parameters["short_factor"] = parameters["short_factor"][:-1]

    config, encoding = exported(family("phi3"), tmp_path / "out", edit=edit)
    with pytest.raises(LongEvalError, match=r"stock transformers .* phi3 model .*must have length 8"):
        check_stock(str(tmp_path / "out"), encoding, config)


def test_layers_that_should_stay_are_watched(family, tmp_path):
    def edit(new):
        new["rope_parameters"]["sliding_attention"]["rope_theta"] = 5000.0

    config, encoding = exported(family("gemma3"), tmp_path / "out", edit=edit)
    with pytest.raises(LongEvalError, match="its sliding_attention layers would change"):
        check_stock(str(tmp_path / "out"), encoding, config)


def test_the_second_long_pass_is_looked_at(family, tmp_path):
    """With the native length in its place, transformers fails at the second sequence beyond it (by layer type)."""

    def edit(new):
        for parameters in (new["rope_parameters"]["full_attention"], new["rope_scaling"]):
            parameters["original_max_position_embeddings"] = NATIVE

    config, encoding = exported(family("gemma3"), tmp_path / "out", edit=edit)
    with pytest.raises(LongEvalError, match=r"gemma3_text model .*UnboundLocalError"):
        check_stock(str(tmp_path / "out"), encoding, config)


def test_a_family_that_rotates_in_its_own_way_is_refused(family, tmp_path, monkeypatch):
    from transformers.models.llama import modeling_llama

    forward = modeling_llama.LlamaRotaryEmbedding.forward
    config, encoding = exported(family("llama"), tmp_path / "out")

    def shifted(self, x, position_ids):
        return forward(self, x, position_ids + 1)

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", shifted)
    with pytest.raises(LongEvalError, match="its cosines are not those"):
        check_stock(str(tmp_path / "out"), encoding, config)


def test_building_the_module_needs_no_weights(family, tmp_path, monkeypatch):
    config, encoding = exported(family("llama"), tmp_path / "out")
    sizes = []
    empty = torch.nn.Parameter.__new__

    def seen(cls, data=None, requires_grad=True):
        if data is not None and data.device.type != "meta":
            sizes.append(data.numel())
        return empty(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", seen)
    check_stock(str(tmp_path / "out"), encoding, config)
    assert sizes == []


def test_a_model_with_code_of_its_own_is_refused(family):
    folder = family("llama")
    raw = json.loads((folder / "config.json").read_text())
    own = {"model_type": "homemade", "auto_map": {"AutoConfig": "configuration_homemade.HomemadeConfig"}}
    (folder / "config.json").write_text(json.dumps(raw | own))
    with pytest.raises(LongEvalError, match="model type 'homemade' needs code of its own"):
        check_stock_type(resolve(str(folder)))


def test_what_is_known_against_vllm():
    assert "a cohere model neighbouring pairs" in vllm_reason("cohere")
    assert vllm_reason("ernie4_5") is not None
    assert vllm_reason("llama") is None
