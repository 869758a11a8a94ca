"""Our methods as rope types of transformers: the tables they give in every family, registering, saving, loading."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hf_models import (
    FAMILIES,
    ROPE,
    build,
    global_buffer,
    in_form_of,
    llama_config,
    logits,
    resonance_yarn,
    rotary,
)
from rope.rope_reference import base_frequencies
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import longeval.hf
from longeval.cli.app import run_app
from longeval.errors import LongEvalError
from longeval.hf import ROPE_TYPES
from longeval.rope.base import METHODS
from longeval.rope.build import method_names


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_turns_by_our_table(family, monkeypatch):
    warned = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(logging.Logger, name, lambda self, text, *a, **k: warned.append(text), raising=False)
    stretched = build(family, rope_parameters=in_form_of(family, ROPE))
    assert warned == []
    expected_F = resonance_yarn(FAMILIES[family][1])
    name = global_buffer(family)
    assert torch.equal(getattr(rotary(stretched), name), expected_F)
    factor = 0.1 * math.log(8) + 1
    scaling = name.replace("inv_freq", "attention_scaling")
    assert getattr(rotary(stretched), scaling) == factor

    plain = build(family, rope_parameters=in_form_of(family, {"rope_type": "default", "rope_theta": 1e4}))
    as_shipped = logits(plain)
    assert (logits(stretched) - as_shipped).abs().max() > 1e-3
    setattr(rotary(plain), name, expected_F)
    setattr(rotary(plain), scaling, factor)
    assert torch.equal(logits(stretched), logits(plain))


def test_local_layers_keep_their_own_or_take_ours():
    own = rotary(build("Gemma3Text", rope_parameters=in_form_of("Gemma3Text", ROPE)))
    assert torch.allclose(own.sliding_attention_inv_freq, torch.tensor(base_frequencies(16, 100.0)))
    ours = {"sliding_attention": {"rope_type": "resonance", "rope_theta": 100.0}, "full_attention": dict(ROPE)}
    both = rotary(build("Gemma3Text", rope_parameters=ours))
    rounded = [2 * math.pi / round(2 * math.pi / theta) for theta in base_frequencies(16, 100.0)]
    assert torch.equal(both.sliding_attention_inv_freq, torch.tensor(rounded))
    assert torch.equal(both.full_attention_inv_freq, resonance_yarn(16))


@pytest.mark.parametrize("name", ROPE_TYPES)
def test_every_type_gives_the_frequencies_of_the_command_line(name, capsys):
    base = name.removeprefix("resonance_") if name != "resonance" else "none"
    given = {"rope_theta": 1e4, "original_max_position_embeddings": 4096}
    flags = ["--head-dim", "32", "--theta", "10000", "--native", "4k", "--json", "-"]
    if METHODS[base].uses_factor:
        given["factor"] = 8
        flags += ["--factor", "8"]
    arguments = {
        "ntk": {"base_rule": "linear"},
        "abf": {"base": 2e5},
        "ntk_by_parts": {"beta_fast": 16},
        "yarn": {"beta_slow": 2, "attention_factor": 1.25},
        "llama3": {"high_freq_factor": 6.0},
        "longrope": {"short_factor": [1.0] * 16, "long_factor": [1 + j / 3 for j in range(16)]},
    }.get(base, {})
    for key, value in arguments.items():
        text = ",".join(map(repr, value)) if isinstance(value, list) else value
        flags += ["--pe-arg", f"{base}.{key}={text}"]
    assert run_app(["rope", name, *flags]) == 0
    described = json.loads(capsys.readouterr().out)
    config = llama_config(rope_type=name, **given, **arguments)
    inv_freq_F, attention_factor = ROPE_INIT_FUNCTIONS[name](config)
    assert inv_freq_F.dtype == torch.float32
    assert inv_freq_F.tolist() == np.float32(described["inv_freq"]).tolist()
    assert attention_factor == described["attention_factor"]


def test_names_are_ours_and_never_those_of_transformers():
    expected = """
        resonance pi resonance_pi ntk resonance_ntk ntk_by_parts resonance_ntk_by_parts
        resonance_yarn resonance_llama3 resonance_longrope abf resonance_abf
    """
    assert tuple(expected.split()) == ROPE_TYPES
    own = {name for name, function in ROPE_INIT_FUNCTIONS.items() if function.__module__.startswith("transformers.")}
    assert own == {"linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}
    assert set(ROPE_INIT_FUNCTIONS) - own == set(method_names()) - {"yarn", "llama3", "longrope"}


def test_registering_again_changes_nothing():
    before = dict(ROPE_INIT_FUNCTIONS), PreTrainedConfig.__post_init__.longeval_original
    longeval.hf.register()
    assert (dict(ROPE_INIT_FUNCTIONS), PreTrainedConfig.__post_init__.longeval_original) == before
    assert not hasattr(before[1], "longeval_original"), "a wrapper in a wrapper"


def test_a_name_that_another_package_took_is_an_error(monkeypatch):
    def theirs(config, device=None, seq_len=None, layer_type=None):
        raise AssertionError

    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "ntk", theirs)
    monkeypatch.delitem(ROPE_INIT_FUNCTIONS, "resonance")
    with pytest.raises(LongEvalError, match=r"rope_type ntk .*test_rope_types"):
        longeval.hf.register()
    assert ROPE_INIT_FUNCTIONS["ntk"] is theirs and "resonance" not in ROPE_INIT_FUNCTIONS


@pytest.mark.parametrize(
    ("family", "part"), [("Llama", {}), ("Gemma3Text", {}), ("GPTNeoX", {"partial_rotary_factor": 0.25})]
)
def test_what_is_given_at_loading_is_saved_and_loaded_again(family, part, tmp_path):
    rope = in_form_of(family, ROPE | part)
    build(family).save_pretrained(tmp_path / "plain")
    mine = copy.deepcopy(rope)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", rope_parameters=mine)
    assert mine == rope
    assert torch.equal(getattr(rotary(model), global_buffer(family)), resonance_yarn(FAMILIES[family][1]))
    assert torch.equal(logits(model), logits(build(family, rope_parameters=rope)))
    model.save_pretrained(tmp_path / "stretched")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "stretched")
    assert again.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(again), logits(model))


FRESH_PROCESS = """
import sys, warnings
import longeval
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "import longeval is light"
import torch
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(folder)
except Exception as error:
    print(repr(error))
