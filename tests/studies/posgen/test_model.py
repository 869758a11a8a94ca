"""The model against a plain float64 one, its RoPE tables, its initial weights, generation with a cache."""

from __future__ import annotations

import model_reference
import numpy as np
import pytest
import tiny_posgen as tiny
import torch

from longeval.backends.hf.parts import TableRotaryEmbedding
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.model import Cache, cos_sin, digest, forward, initial_weights, model_inputs

OPEN_CHOICES = (
    {},
    {"attention_scale": True},
    {"init": "normal"},
    {"tied": False, "init": "normal", "attention_scale": True, "start_token": True, "layers": 3},
)


def drawn_tokens(config, num_sequences=3, length=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.modulus, (num_sequences, length), generator=generator)


def lively_weights(config):
    """Float64, with gains that aren't 1, so that a gain left out shows."""
    weights = initial_weights(config, 3, "cpu", torch.float64)
    generator = torch.Generator().manual_seed(2)
    for name, weight in weights.items():
        if name.endswith("norm"):
            weight += torch.randn(weight.shape, generator=generator, dtype=torch.float64) / 3
        elif config.init == "normal":
            weight *= 20  # 0.02 would leave attention nearly uniform
    return weights


@pytest.mark.parametrize("choices", OPEN_CHOICES)
@pytest.mark.parametrize("pe", ["none", "resonance_yarn"])
def test_logits_are_those_of_a_plain_float64_model(choices, pe):
    config = tiny.config(**choices)
    weights, tokens_BT = lively_weights(config), drawn_tokens(config)
    rows = tiny.table(pe).cos_sin(np.arange(9))
    inputs_BT = model_inputs(tokens_BT, config)
    logits_BTV = forward(weights, inputs_BT, *cos_sin(tiny.table(pe), inputs_BT.shape[1]), config)
    for tokens, logits_TV in zip(tokens_BT.tolist(), logits_BTV, strict=True):
        read = [config.modulus, *tokens[:-1]] if config.start_token else tokens[:-1]
        expected_TV = model_reference.logits(weights, read, rows.cos_TF, rows.sin_TF, config)
        np.testing.assert_allclose(logits_TV, expected_TV, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_the_plain_model_by_finite_differences():
    config = tiny.config(layers=1, attention_scale=True)
    weights, tokens_BT = lively_weights(config), drawn_tokens(config, 1, 7)
    rows = tiny.table("yarn").cos_sin(np.arange(7))
    trained = [weight.requires_grad_() for weight in weights.values()]
    loss = forward(weights, tokens_BT, *cos_sin(tiny.table("yarn"), 7), config).square().sum()
    gradients = dict(zip(weights, torch.autograd.grad(loss, trained), strict=True))
    plain = {name: weight.detach().numpy().copy() for name, weight in weights.items()}

    def reference():
        tokens = tokens_BT[0].tolist()
        return (model_reference.logits(plain, tokens, rows.cos_TF, rows.sin_TF, config) ** 2).sum()

    for name, weight in plain.items():
        for place in {0, weight.size // 3, weight.size // 2, weight.size - 1}:
            before = weight.flat[place]
            weight.flat[place] = before + 1e-5
            above = reference()
            weight.flat[place] = before - 1e-5
            difference = (above - reference()) / 2e-5
            weight.flat[place] = before
            assert gradients[name].flatten()[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-5), name


def test_bfloat16_is_near_and_keeps_float32_logits():
    config = tiny.config(attention_scale=True)
    weights, tokens_BT = initial_weights(config, 0, "cpu"), drawn_tokens(config)
    exact, near = (
        forward(weights, tokens_BT, *cos_sin(tiny.table(), 9), config, dtype=d) for d in (None, torch.bfloat16)
    )
    assert near.dtype == torch.float32
    assert 1e-5 < (exact - near).abs().max() < 0.1


@pytest.mark.parametrize("start_token", [False, True])
def test_token_by_token_gives_the_logits_of_one_pass(start_token):
    config = tiny.config(start_token=start_token)
    weights, tokens_BT = lively_weights(config), drawn_tokens(config, length=8)
    table = cos_sin(tiny.table("yarn"), 8)
    whole_BTV = forward(weights, tokens_BT, *table, config)
    cache = Cache(config, 3, 8, torch.device("cpu"), torch.float64)
    parts = [forward(weights, tokens_BT[:, :3], *table, config, cache=cache)]
    parts += [forward(weights, tokens_BT[:, i : i + 1], *table, config, cache=cache) for i in range(3, 8)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole_BTV)
    assert cache.length == 8


@pytest.mark.parametrize("pe", ["none", "resonance_yarn"])
def test_rows_and_digest_are_those_that_a_backend_serves(pe):
    served = TableRotaryEmbedding(torch.nn.Identity(), "halves")
    served.serve(tiny.table(pe), 20)
    cos_TD, sin_TD = served(torch.zeros(1), torch.arange(20)[None])
    held = cos_sin(tiny.table(pe), 20)
    assert held.cos_TF.dtype == held.sin_TF.dtype == torch.float32
    assert torch.equal(torch.cat([held.cos_TF] * 2, dim=-1), cos_TD[0])
    assert torch.equal(torch.cat([held.sin_TF] * 2, dim=-1), sin_TD[0])
    assert digest(tiny.table(pe), 20) == served.digest(20) != digest(tiny.table(pe), 19)


def test_initial_weights_of_a_seed_depend_on_it_alone():
    config = tiny.config(tied=False)
    one, same, other = (initial_weights(config, seed, "cpu") for seed in (2, 2, 7))
    assert {name: tuple(weight.shape) for name, weight in one.items()} == config.shapes
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        assert name.endswith("norm") or not torch.equal(weight, other[name])
    # A change of these changes what a seed means: see `cells.ALGORITHM`.
    assert one["embedding"][0, :3].tolist() == pytest.approx(
        [-1.0408011674880981, 0.9166041612625122, -1.3041903972625732]
    )


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, {"query": (64 * 16) ** -0.5, "key": 64**-0.5, "value": 64**-0.5, "embedding": 1.0, "head": 64**-0.5}),
        ({"attention_scale": True}, {"query": 64**-0.5, "key": 64**-0.5}),
        ({"init": "normal"}, dict.fromkeys(("query", "value", "embedding", "head", "0.mlp.out"), 0.02)),
        ({}, {"0.attention.out": 128**-0.5, "0.mlp.in": 64**-0.5, "0.mlp.out": 96**-0.5}),
    ],
)
def test_standard_deviations(choices, expected):
    config = ModelConfig(modulus=97, layers=1, d_model=64, d_ff=96, heads=8, head_dim=16, tied=False, **choices)
    weights = initial_weights(config, 0, "cpu")
    columns = zip(("query", "key", "value"), weights["0.attention.qkv"].chunk(3, dim=-1), strict=True)
    for name, std in expected.items():
        found = dict(columns) if name == "query" else {}
        weights |= found
        assert float(weights[name].std()) == pytest.approx(std, rel=0.05), name
