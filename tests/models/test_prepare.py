"""What a plan knows of a model without its weights: scaling it came with, BOS, native length, identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM

from longeval.errors import LongEvalError
from longeval.models.prepare import prepare
from longeval.rope.build import parse_method_name
from longeval.run import load_backend

OPTIONS = {
    "revision": None,
    "native": None,
    "bos": None,
    "dtype": "float32",
    "device": "cpu",
    "device_map": None,
    "attn": None,
    "trust_remote_code": False,
}

SHIPPED = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    "yarn mscale": {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.5},
}
NAMES = {"default": None, "linear": "pi", "llama3": "llama3", "yarn": "yarn"}


@pytest.mark.parametrize("settings", SHIPPED)
def test_none_is_the_model_as_shipped(settings, tmp_path):
    rope_type = settings.split()[0]
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **SHIPPED[settings]}
    folder = save_tiny_llama(tmp_path / rope_type, rope_parameters=rope, max_position_embeddings=256)
    tokens_T = np.random.default_rng(0).integers(1, 300, 200).astype(np.int32)
    ids_T = torch.from_numpy(tokens_T.astype(np.int64))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits_TV = plain(ids_T[None]).logits[0]
    expected_S = torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none").numpy()
    # Neither --native nor --factor touches what a model came with.
    for native in (None, 32):
        model = prepare(str(folder), **(OPTIONS | {"native": native}))
        assert model.shipped_rope == NAMES[rope_type]
        assert bool(model.notes) == (rope_type != "default")
        backend = load_backend(model)
        backend.serve(model.tables(parse_method_name("none"), model.geometry, {})(200), 200)
        np.testing.assert_allclose(backend.score(tokens_T, 1), expected_S, atol=2e-4)


def test_other_methods_replace_the_scaling_a_model_came_with(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    scaled = prepare(str(save_tiny_llama(tmp_path / "scaled", rope_parameters=rope)), **OPTIONS)
    plain = prepare(str(save_tiny_llama(tmp_path / "plain")), **OPTIONS)
    name = parse_method_name("yarn")
    assert scaled.tables(name, scaled.geometry, {})(64).same_as(plain.tables(name, plain.geometry, {})(64))


def test_resonance_rounds_what_the_model_came_with(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    model = prepare(str(save_tiny_llama(tmp_path / "scaled", rope_parameters=rope)), **OPTIONS)
    table = model.tables(parse_method_name("resonance"), model.geometry, {})(64)
    assert table.period_F is not None
    # λ = 2·2π·10000^(j/8), rounded
    np.testing.assert_array_equal(table.period_F, np.rint(4 * np.pi * 10000.0 ** (np.arange(8) / 8)))


def test_scalings_that_cannot_be_reproduced_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = save_tiny_llama(tmp_path / "dynamic", rope_parameters=rope)
    with pytest.raises(LongEvalError, match="comes with rope_type dynamic"):
        prepare(str(folder), **OPTIONS)


def test_bos_follows_the_tokenizer_unless_told(tiny_llama, tiny_llama_bos):
    asked = [
        (str(tiny_llama), None),
        (str(tiny_llama_bos), None),
        (str(tiny_llama), True),
        (str(tiny_llama_bos), False),
    ]
    found = [prepare(name, **(OPTIONS | {"bos": bos})).bos for name, bos in asked]
    assert found == [False, True, True, False]
    assert prepare(str(tiny_llama_bos), **OPTIONS).bos_id() == 0


def test_gemma3_scales_its_global_layers_and_leaves_the_local_ones():
    import transformers

    from longeval.backends.hf import HFBackend
    from longeval.rope.base import Geometry
    from longeval.rope.build import build_table

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.Gemma3TextConfig(
        **sizes, **special, num_hidden_layers=6, head_dim=16, vocab_size=300, sliding_window=32, initializer_range=0.3
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    x_BTD, positions_BT = torch.zeros(1, 1, 1), torch.arange(64)[None]
    before = {kind: model.model.rotary_emb(x_BTD, positions_BT, kind)[0] for kind in set(config.layer_types)}
    backend = HFBackend(model)
    theta = config.rope_parameters["full_attention"]["rope_theta"]
    backend.serve(build_table("pi", Geometry(head_dim=16, theta=theta, native_length=32, factor=2.0)), 64)
    after = {kind: model.model.rotary_emb(x_BTD, positions_BT, kind)[0] for kind in before}
    assert torch.equal(after["sliding_attention"], before["sliding_attention"])
    # Position 2m under PI with s = 2 is position m without.
    torch.testing.assert_close(after["full_attention"][0, ::2], before["full_attention"][0, :32], atol=1e-5, rtol=0)
