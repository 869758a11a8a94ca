"""What a configuration makes of the methods: shipped scalings against transformers, starts, layers, refusals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from folders import prepared
from scaled_configs import LONG, SHIPPED, SHORT, THETA_F, config_of, gemma_config, llama_config
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM, LlamaConfig

from longeval.backends.hf.backend import HFBackend, load_backend
from longeval.errors import LongEvalError
from longeval.models.scaling import model_rope
from longeval.rope.base import Geometry
from longeval.rope.build import build_table, parse_method_name
from longeval.rope.resonance import ResonanceParameters


def table_of(model, name, length, factor=1.0, **arguments):
    geometry = dataclasses.replace(model.geometry, factor=factor)
    return model.tables(parse_method_name(name), geometry, arguments)(length)


@pytest.mark.parametrize("settings", SHIPPED)
@pytest.mark.parametrize("num_tokens", [60, 200])
def test_none_is_the_model_as_shipped(settings, num_tokens, tmp_path):
    folder = save_tiny_llama(tmp_path / "model", **config_of(settings))
    tokens_T = np.random.default_rng(0).integers(1, 300, num_tokens).astype(np.int32)
    ids_T = torch.from_numpy(tokens_T.astype(np.int64))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        # The last token stays out, as in our pass: a sequence's length is what longrope and dynamic go by.
        logits_TV = plain(ids_T[None]).logits[0]
    expected_S = torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none").numpy()
    # Neither --native nor --factor touches what a model came with.
    for native in (None, 32):
        model = prepared(folder, native=native)
        assert model.rope.shipped.rope_type == settings.split()[0]
        assert bool(model.rope.notes) == (settings != "default")
        backend = load_backend(model)
        backend.serve(table_of(model.rope, "none", num_tokens, factor=3.0), num_tokens)
        np.testing.assert_allclose(backend.score(tokens_T, 1), expected_S, atol=2e-4)


def test_only_a_shipped_scaling_that_looks_at_the_length_depends_on_it():
    dependent = {
        settings
        for settings in SHIPPED
        if model_rope("m", llama_config(settings)).length_dependent(parse_method_name("none"))
    }
    assert dependent == {"longrope", "longrope attention", "longrope factor", "dynamic"}
    phi = model_rope("m", llama_config("longrope"))
    assert not phi.length_dependent(parse_method_name("yarn"))
    # Rounding what depends on the length depends on it too.
    assert phi.length_dependent(parse_method_name("resonance"))
    for length, divisors in ((64, SHORT), (65, LONG)):
        expected_F = np.rint(2 * np.pi * np.array(divisors) / THETA_F)
        np.testing.assert_array_equal(table_of(phi, "resonance", length).period_F, expected_F)


def test_a_model_that_holds_other_frequencies_beyond_its_native_length_is_refused(tmp_path):
    model = prepared(save_tiny_llama(tmp_path / "model", **config_of("longrope")))
    load_backend(model)
    arguments = model.rope.shipped.arguments | {"long_factor": (*LONG[:-1], 9.0)}
    shipped = dataclasses.replace(model.rope.shipped, arguments=arguments)
    other = dataclasses.replace(model, rope=dataclasses.replace(model.rope, shipped=shipped))
    with pytest.raises(LongEvalError, match="doesn't hold the frequencies"):
        load_backend(other)


def test_longrope_takes_the_models_own_lists():
    model = model_rope("m", llama_config("longrope"))
    assert model.geometry.native_length == 64

    def check(table, expected_F, stretch):
        np.testing.assert_allclose(table.inv_freq_F, expected_F, rtol=1e-14)
        expected = math.sqrt(1 + math.log(stretch) / math.log(64))
        assert table.attention_factor == pytest.approx(expected, rel=1e-14)

    # As shipped: s = 256/64, from the config's lengths, and the long list beyond the native length.
    check(table_of(model, "none", 64), THETA_F / SHORT, 4)
    check(table_of(model, "none", 65), THETA_F / LONG, 4)
    check(table_of(model, "longrope", 128, factor=2.0), THETA_F / LONG, 2)
    check(table_of(model, "longrope", 128, factor=2.0, long_factor=[2.0] * 8), THETA_F / 2, 2)
    with pytest.raises(LongEvalError, match=r"longrope: .*short_factor"):
        table_of(model_rope("m", llama_config("default")), "longrope", 128)


def test_shipped_dynamic_grows_with_each_sequence_and_forgets():
    model = model_rope("m", llama_config("dynamic"))
    before = table_of(model, "none", 100).inv_freq_F
    np.testing.assert_allclose(before, THETA_F, rtol=1e-14)
    base = 10000.0 * (2.0 * 250 / 100 - 1.0) ** (16 / 14)
    np.testing.assert_allclose(table_of(model, "none", 250).inv_freq_F, base ** (-np.arange(8) / 8), rtol=1e-13)
    np.testing.assert_array_equal(table_of(model, "none", 100).inv_freq_F, before)


def test_other_methods_replace_the_scaling_a_model_came_with():
    for settings in SHIPPED:
        scaled = model_rope("m", llama_config(settings))
        native = scaled.geometry.native_length
        plain = build_table("yarn", Geometry(head_dim=16, theta=10000.0, native_length=native, factor=2.0))
        assert table_of(scaled, "yarn", 64, factor=2.0).same_as(plain)
        assert native == {"linear": 256, "default": 256, "dynamic": 100}.get(settings, 64)


def test_a_note_says_where_the_length_before_a_scaling_is_unknown():
    def notes(settings, **options):
        return model_rope("m", llama_config(settings), **options).notes

    unknown = "doesn't state the length before its linear scaling"
    assert any(unknown in note for note in notes("linear"))
    for quiet in (notes("linear", scale_from="shipped"), notes("llama3"), notes("dynamic")):
        assert len(quiet) == 1 and unknown not in quiet[0]
    assert "softmax scale" in notes("yarn mscale")[1]


def test_methods_can_build_on_the_shipped_scaling():
    model = model_rope("m", llama_config("llama3", max_position_embeddings=512), scale_from="shipped")
    assert model.geometry.native_length == 512 and model.own_native_length == 64
    # Llama 3's frequencies for s = 8, L = 64, low 1, high 4.
    smooth_F = np.clip((64 * THETA_F / (2 * math.pi) - 1) / 3, 0, 1)
    start_F = (1 - smooth_F) * THETA_F / 8 + smooth_F * THETA_F
    ntk_F = start_F * 2.0 ** (-2 * np.arange(8) / 14)
    # Turns in 512 tokens: 81, 25.8, 6.7, 0.98 … The index of 32 turns lies in 0 … 1, that of 1 turn in 2 … 3.
    turns_F = 512 * start_F / (2 * math.pi)
    assert turns_F[0] > 32 > turns_F[1] and turns_F[2] > 1 > turns_F[3]
    share_F = np.clip(np.arange(8) / 3, 0, 1)
    yarn_F = (1 - share_F) * start_F + share_F * start_F / 2
    for name, expected_F in {"none": start_F, "pi": start_F / 2, "ntk": ntk_F, "yarn": yarn_F}.items():
        factor = 1.0 if name == "none" else 2.0
        np.testing.assert_allclose(table_of(model, name, 600, factor).inv_freq_F, expected_F, rtol=1e-13)
    rounded = table_of(model, "resonance_ntk", 600, factor=2.0)
    np.testing.assert_array_equal(rounded.period_F, np.rint(2 * np.pi / ntk_F))
    assert table_of(model, "yarn", 600, factor=2.0).attention_factor == pytest.approx(0.1 * math.log(2) + 1)


def test_native_is_the_length_that_methods_start_from_and_a_shipped_form_has_its_own():
    plain = model_rope("m", llama_config("default"))
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=plain.geometry.native_length, factor=2.0)
    native = ResonanceParameters(max_period="native")
    for name in ("resonance", "resonance_yarn"):
        table = table_of(plain, name, 100, factor=2.0, max_period="native")
        assert table.fractions() == build_table(name, geometry, resonance=native).fractions()
        assert table.turns_F.max() > 1
    rope = {
        "rope_type": "resonance_yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "max_period": "native",
    }
    shipped = model_rope(
        "m", LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters={**rope, "rope_theta": 1e4})
    )
    short = dataclasses.replace(geometry, head_dim=32, native_length=32)
    table = table_of(shipped, "none", 100)
    assert table.fractions() == build_table("resonance_yarn", short, resonance=native).fractions()
    assert shipped.shipped.unrounded().table(short, 100).same_as(build_table("yarn", short))
    gemma = table_of(model_rope("gemma", gemma_config(), layers="all"), "resonance", 64, max_period="native")
    assert gemma.turns_F is not None and gemma.local.turns_F is not None


@pytest.mark.parametrize(("max_period", "label"), [("rounded", "resonance"), (16, "resonance (max_period=16)")])
def test_a_model_that_comes_with_rounded_wavelengths_is_not_plain(max_period, label):
    rope = {"rope_type": "resonance", "rope_theta": 1e4, "max_period": max_period}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=rope)
    model = model_rope("m", config)
    assert (model.shipped.is_plain, model.shipped.label) == (False, label)
    assert len(model.notes) == 1 and label in model.notes[0]
    plain = model_rope("m", llama_config("default"))
    assert plain.shipped.is_plain and not plain.notes
    on_rounded = model_rope("m", config, scale_from="shipped")
    assert on_rounded.geometry.start == tuple(table_of(model, "none", 64).inv_freq_F)


def test_building_on_plain_frequencies_gives_the_methods_themselves():
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)
    same = dataclasses.replace(geometry, start=tuple(THETA_F))
    for name in ("none", "pi", "ntk", "dynamic_ntk", "ntk_by_parts", "yarn", "dynamic_yarn", "llama3"):
        expected, got = build_table(name, geometry), build_table(name, same)
        np.testing.assert_allclose(got.inv_freq_F, expected.inv_freq_F, rtol=1e-12)
        assert got.attention_factor == expected.attention_factor


def test_the_shipped_attention_factor_is_kept_when_methods_build_on_it():
    config = llama_config("longrope attention")
    model = model_rope("m", config, scale_from="shipped")
    # Made for 256 tokens: the long list is what methods start from.
    np.testing.assert_allclose(table_of(model, "pi", 600, factor=2.0).inv_freq_F, THETA_F / LONG / 2, rtol=1e-13)
    assert table_of(model, "pi", 600, factor=2.0).attention_factor == pytest.approx(1.4)
    expected = 1.4 * (0.1 * math.log(2) + 1)
    assert table_of(model, "yarn", 600, factor=2.0).attention_factor == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "method", "said"),
    [
        ("default", "yarn", "plain RoPE"),
        ("dynamic", "yarn", "dynamic scaling"),
        ("llama3", "abf", "abf"),
        ("longrope", "longrope", "longrope's"),
    ],
)
def test_starts_that_make_no_sense_are_refused(settings, method, said):
    with pytest.raises(LongEvalError, match=f"--scale-from shipped: .*{said}"):
        table_of(model_rope("m", llama_config(settings), scale_from="shipped"), method, 64, factor=2.0)


def test_yarn_has_no_ramp_over_frequencies_that_rise():
    rising = {"original_max_position_embeddings": 64, "short_factor": LONG, "long_factor": [900.0, *LONG[1:]]}
    config = llama_config("default", rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **rising})
    with pytest.raises(LongEvalError, match="no ramp"):
        table_of(model_rope("m", config, scale_from="shipped"), "yarn", 64, factor=2.0)


def rotations(model, num_tokens, layer_type):
    x_BTD, positions_BT = torch.zeros(1, 1, 1), torch.arange(num_tokens)[None]
    return model.model.rotary_emb(x_BTD, positions_BT, layer_type)


def test_gemma3_scales_its_global_layers_and_the_local_ones_only_when_asked():
    config = gemma_config(max_position_embeddings=32)
    model = AutoModelForCausalLM.from_config(config).eval()
    kinds = ("full_attention", "sliding_attention")
    before = {kind: rotations(model, 64, kind)[0] for kind in kinds}
    backend = HFBackend(model)
    rope = model_rope("gemma", config)
    assert (rope.geometry.theta, rope.config.local) == (1e6, 1e4)
    backend.serve(table_of(rope, "pi", 64, factor=2.0), 64)
    assert torch.equal(rotations(model, 64, "sliding_attention")[0], before["sliding_attention"])
    alone = backend.rope_digest(64)
    everywhere = model_rope("gemma", config, layers="all")
    backend.serve(table_of(everywhere, "pi", 64, factor=2.0), 64)
    for kind in kinds:
        # Position 2m under PI with s = 2 is position m without.
        after = rotations(model, 64, kind)[0]
        torch.testing.assert_close(after[0, ::2], before[kind][0, :32], atol=1e-5, rtol=0)
    assert backend.rope_digest(64) != alone
    # Back to the global layers alone: nothing is left of the other table.
    backend.serve(table_of(rope, "pi", 64, factor=2.0), 64)
    assert torch.equal(rotations(model, 64, "sliding_attention")[0], before["sliding_attention"])
    assert backend.rope_digest(64) == alone


def test_resonance_everywhere_rounds_each_base_by_itself():
    table = table_of(model_rope("gemma", gemma_config(), layers="all"), "resonance", 64)
    np.testing.assert_array_equal(table.period_F, np.rint(2 * np.pi * 1e6 ** (np.arange(8) / 8)))
    np.testing.assert_array_equal(table.local.period_F, np.rint(2 * np.pi * 1e4 ** (np.arange(8) / 8)))
    alone = dataclasses.replace(table, local=None)
    assert table.same_as(table) and not table.same_as(alone) and not alone.same_as(table)
    assert not table.same_as(dataclasses.replace(table, local=alone))


def test_a_shipped_scaling_of_the_global_layers_is_read():
    scaled = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
    model = model_rope("gemma", gemma_config(rope_parameters=scaled))
    np.testing.assert_allclose(table_of(model, "none", 64).inv_freq_F, 1e6 ** (-np.arange(8) / 8) / 8, rtol=1e-14)
    assert "linear scaling" in model.notes[0] and "--layers all" in model.notes[2]


def test_all_layers_is_refused_where_it_would_change_nothing_or_is_unclear():
    with pytest.raises(LongEvalError, match=r"--layers all: would be ignored, m .llama."):
        model_rope("m", llama_config("default"), layers="all")
    scaled = {
        "sliding_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    }
    with pytest.raises(LongEvalError, match="no single set of sliding-window layers"):
        model_rope("m", gemma_config(rope_parameters=scaled), layers="all")


def test_llama3s_factor_is_no_ratio_of_lengths():
    """Llama 3.2: 8192 to 131072 tokens, with s = 32."""
    rope = SHIPPED["llama3"] | {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
    rope["original_max_position_embeddings"] = 8192
    config = llama_config("default", rope_parameters=rope, max_position_embeddings=131072)
    shipped = model_rope("m", config, scale_from="shipped")
    lengths = (shipped.shipped.native_length, shipped.shipped.reach, shipped.geometry.native_length)
    assert lengths == (8192, 131072, 131072)
    # Qwen2.5's way: max_position_embeddings stays, and s tells how far yarn reaches.
    yarn = model_rope("m", llama_config("yarn", max_position_embeddings=64))
    assert yarn.shipped.reach == 256
