"""What a decoder of transformers must be given so that its attention sees what a training means it to see.

A trap (transformers 5.19, `masking_utils.find_packed_sequence_indices`): without an attention mask and without a cache,
a jump of the positions is read as the border of a packed sequence, for SDPA, eager and flex attention. The second chunk
of PoSE then can't see the first, and the training silently teaches nothing about long distances.

Shapes: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from typing import Any

import torch


def forward_arguments(
    tokens_BT: torch.Tensor, positions_BT: torch.Tensor, documents_BT: torch.Tensor | None
) -> dict[str, Any]:
    """The arguments of a decoder's forward pass.

    Without documents, a mask of ones states that every token sees all tokens before it, wherever positions jump; no
    attention builds a T × T mask from it. With documents, the restarting positions mark their borders, as transformers
    reads packed sequences; FlashAttention does so only for a batch of one, so it is told the borders as well.

    Args:
        tokens_BT: Token ids, int64.
        positions_BT: Positions, int64. With documents they start at 0 in each document and grow by 1.
        documents_BT: Number of each token's document, where attention ends at its borders; None where it doesn't.

    Returns:
        Keyword arguments. There is no cache, which would switch the reading of borders off.
    """
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    arguments = {"input_ids": tokens_BT, "position_ids": positions_BT, "use_cache": False}
    if documents_BT is None:
        return arguments | {"attention_mask": torch.ones_like(tokens_BT)}
    (starts_q, starts_k), (longest_q, longest_k) = prepare_fa_kwargs_from_position_ids(positions_BT)
    return arguments | {
        "attention_mask": None,
        "cu_seq_lens_q": starts_q,
        "cu_seq_lens_k": starts_k,
        "max_length_q": longest_q,
        "max_length_k": longest_k,
    }
