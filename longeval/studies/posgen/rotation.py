"""RoPE in the PosGen model: the frequency table as torch tensors, and the rotation of queries and keys.

The rows are those of `RopeTable.cos_sin`, which every backend of longeval serves too. The rotation has its own
gradient, which takes fewer passes over memory and keeps no activations. Source: Su et al. 2021, arXiv 2104.09864.
Pairs are laid out as in Llama: feature j is dimensions (j, j+F) of a head.

Shapes: R sequences of all seeds, T positions, H heads, d head_dim, F = d/2 features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from longeval.rope.base import CosSin, RopeTable, table_digest


class TorchTable(NamedTuple):
    """Rows of a table, float32, (T, F) each, attention factor included."""

    cos_TF: torch.Tensor
    sin_TF: torch.Tensor


def cos_sin(table: RopeTable, num_positions: int, device: str | torch.device = "cpu") -> TorchTable:
    """The rows 0 … num_positions−1 of a table on a device."""
    rows = table.cos_sin(np.arange(num_positions, dtype=np.int64))
    return TorchTable(*(torch.from_numpy(part_TF).to(device) for part_TF in rows))


def digest(table: RopeTable, num_positions: int) -> str:
    """The `rope_digest` of a record: SHA-256 of the rows as the model reads them, brought back from torch."""
    return table_digest(CosSin(*(part_TF.numpy() for part_TF in cos_sin(table, num_positions))))


def rotate_queries_and_keys(
    qkv_RT3Hd: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotates queries and keys; values stay as they are.

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