import longeval.hf
with torch.no_grad():
    torch.save(AutoModelForCausalLM.from_pretrained(folder)(torch.arange(100)[None] * 7 % 50).logits, out)
"""


def test_a_trained_model_lives_on_in_a_fresh_process(tmp_path):
    model = build(rope_parameters=dict(ROPE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens_BT = torch.arange(4 * 96).reshape(4, 96) % 13
    losses = []
    for _ in range(4):
        loss = model(tokens_BT, labels=tokens_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval().save_pretrained(tmp_path / "trained")
    saved = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert saved["rope_parameters"] == ROPE

    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "trained"), str(tmp_path / "logits.pt")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    # Without the import; the documentation of longeval.hf says so.
    assert answer.stdout.strip() == "KeyError('resonance_yarn')"
    (warning,) = re.findall(r"Missing validation function in .*", answer.stderr)
    assert warning in longeval.hf.__doc__.replace("\n", " ")
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model))


def test_dtype_at_loading_keeps_the_frequencies_and_casting_loses_them(tmp_path):
    build(rope_parameters=dict(ROPE)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(rotary(loaded).inv_freq, resonance_yarn(32))
    cast = loaded.to(torch.float32).to(torch.bfloat16)
    wavelengths_F = 2 * math.pi / rotary(cast).inv_freq.to(torch.float64)
    assert (wavelengths_F - wavelengths_F.round()).abs().max() > 0.1


def test_models_can_be_copied_and_pickled():
    model = build(rope_parameters=dict(ROPE))
    assert torch.equal(logits(copy.deepcopy(model)), logits(pickle.loads(pickle.dumps(model))))
    function = ROPE_INIT_FUNCTIONS["resonance_yarn"]
    assert pickle.loads(pickle.dumps(function)) == function
