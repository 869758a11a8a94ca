"""Every consumer of a model's RoPE settings takes them as stock transformers' own rotary module does, however spelt."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
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
from longeval.models.prepare import prepare
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


@pytest.fixture
def spell(tiny_llama, tmp_path):
    """Returns a function that writes a tiny Llama with other RoPE settings, and returns its folder."""

    def write(**changes):
        folder = Path(shutil.copytree(tiny_llama, tmp_path / "model", dirs_exist_ok=True))
        config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": REACH}
        del config["rope_parameters"]
        (folder / "config.json").write_text(json.dumps(config | changes))
        return str(folder)

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


def prepared(folder, backend=None):
    return prepare(
        folder, revision=None, native=None, bos=None, dtype="float32", device="cpu", device_map=None, attn=None,
        trust_remote_code=False, backend=backend,
    )  # fmt: skip


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


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TYPES)
def test_engines_and_exports_get_the_same(spell, tmp_path, kind, place):
    folder = spell(**spelt(kind, place, OLD))
    model = prepared(folder, backend=capabilities("vllm"))
    name = parse_method_name("none")
    table = model.rope.tables(name, model.geometry, {})(300)
    engine = engine_arguments(model, table, 301, {}, share_prefixes=False)["hf_overrides"]["rope_parameters"]
    assert engine["rope_type"] == "longeval_table"  # ours, also where nothing but the shipped scaling is asked for
    assert_same(engine["inv_freq"], engine["rope_attention_factor"], stock(folder, 300))
    # The model as it was loaded is held against the plan, at several lengths.
    backend = load_backend(prepared(folder))
    backend.serve(table, 300)
    if model.rope.length_dependent(name):
        return
    encoding = encode(model.rope, "none", factor=None, arguments={})
    assert encoding.factor == (encoding.target_length / model.native_length)
    exported = tmp_path / "exported"
    exported.mkdir()
    raw = json.loads(Path(folder, "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(new_config(raw, model.config, encoding)))
    assert_same(*stock(exported, 300), stock(folder, 300))


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
    tokens_T = np.arange(200, dtype=np.int32) % 290 + 1
    stock_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits_TV = stock_model(torch.from_numpy(tokens_T.astype(np.int64))[None]).logits[0, :-1].double()
    expected = torch.nn.functional.cross_entropy(
        logits_TV, torch.from_numpy(tokens_T[1:].astype(np.int64)), reduction="none"
    )
    model = prepared(folder)
    assert model.geometry.head_dim == 16
    backend = load_backend(model)
    backend.serve(model.rope.tables(parse_method_name("none"), model.geometry, {})(200), 200)
    np.testing.assert_allclose(backend.score(tokens_T, 1), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_an_export_says_nothing_of_a_part_that_its_family_ignores(spell, tmp_path):
    folder = spell(rope_theta=1e4, partial_rotary_factor=0.5)
    model = prepared(folder)
    encoding = encode(model.rope, "yarn", factor=2.0, arguments={})
    raw = json.loads(Path(folder, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(new_config(raw, model.config, encoding)))
    assert_same(*stock(tmp_path, 300), (encoding.table.inv_freq_F, encoding.table.attention_factor))


@pytest.mark.parametrize("rope_type", ["linear", "resonance_yarn"])
def test_a_part_that_stock_transformers_cannot_run_is_refused(spell, rope_type):
    folder = spell(
        rope_parameters={"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}, partial_rotary_factor=0.5
    )
    with pytest.raises(LongEvalError, match=r"partial_rotary_factor .* 0.5: llama models rotate whole heads"):
        read(folder)


def test_a_family_that_heeds_the_part_keeps_it():
    config = transformers.PhiConfig(hidden_size=64, num_attention_heads=4, rope_parameters={"rope_theta": 1e4})
    assert model_rope("m", config).geometry.head_dim == 8


SCALING = {"factor": 4.0, NATIVE: 256}


class TestByLayerType:
    """Gemma 3 wants a dictionary for each kind of layer; its old form says the scaling of the global ones."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_scaling": {"type": "yarn", **SCALING}, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, **SCALING},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 1e6, NATIVE: 256},
        ],
        ids=["old", "new", "length at top level"],
    )
    def test_as_stock_transformers(self, changes):
        config = gemma_config(max_position_embeddings=REACH, **changes)
        module = Gemma3RotaryEmbedding(config)
        table = model_rope("m", config).shipped_table(300)
        held_F = module.full_attention_inv_freq.double().numpy()
        assert_same(table.inv_freq_F, table.attention_factor, (held_F, module.full_attention_attention_scaling))

    @pytest.mark.parametrize("settings", [{"rope_type": "linear", "factor": 4.0}, {"rope_theta": 5e5}])
    def test_settings_in_the_other_form_are_refused_because_stock_ignores_them(self, settings):
        config = gemma_config(rope_parameters=dict(settings))
        plain_F = 1e6 ** (-np.arange(8) / 8)
        np.testing.assert_allclose(Gemma3RotaryEmbedding(config).full_attention_inv_freq.numpy(), plain_F, rtol=1e-6)
        with pytest.raises(LongEvalError, match=f"--model m: {next(iter(settings))} .*would be ignored"):
            model_rope("m", config)

    def test_layer_types_of_a_flat_family_are_refused(self):
        nested = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}
        with pytest.raises(LongEvalError, match="full_attention in its rope_parameters would be ignored"):
            model_rope("m", transformers.LlamaConfig(rope_parameters=nested))


