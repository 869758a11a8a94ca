"""Every consumer of a model's RoPE settings takes them as stock transformers' own rotary module does, however spelt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from folders import prepared
from scaled_configs import LONG, SHORT, gemma_config
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import longeval.hf  # noqa: F401  # registers our types
from longeval.backends.base import capabilities
from longeval.backends.hf.backend import load_backend
from longeval.backends.vllm.options import engine_arguments
from longeval.errors import LongEvalError
from longeval.export.encoding import encode
from longeval.export.form import new_config
from longeval.models.load import load_config
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope
from longeval.rope.build import parse_method_name

NATIVE = "original_max_position_embeddings"
REACH = 1024
"""max_position_embeddings."""
LENGTHS = (2, 300, 1025, 3000)
"""Around L = 256, 128 and 1024."""

TYPES = {
    "yarn": {"factor": 4.0},
    "yarn null": {"factor": None},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"short_factor": SHORT, "long_factor": LONG},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
}
PLACES = {
    "inside": ({NATIVE: 256}, {}),
    "top": ({}, {NATIVE: 256}),
    "both": ({NATIVE: 256}, {NATIVE: 256}),
    "contradicting": ({NATIVE: 256}, {NATIVE: 128}),
    "absent": ({}, {}),
}
"""What says L: inside the RoPE settings, and beside them."""
OLD, NEW = ("rope_scaling", "type"), ("rope_parameters", "rope_type")
NONE = parse_method_name("none")


@pytest.fixture
def spell(llama):
    """Returns a function that gives a tiny Llama other RoPE settings, and returns its folder."""
    plain = json.loads((llama / "config.json").read_text()) | {"max_position_embeddings": REACH}
    del plain["rope_parameters"]

    def write(**changes):
        (llama / "config.json").write_text(json.dumps(plain | changes))
        return str(llama)

    return write


def spelt(kind, place, spelling):
    """The settings of `TYPES` as `config.json` says them."""
    key, word = spelling
    inside, beside = PLACES[place]
    settings = {word: kind.split()[0], **TYPES[kind], **inside}
    return beside | ({key: settings, "rope_theta": 1e4} if spelling == OLD else {key: settings | {"rope_theta": 1e4}})


def stock(folder, length):
    """The frequencies and the attention factor of stock transformers at a sequence of `length` tokens."""
    module = LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(folder))
    module(torch.zeros(1, 1, 1), torch.tensor([[length - 1]]))
    return module.inv_freq.double().numpy(), float(module.attention_scaling)


def read(folder):
    """What `longeval rope --model` reads."""
    return model_rope("m", load_config(resolve(folder, weights=False)))


def assert_same(inv_freq_F, attention_factor, expected):
    np.testing.assert_allclose(inv_freq_F, expected[0], rtol=2e-6, atol=0)
    assert attention_factor == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TYPES)
def test_tables_are_those_of_stock_transformers(spell, kind, place, spelling):
    folder = spell(**spelt(kind, place, spelling))
    rope = read(folder)
    assert rope.geometry.native_length == {"contradicting": 128, "absent": REACH}.get(place, 256)
    for length in LENGTHS:
        table = rope.shipped_table(length)
        assert_same(table.inv_freq_F, table.attention_factor, stock(folder, length))


def stock_of_export(folder, model, encoding, path):
    """What stock transformers holds of an exported configuration."""
    raw = json.loads(Path(folder, "config.json").read_text())
    (path / "config.json").write_text(json.dumps(new_config(raw, model.config, encoding)))
    return stock(path, 300)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TYPES)
def test_engines_and_exports_get_the_same(spell, tmp_path, kind, place):
    folder = spell(**spelt(kind, place, OLD))
    model = prepared(folder, backend=capabilities("vllm"))
    table = model.rope.tables(NONE, model.geometry, {})(300)
    engine = engine_arguments(model, table, 301, {}, share_prefixes=False)["hf_overrides"]["rope_parameters"]
    assert engine["rope_type"] == "longeval_table"  # ours, also where nothing but the shipped scaling is asked for
    assert_same(engine["inv_freq"], engine["rope_attention_factor"], stock(folder, 300))
    load_backend(prepared(folder)).serve(table, 300)  # holds the loaded model against the plan, at several lengths
    if model.rope.length_dependent(NONE):
        return
    encoding = encode(model.rope, "none", factor=None, arguments={})
    assert encoding.factor == encoding.target_length / model.native_length
    assert_same(*stock_of_export(folder, model, encoding, tmp_path), stock(folder, 300))


@pytest.mark.parametrize("place", ["inside", "top", "both"])
def test_a_type_of_ours_reads_its_length_beside_the_settings_too(spell, place):
    inside, beside = PLACES[place]
    yarn = {"factor": 4.0, "rope_theta": 1e4}
    folder = spell(rope_parameters={"rope_type": "resonance_yarn", **yarn, **inside}, **beside)
    table = read(folder).shipped_table(300)
    held = stock(folder, 300)
    assert_same(table.inv_freq_F, table.attention_factor, held)
    expected = stock(spell(rope_parameters={"rope_type": "yarn", **yarn, NATIVE: 256}), 300)
    rounded_F = 2 * math.pi / np.round(2 * math.pi / expected[0])
    assert_same(*held, (rounded_F, expected[1]))


@pytest.mark.parametrize(
    "changes",
    [
        spelt("yarn", "top", OLD),
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ],
    ids=["length at top level", "part at top level", "part inside"],
)
def test_scores_are_those_of_stock_transformers(spell, changes):
    """Llama rotates whole heads, whatever its config says of a part."""
    folder = spell(**changes)
    tokens_T = torch.arange(200) % 290 + 1
    stock_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits_TV = stock_model(tokens_T[None]).logits[0, :-1].double()
    expected_S = torch.nn.functional.cross_entropy(logits_TV, tokens_T[1:], reduction="none").numpy()
    model = prepared(folder)
    assert model.geometry.head_dim == 16
    backend = load_backend(model)
    backend.serve(model.rope.tables(NONE, model.geometry, {})(200), 200)
    np.testing.assert_allclose(backend.score(tokens_T.numpy().astype(np.int32), 1), expected_S, rtol=1e-4, atol=1e-4)


def test_an_export_says_nothing_of_a_part_that_its_family_ignores(spell, tmp_path):
    folder = spell(rope_theta=1e4, partial_rotary_factor=0.5)
    model = prepared(folder)
    encoding = encode(model.rope, "yarn", factor=2.0, arguments={})
    held = stock_of_export(folder, model, encoding, tmp_path)
    assert_same(*held, (encoding.table.inv_freq_F, encoding.table.attention_factor))


@pytest.mark.parametrize("rope_type", ["linear", "resonance_yarn"])
def test_a_part_that_stock_transformers_cannot_run_is_refused(spell, rope_type):
    folder = spell(
        rope_parameters={"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}, partial_rotary_factor=0.5
    )
    with pytest.raises(LongEvalError, match=r"partial_rotary_factor .* 0\.5"):
        read(folder)


SCALING = {"factor": 4.0, NATIVE: 256}


BY_LAYER = {
    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, **SCALING},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "yarn", **SCALING}, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"rope_parameters": BY_LAYER},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 1e6, NATIVE: 256},
    ],
    ids=["old", "new", "length at top level"],
)
def test_by_layer_type_as_stock_transformers(changes):
    """Gemma 3 wants a dictionary for each kind of layer; its old form says the scaling of the global ones."""
    config = gemma_config(max_position_embeddings=REACH, **changes)
    module = Gemma3RotaryEmbedding(config)
    table = model_rope("m", config).shipped_table(300)
    held_F = module.full_attention_inv_freq.double().numpy()
    assert_same(table.inv_freq_F, table.attention_factor, (held_F, module.full_attention_attention_scaling))


@pytest.mark.parametrize("settings", [{"rope_type": "linear", "factor": 4.0}, {"rope_theta": 5e5}])
def test_settings_in_the_other_form_are_refused_because_stock_ignores_them(settings):
    config = gemma_config(rope_parameters=dict(settings))
    plain_F = 1e6 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(Gemma3RotaryEmbedding(config).full_attention_inv_freq.numpy(), plain_F, rtol=1e-6)
    with pytest.raises(LongEvalError, match=f"--model m: {next(iter(settings))} "):
        model_rope("m", config)


def test_layer_types_of_a_flat_family_are_refused():
    with pytest.raises(LongEvalError, match="full_attention"):
        model_rope("m", transformers.LlamaConfig(rope_parameters={"full_attention": BY_LAYER["full_attention"]}))


FIELDS = {
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
BAD = ("4", "abc", -1, math.nan, math.inf, [], ["a"], True, 10**400)


@pytest.mark.parametrize("kind", FIELDS)
def test_impossible_values_are_refused_by_their_names(spell, kind):
    for field in ("rope_theta", NATIVE, "partial_rotary_factor", *FIELDS[kind]):
        for value in BAD:
            settings = {"rope_type": kind, "rope_theta": 1e4, NATIVE: 256, **TYPES[kind], field: value}
            # An empty list is a list, but of too few numbers.
            expected = f"{kind}|{field}" if value == [] and field in TYPES["longrope"] else field
            with pytest.raises(LongEvalError, match=f"--model .*({expected})"):
                read(spell(rope_parameters=settings))


@pytest.mark.parametrize("field", ["rope_theta", NATIVE, "partial_rotary_factor", "max_position_embeddings"])
def test_impossible_values_beside_the_settings_are_refused_by_their_names(spell, field):
    for value in BAD:
        folder = spell(**{"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}, field: value})
        with pytest.raises(LongEvalError, match=f"--model .*{field}"):
            read(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": "10000"}, "rope_theta .*'10000'"),
        ({"max_position_embeddings": 256.0}, r"max_position_embeddings .*256\.0.* 256 "),
        ({"rope_scaling": "yarn"}, "rope_scaling .*'yarn'"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type 3"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "linear .*factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, NATIVE: None}, f"yarn .*{NATIVE}"),
        ({"head_dim": -2}, "-2.*head_dim"),
    ],
)
def test_the_reason_is_told(spell, changes, said):
    with pytest.raises(LongEvalError, match=f"--model .*{said}"):
        read(spell(**({"rope_theta": 1e4} | changes)))
