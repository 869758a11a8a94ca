"""Evaluation against plain loops: one sequence, one position at a time, without batches or cache."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_posgen as tiny
import torch

from longeval.studies.posgen.evaluate import ModelEvaluation, evaluate
from longeval.studies.posgen.model import cos_sin, forward, initial_weights


def last_logits(config, weights, table, tokens):
    """Of the token after `tokens`, in a pass of its own."""
    read = [config.modulus, *tokens] if config.start_token else tokens
    return forward(weights, torch.tensor([read]), *cos_sin(table, len(read)), config)[0, -1]


def plain_loops(config, weights, table):
    """(accuracy, loss, generated), (P,) each."""
    found = np.zeros((3, 16))
    for tokens in tiny.DATA.test_NT.tolist():
        own = tokens[:4]
        for position in range(4, 20):
            logits_V = last_logits(config, weights, table, tokens[:position])
            found[0, position - 4] += int(logits_V.argmax()) == tokens[position]
            found[1, position - 4] -= float(logits_V.log_softmax(-1)[tokens[position]])
            own.append(int(last_logits(config, weights, table, own).argmax()))
            found[2, position - 4] += own[-1] == tokens[position]
    return found / len(tiny.DATA.test_NT)


@pytest.mark.parametrize("choices", [{}, {"start_token": True, "tied": False}])
@pytest.mark.parametrize("batch_bytes", [2**30, 1])
def test_by_position_as_plain_loops_have_it(choices, batch_bytes, monkeypatch):
    monkeypatch.setattr("longeval.studies.posgen.evaluate.BATCH_BYTES", batch_bytes)
    config = tiny.config(**choices)
    weights = initial_weights(config, 0, "cpu")
    accuracy_P, loss_P, generated_P = plain_loops(config, weights, tiny.table("yarn"))
    found = evaluate(config, weights, tiny.DATA.test_NT, tiny.table("yarn"), first=4, device="cpu")
    assert (generated_P != accuracy_P).any()
    assert list(found.positions_P) == list(range(4, 20))
    assert (found.first, found.num_sequences) == (4, 7)
    np.testing.assert_allclose(found.accuracy_P, accuracy_P)
    np.testing.assert_allclose(found.loss_P, loss_P, rtol=1e-5)
    np.testing.assert_allclose(found.generated_P, generated_P)


def test_ranges():
    """Positions 4, 5, 6 with a training length of 6: two in distribution, one out of it."""
    values_P = np.array([1.0, 0.5, 0.25])
    one = ModelEvaluation(first=4, accuracy_P=values_P, loss_P=values_P, generated_P=None, num_sequences=3)
    assert (one.in_distribution(values_P, 6), one.ood(values_P, 6)) == (0.75, 0.25)
    assert np.isnan(one.ood(values_P, 7))
