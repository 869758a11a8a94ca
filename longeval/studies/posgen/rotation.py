"""RoPE's rotation of queries and keys, with a gradient of its own: fewer passes over memory, and nothing kept for it.

Source: Su et al. 2021, arXiv 2104.09864. Pairs are laid out as in Llama: feature j is dimensions (j, j+F) of a head.

Shapes: R sequences of all seeds, T positions, H heads, d head_dim, F = d/2 features.
"""

from __future__ import annotations

from typing import Any

import torch


def rotate_queries_and_keys(
    qkv_RT3Hd: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys rotated, values as they are; feature j sits at dimensions (j, j+F) of a head, as in Llama.

    Args:
        qkv_RT3Hd: Queries, keys and values.
        cos_TF: Cosines times the attention factor, float32.
        sin_TF: Sines times the attention factor, float32.

    Returns:
        (R, T, H, d) each.
    """
    query_RTHd, key_RTHd, value_RTHd = _Rotation.apply(qkv_RT3Hd, cos_TF, sin_TF)  # type: ignore[no-untyped-call]  # torch's
    return query_RTHd, key_RTHd, value_RTHd


class _Rotation(torch.autograd.Function):
    """Rotation in few passes over memory; its gradient is the rotation backwards, so nothing is kept for it."""

    @staticmethod
    def forward(
        ctx: Any, qkv_RT3Hd: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos_TF, sin_TF)
        query_RTHd, key_RTHd, value_RTHd = qkv_RT3Hd.unbind(2)
        return (
            _rotate(query_RTHd, cos_TF, sin_TF, torch.empty_like(query_RTHd)),
            _rotate(key_RTHd, cos_TF, sin_TF, torch.empty_like(key_RTHd)),
            value_RTHd.clone(),
        )

    @staticmethod
    def backward(ctx: Any, *gradients_RTHd: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos_TF, sin_TF = ctx.saved_tensors
        query_RTHd, key_RTHd, value_RTHd = gradients_RTHd
        num_rows, num_tokens, heads, head_dim = query_RTHd.shape
        out_RT3Hd = query_RTHd.new_empty((num_rows, num_tokens, 3, heads, head_dim))
        _rotate(query_RTHd, cos_TF, -sin_TF, out_RT3Hd[:, :, 0])
        _rotate(key_RTHd, cos_TF, -sin_TF, out_RT3Hd[:, :, 1])
        out_RT3Hd[:, :, 2] = value_RTHd
        return out_RT3Hd, None, None


def _rotate(x_RTHd: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, out_RTHd: torch.Tensor) -> torch.Tensor:
    """(a, b) → (a·cos − b·sin, b·cos + a·sin), halves of each head, into `out_RTHd`."""
    cos_TIF, sin_TIF = cos_TF[:, None, :], sin_TF[:, None, :]
    first_RTHF, second_RTHF = x_RTHd.chunk(2, dim=-1)
    out_first_RTHF, out_second_RTHF = out_RTHd.chunk(2, dim=-1)
    torch.mul(first_RTHF, cos_TIF, out=out_first_RTHF).addcmul_(second_RTHF, sin_TIF, value=-1)
    torch.mul(second_RTHF, cos_TIF, out=out_second_RTHF).addcmul_(first_RTHF, sin_TIF)
    return out_RTHd
