"""Attention masks for several continuations of one prompt in one pass, side by side in one sequence.

Each token sees the prompt and its own branch up to itself, nothing of the other branches; its position is the one that
it has in its own continuation. The prompt's keys and values are thus there once, whatever the number of branches.

Shapes: Q tokens of all branches, K keys (those of the prompt that a layer holds, then Q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from longeval.backends.hf.cache_layers import BufferLayer, window_of

MASKED_ATTENTION = ("eager", "sdpa")
"""Implementations that take any mask (1, 1, Q, K) that is added to the logits of attention."""


def takes_branches(config: Any, layers: Sequence[Any]) -> bool:
    """Whether all masks of a model can be made here: full attention, and sliding windows of one size."""
    kinds = _kinds(config)
    windows = [window_of(layer) for layer in layers]
    return (
        config._attn_implementation in MASKED_ATTENTION
        and all(type(layer) in (BufferLayer, DynamicSlidingWindowLayer) for layer in layers)
        and kinds <= {"full_attention", "sliding_attention"}
        and len(set(windows) - {None} if kinds else set(windows)) <= 1
    )


def _kinds(config: Any) -> set[str]:
    """Types of layers, where masks go by them."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Branches:
    """Continuations of a prompt of `start` tokens."""

    start: int
    branch_Q: torch.Tensor
    """Which branch each token belongs to."""
    position_Q: torch.Tensor
    """Its position, counted from the prompt's first token."""

    @classmethod
    def of(cls, lengths: Sequence[int], start: int, device: torch.device) -> Branches:
        """Branches of given lengths."""
        offsets = [torch.arange(length, device=device) for length in lengths]
        return cls(
            start=start,
            branch_Q=torch.cat([torch.full_like(part, number) for number, part in enumerate(offsets)]),
            position_Q=start + torch.cat(offsets),
        )

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the logits of attention, (1, 1, Q, K): 0, or the lowest number where nothing is seen.

        Args:
            window: Tokens that are seen, the present one included, and of the prompt no more than that is held; None
                for a layer that sees and holds everything.
            dtype: The model's.
        """
        held = self.start if window is None else min(self.start, window - 1)
        device = self.branch_Q.device
        position_K = torch.cat([torch.arange(self.start - held, self.start, device=device), self.position_Q])
        branch_K = torch.cat([torch.full((held,), -1, device=device), self.branch_Q])
        seen_QK = (branch_K == self.branch_Q[:, None]) | (branch_K == -1)
        seen_QK &= position_K <= self.position_Q[:, None]
        if window is not None:
            seen_QK &= position_K > self.position_Q[:, None] - window
        mask_QK = torch.zeros(seen_QK.shape, dtype=dtype, device=device)
        return mask_QK.masked_fill_(~seen_QK, torch.finfo(dtype).min)[None, None]

    def masks(self, config: Any, layers: Sequence[Any], dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
        """The decoder's `attention_mask`: one, or one per type of layer.

        In the form that transformers' `create_masks_for_generate` gives, which every decoder that `generate` serves
        takes: by type if the configuration has `layer_types`, else one for all.
        """
        window = next((window for layer in layers if (window := window_of(layer)) is not None), None)
        if kinds := _kinds(config):
            return {kind: self.mask(window if kind == "sliding_attention" else None, dtype) for kind in kinds}
        return self.mask(window, dtype)
