"""Evaluation against plain loops: one sequence, one position at a time, without batches or cache."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_posgen as tiny
import torch

from longeval.studies.posgen.evaluate import SeedEvaluation, evaluate
from longeval.studies.posgen.model import cos_sin, forward, initial_weights

TEST_SNT = np.stack([tiny.DATA.test_NT, tiny.DATA.test_NT[::-1]])


def last_logits(config, weights, table, seed, tokens):
    """Of the token after `tokens`, in a pass of its own."""
    read = [config.modulus, *tokens] if config.start_token else tokens
    alone = {name: weight[seed : seed + 1] for name, weight in weights.items()}
    rows = cos_sin(table, len(read))
    return forward(alone, torch.tensor([[read]]), *rows, config)[0, 0, -1]


def plain_loops(config, weights, table):
    """(accuracy, loss, generated), (S, P) each."""
    found = np.zeros((3, 2, 16))
    for seed, tests_NT in enumerate(TEST_SNT.tolist()):
        for tokens in tests_NT:
            own = tokens[:4]
            for position in range(4, 20):
                logits_V = last_logits(config, weights, table, seed, tokens[:position])
                found[0, seed, position - 4] += int(logits_V.argmax()) == tokens[position]
                found[1, seed, position - 4] -= float(logits_V.log_softmax(-1)[tokens[position]])
                own.append(int(last_logits(config, weights, table, seed, own).argmax()))
                found[2, seed, position - 4] += own[-1] == tokens[position]
    return found / TEST_SNT.shape[1]


@pytest.mark.parametrize("choices", [{}, {"start_token": True, "tied": False}])
@pytest.mark.parametrize("batch_bytes", [2**30, 1])
def test_by_position_as_plain_loops_have_it(choices, batch_bytes, monkeypatch):
    monkeypatch.setattr("longeval.studies.posgen.evaluate.BATCH_BYTES", batch_bytes)
    config = tiny.config(**choices)
    weights = initial_weights(config, (0, 1), "cpu")
    accuracy_SP, loss_SP, generated_SP = plain_loops(config, weights, tiny.table("yarn"))
    found = evaluate(config, weights, TEST_SNT, tiny.table("yarn"), first=4, device="cpu")
    assert (generated_SP != accuracy_SP).any()
    for seed, one in enumerate(found):
        assert list(one.positions_P) == list(range(4, 20))
        assert (one.first, one.num_sequences) == (4, 7)
        np.testing.assert_allclose(one.accuracy_P, accuracy_SP[seed])
        np.testing.assert_allclose(one.loss_P, loss_SP[seed], rtol=1e-5)
        np.testing.assert_allclose(one.generated_P, generated_SP[seed])


def test_ranges():
    """Positions 4, 5, 6 with a training length of 6: two in distribution, one out of it."""
    values_P = np.array([1.0, 0.5, 0.25])
    one = SeedEvaluation(first=4, accuracy_P=values_P, loss_P=values_P, generated_P=None, num_sequences=3)
    assert (one.in_distribution(values_P, 6), one.ood(values_P, 6)) == (0.75, 0.25)
    assert np.isnan(one.ood(values_P, 7))
