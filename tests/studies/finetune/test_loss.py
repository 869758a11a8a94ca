"""The chunked loss against full logits, and LongCE's weights against a calculation in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from studies.finetune.tiny_training import batches, ones, request, run, tiny
from torch.nn.functional import cross_entropy

from longeval.backends.hf.parts import ModelParts
from longeval.errors import LongEvalError
from longeval.studies.finetune import loss as loss_module
from longeval.studies.finetune.loss import LongCE, ModelWithLoss, make_loss, next_tokens, restarted_positions, token_nll


def tensors(num_sequences=2, num_tokens=24, *, documents=False):
    batch = batches(num_sequences, num_tokens, documents=documents)(0)
    found = (batch.tokens_BT, batch.positions_BT, batch.documents_BT)
    return [None if part is None else torch.from_numpy(part) for part in found]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_give_values_and_gradients_of_full_logits(monkeypatch, chunk, tied):
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", chunk * 4 * 50)
    model = tiny(torch.float64, tie_word_embeddings=tied).requires_grad_(True)
    tokens_BT, positions_BT, _ = tensors()
    weights_BT = torch.rand(2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels_BT = loss_module.next_tokens(tokens_BT, None)

    parts = ModelParts(model)
    nll_BT = token_nll(parts, parts.decoder(**ones(tokens_BT, positions_BT, None)), labels_BT)
    (nll_BT * weights_BT).sum().backward()
    ours = [weight.grad.clone() for weight in model.parameters()]

    model.zero_grad()
    logits_BTV = model(input_ids=tokens_BT).logits
    full_BT = torch.zeros(2, 24, dtype=torch.float64)
    full_BT[:, :-1] = cross_entropy(logits_BTV[:, :-1].transpose(1, 2), tokens_BT[:, 1:], reduction="none")
    (full_BT * weights_BT).sum().backward()

    assert torch.allclose(nll_BT, full_BT, atol=1e-12, rtol=0)
    for got, weight in zip(ours, model.parameters(), strict=True):
        assert torch.allclose(got, weight.grad, atol=1e-10, rtol=1e-10)


def test_no_logits_of_all_tokens_exist(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", 4 * 4 * 50)
    model = tiny().requires_grad_(True)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2]))
    tokens_BT, positions_BT, _ = tensors()
    ModelWithLoss(model, None, ones)(tokens_BT, positions_BT, None).weighted.backward()
    assert sizes == [4] * 24  # 48 tokens in chunks of 4, in the forward and once more in the backward pass


def test_soft_caps_of_a_family_are_kept():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Gemma2Config(**sizes, head_dim=16, intermediate_size=48, vocab_size=50, final_logit_softcapping=0.5)
    model = Gemma2ForCausalLM(config).to(torch.float64).requires_grad_(True)
    tokens_BT, positions_BT, _ = tensors()
    sums = ModelWithLoss(model, None, ones)(tokens_BT, positions_BT, None)
    logits_BTV = model(input_ids=tokens_BT).logits
    assert logits_BTV.abs().max() < 0.5
    expected = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="sum")
    assert float(sums.weighted.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def reference_weights(model, tokens_T, context, step, bound, starts_T=None):
    """LongCE's weight of every token, by a pass over each token's own short context.

    `starts_T`: where attention ends at borders of documents, the first token of each token's document.
    """
    starts_T = [0] * len(tokens_T) if starts_T is None else starts_T
    weights_T = torch.ones(len(tokens_T), dtype=torch.float64)
    for token in range(context, len(tokens_T)):
        first = (token - context) // step * step

        def log_p(start, token=token):
            logits_TV = model(input_ids=tokens_T[None, start:token], use_cache=False).logits[0]
            return float(torch.log_softmax(logits_TV[-1].double(), dim=-1)[tokens_T[token]])

        if starts_T[token] == token:
            continue
        long, short = log_p(starts_T[token]), log_p(max(first, starts_T[token]))
        weights_T[token] = min(math.exp(long - short), bound)
    return weights_T


@pytest.mark.parametrize(("context", "step"), [(8, 4), (8, 5), (14, 5), (1, 1)])
def test_weights_are_those_of_a_plain_calculation(context, step):
    model = tiny(torch.float64)
    tokens_BT, positions_BT, _ = tensors()
    sums = ModelWithLoss(model, LongCE(context=context, step=step, bound=1.5), ones)(tokens_BT, positions_BT, None)
    weights_BT = torch.stack([reference_weights(model, tokens_T, context, step, 1.5) for tokens_T in tokens_BT])
    nll_BT = cross_entropy(model(tokens_BT).logits[:, :-1].transpose(1, 2), tokens_BT[:, 1:], reduction="none")
    assert float(weights_BT.max()) == 1.5 and len(set(weights_BT.flatten().tolist())) > 2
    assert float(sums.weighted) == pytest.approx(float((weights_BT[:, 1:] * nll_BT).sum()), rel=1e-9)
    assert float(sums.plain) == pytest.approx(float(nll_BT.sum()), rel=1e-9)
    assert float(sums.tokens) == 46


def test_short_contexts_end_at_borders_of_documents_too():
    model = tiny(torch.float64)
    tokens_BT, positions_BT, documents_BT = tensors(1, documents=True)
    whole = ModelWithLoss(model, LongCE(context=4, step=3), ones)
    sums = whole(tokens_BT, positions_BT, documents_BT)
    labels_BT = next_tokens(tokens_BT, documents_BT)
    nll_BT = whole._nll(tokens_BT, positions_BT, documents_BT, labels_BT)  # 0 where the next document begins
    border = int(documents_BT[0].argmax())
    starts_T = [0 if token < border else border for token in range(24)]
    weights_T = reference_weights(model, tokens_BT[0], 4, 3, 5.0, starts_T)
    assert float(sums.weighted) == pytest.approx(float((weights_T[1:] * nll_BT[0, :-1]).sum()), rel=1e-9)
    assert float(sums.weighted) != pytest.approx(float(nll_BT.sum()), rel=1e-3)


def test_no_gradient_goes_through_the_weights():
    model = tiny(torch.float64).requires_grad_(True)
    tokens_BT, positions_BT, _ = tensors()
    ModelWithLoss(model, LongCE(context=8, step=4), ones)(tokens_BT, positions_BT, None).weighted.backward()
    ours = [weight.grad.clone() for weight in model.parameters()]
    with torch.no_grad():
        weights_BT = torch.stack([reference_weights(model, tokens_T, 8, 4, 5.0) for tokens_T in tokens_BT])
    model.zero_grad()
    nll_BT = cross_entropy(model(tokens_BT).logits[:, :-1].transpose(1, 2), tokens_BT[:, 1:], reduction="none")
    (weights_BT[:, 1:] * nll_BT).sum().backward()
    for got, weight in zip(ours, model.parameters(), strict=True):
        assert torch.allclose(got, weight.grad, atol=1e-9, rtol=1e-9)


def test_passes_of_any_size_give_the_same_weighted_step(tmp_path):
    asked = request(loss="longce", loss_args={"longce": {"context": "8", "step": 4}})
    one, other = tiny(torch.float64), tiny(torch.float64)
    log = run(one, asked, tmp_path / "a", micro_batch=4)
    again = run(other, asked, tmp_path / "b", micro_batch=1)
    assert log.loss == pytest.approx(again.loss, rel=1e-12)
    assert log.gradient_norm == pytest.approx(again.gradient_norm, rel=1e-6)  # its norms are computed in float32
    assert log.plain_loss != log.loss
    assert log.plain_loss[0] == pytest.approx(run(tiny(torch.float64), request(), tmp_path / "c").loss[0], rel=1e-12)


def test_positions_restart_in_each_document():
    documents_BT = torch.tensor([[3, 3, 4, 4, 4, 5], [1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert restarted_positions(torch.zeros_like(documents_BT), documents_BT).tolist() == expected
    assert restarted_positions(torch.zeros_like(documents_BT), None).tolist() == [list(range(6))] * 2


def test_parameters_are_read_and_checked():
    assert make_loss(request()) is None
    assert make_loss(request(loss="longce", length=8192, window=None)) == LongCE(context=4096, step=1024, bound=5.0)
    given = {"longce": {"context": "1k", "step": 256, "bound": "3.5"}}
    asked = request(loss="longce", length=8192, window=2048, loss_args=given)
    assert make_loss(asked) == LongCE(context=1024, step=256, bound=3.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "longce", "length": 5120, "window": None},  # no token has a longer context than the short one
        {"loss": "longce", "length": 8192, "window": None, "augment": ("none", "pose")},
        {"loss": "ce", "loss_args": {"longce": {"context": 8}}},
        {"loss": "longce", "loss_args": {"longce": {"contxt": 8}}},
        {"loss": "longce", "loss_args": {"longce": {"context": "x"}}},
        {"loss": "longce", "loss_args": {"longce": {"context": 8, "step": 0}}},
        {"loss": "longce", "loss_args": {"longce": {"context": 8, "bound": -1}}},
        {"loss": "longce", "loss_args": {"longce": {"context": 8, "bound": "nan"}}},
    ],
)
def test_what_can_not_be_is_refused(changes):
    with pytest.raises(LongEvalError):
        make_loss(request(**changes))
