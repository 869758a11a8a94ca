"""What tokens see: across the jumps of augmented positions, and not across the borders of documents."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from longeval.studies.finetune.attend import forward_arguments

VOCABULARY, TOKENS, BORDER = 50, 24, 10


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def decoder(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        initializer_range=0.3,
        attn_implementation=request.param,
    )
    return LlamaModel(config).eval()


@pytest.fixture
def tokens_BT():
    return torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def hidden(decoder, **arguments):
    return decoder(**arguments).last_hidden_state


def with_another_token(tokens_BT, index):
    changed_BT = tokens_BT.clone()
    changed_BT[:, index] = (changed_BT[:, index] + 1) % VOCABULARY
    return changed_BT


def influence(decoder, tokens_BT, arguments):
    """The largest change behind the border that another token at index 3 makes, in each sequence."""
    plain = hidden(decoder, **arguments)
    changed = hidden(decoder, **arguments | {"input_ids": with_another_token(tokens_BT, 3)})
    return (plain - changed)[:, BORDER:].abs().amax((1, 2))


def jumping(skip):
    positions_T = torch.arange(TOKENS)
    positions_T[BORDER:] += skip
    return positions_T.expand(2, -1).clone()


def test_a_chunk_behind_a_jump_sees_the_chunk_before_it(decoder, tokens_BT):
    arguments = forward_arguments(tokens_BT, jumping(100), None)
    assert influence(decoder, tokens_BT, arguments).min() > 0.01


def test_without_a_mask_transformers_takes_a_jump_for_a_border(decoder, tokens_BT):
    """The trap that `forward_arguments` avoids. If this fails, transformers has changed, and the mask may go."""
    arguments = forward_arguments(tokens_BT, jumping(100), None) | {"attention_mask": None}
    assert influence(decoder, tokens_BT, arguments).max() == 0


def test_without_a_jump_the_mask_changes_nothing(decoder, tokens_BT):
    arguments = forward_arguments(tokens_BT, jumping(0), None)
    assert torch.equal(hidden(decoder, **arguments), hidden(decoder, **arguments | {"attention_mask": None}))


def test_no_token_sees_what_comes_after_it(decoder, tokens_BT):
    arguments = forward_arguments(tokens_BT, jumping(100), None)
    later = arguments | {"input_ids": with_another_token(tokens_BT, TOKENS - 1)}
    assert torch.equal(hidden(decoder, **arguments)[:, :-1], hidden(decoder, **later)[:, :-1])


def test_documents_are_as_if_each_were_alone(decoder, tokens_BT):
    lengths = ((10, 1, 13), (4, 20))
    positions_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    documents_BT = torch.stack([torch.cat([torch.full((n,), i) for i, n in enumerate(row)]) for row in lengths])
    arguments = forward_arguments(tokens_BT, positions_BT, documents_BT)
    packed = hidden(decoder, **arguments)
    for row, own in enumerate(lengths):
        alone = [hidden(decoder, input_ids=part[None], use_cache=False)[0] for part in tokens_BT[row].split(own)]
        torch.testing.assert_close(packed[row], torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert arguments["cu_seq_lens_q"].tolist() == arguments["cu_seq_lens_k"].tolist() == [0, 10, 11, 24, 28, 48]
    assert arguments["max_length_q"] == arguments["max_length_k"] == 20