FIELDS = (
    "rope_theta", "factor", NATIVE, "attention_factor", "beta_fast", "beta_slow", "mscale", "low_freq_factor",
    "high_freq_factor", "short_factor", "long_factor", "partial_rotary_factor",
)  # fmt: skip
BAD = ("4", "abc", -1, math.nan, math.inf, [], ["a"], True, 10**400)


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:12])
def test_impossible_values_are_refused_by_their_names(spell, value):
    for kind in ("yarn", "llama3", "longrope"):
        for field in FIELDS:
            if (
                field not in (NATIVE, "rope_theta", "partial_rotary_factor")
                and field
                not in {
                    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale"),
                    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
                    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
                }[kind]
            ):
                continue
            settings = {"rope_type": kind, "rope_theta": 1e4, NATIVE: 256, **TYPES[kind], field: value}
            folder = spell(rope_parameters=settings)
            if field.endswith("_factor") and value == [] and kind == "longrope" and field != "attention_factor":
                expected = f"{kind}|{field}"  # no list of that length
            else:
                expected = field
            with pytest.raises(LongEvalError, match=f"--model .*({expected})"):
                read(folder)


@pytest.mark.parametrize("field", ["rope_theta", NATIVE, "partial_rotary_factor", "max_position_embeddings"])
def test_impossible_values_beside_the_settings_are_refused_by_their_names(spell, field):
    for value in BAD:
        folder = spell(**{"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}, field: value})
        with pytest.raises(LongEvalError, match=f"--model .*{field}"):
            read(folder)


def test_the_reason_is_told(spell):
    for changes, said in (
        ({"rope_theta": "10000"}, "rope_theta is the text '10000'.*without quotes"),
        ({"rope_theta": 1e4, "max_position_embeddings": 256.0}, "max_position_embeddings is 256.0.* Write 256 in"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not a JSON object"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type 3: not a name"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": None}}, "linear scaling has no factor"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0}, NATIVE: None}, f"yarn .*has no {NATIVE}"),
        ({"rope_theta": 1e4, "head_dim": -2}, "impossible rotary dimensions .-2.*Correct head_dim"),
    ):
        with pytest.raises(LongEvalError, match=f"--model .*{said}"):
            read(spell(**changes))


CASES = Path(__file__).parents[3] / "shared" / "cases" / "models"


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases aren't here")
def test_the_cases():
    for name, native, reach in (("y_top", 256, 1024), ("vv_top", 256, 1024), ("vv_in", 256, 1024)):
        rope = read(str(CASES / name))
        assert (rope.geometry.native_length, rope.shipped.reach, rope.shipped.factor) == (native, reach, 4.0)
        table = rope.shipped_table(300)
        assert_same(table.inv_freq_F, table.attention_factor, stock(CASES / name, 300))
    assert read(str(CASES / "v_partial")).geometry.head_dim == 16
    for name, said in (("max_float", "256.0"), ("v_thetastr", "'10000'")):
        with pytest.raises(LongEvalError, match=said):
            read(str(CASES / name))
