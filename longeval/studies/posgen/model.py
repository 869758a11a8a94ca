"""The PosGen model, a small decoder with RoPE. Its weights have a leading axis of seeds, so that seeds train together.

It has pre-norm RMSNorm, causal attention, ReLU feed-forward layers and no biases: T5's block without cross-attention,
in the sizes of T5-Small with two layers, as in Wang et al. 2024 (arXiv 2403.00071, section 6.1). Choices that the paper
leaves open are fields of `ModelConfig`. Every product is one batched matrix product over the seeds, so a seed has the
same results alone and stacked.

Queries and keys are rotated (Su et al. 2021, arXiv 2104.09864) with the rows of `RopeTable.cos_sin`, as in all backends
of longeval. Pairs are laid out as in Llama: feature j is dimensions (j, j+F) of a head.

Shapes: S seeds stacked, B sequences, T positions, N = B·T, R = S·B, F = head_dim/2 features, H heads, d head_dim,
D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from longeval.rope.base import CosSin, RopeTable, table_digest
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.request import Precision

Weights = dict[str, torch.Tensor]
"""Weights by name, each with a leading axis of seeds; matrices have shape (S, inputs, outputs)."""

Drop = Callable[[torch.Tensor], torch.Tensor]
"""Applies dropout to a tensor whose first axis is seeds (or seeds × sequences)."""

NORM_EPS = 1e-6
"""The ε of T5's RMSNorm."""
NORMAL_STD = 0.02
"""The standard deviation of the `normal` initialisation, GPT-2's."""


class TorchTable(NamedTuple):
    """Rows of a RoPE table, float32, shape (T, F) each, attention factor included."""

    cos_TF: torch.Tensor
    sin_TF: torch.Tensor


def cos_sin(table: RopeTable, num_positions: int, device: str | torch.device = "cpu") -> TorchTable:
    """Rows 0 … num_positions−1 of a RoPE table on a device."""
    rows = table.cos_sin(np.arange(num_positions, dtype=np.int64))
    return TorchTable(*(torch.from_numpy(part_TF).to(device) for part_TF in rows))


def digest(table: RopeTable, num_positions: int) -> str:
    """The `rope_digest` of a record: SHA-256 of the rows as torch tensors, which the model uses."""
    return table_digest(CosSin(*(part_TF.numpy() for part_TF in cos_sin(table, num_positions))))


def initial_weights(
    config: ModelConfig, seeds: Sequence[int], device: str | torch.device, dtype: torch.dtype = torch.float32
) -> Weights:
    """Draws the initial weights on the CPU in float32, then casts them and moves them to the device.

    The weights of a seed depend only on `config` and the seed, not on other seeds or the device.

    Returns:
        Name → tensor of shape (S, …).
    """
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in config.shapes}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, shape in config.shapes.items():
            if name.endswith("norm"):
                drawn[name].append(torch.ones(shape))
            else:
                drawn[name].append(torch.randn(shape, generator=generator) * _std(config, name, shape))
    return {name: torch.stack(parts).to(device=device, dtype=dtype) for name, parts in drawn.items()}


def _std(config: ModelConfig, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard deviation of a weight's initial values; by column for queries, keys and values."""
    if config.init == "normal":
        return torch.tensor(NORMAL_STD)
    if name == "embedding":
        return torch.tensor(1.0)
    std = shape[0] ** -0.5
    if not name.endswith("qkv"):
        return torch.tensor(std)
    query = std if config.attention_scale else std * config.head_dim**-0.5
    return torch.tensor([query, std, std]).repeat_interleave(config.width)


def forward(
    weights: Weights,
    tokens_SBT: torch.Tensor,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    drop: Drop | None = None,
    cache: Cache | None = None,
) -> torch.Tensor:
    """Computes the logits of every seed's model for its own sequences.

    Args:
        weights: In the form of `initial_weights`.
        tokens_SBT: The model's input, integers; see `model_inputs`.
        cos_TF: The RoPE table's cosines, attention factor included, for at least the positions of the input.
        sin_TF: Its sines.
        config: Sizes of the model.
        dtype: Dtype of the matrix products and of attention; None: that of the weights. The residual stream, the norms
            and the logits keep the weights' dtype.
        drop: Dropout for training.
        cache: Key/value cache for generation. The input follows the tokens in the cache and is added to it. The first
            call may have any number of tokens, later calls have one.

    Returns:
        Logits of shape (S, B, T, V); row i predicts the token after input token i.
    """
    num_seeds, num_sequences, num_tokens = tokens_SBT.shape
    first = 0 if cache is None else cache.length
    assert first == 0 or num_tokens == 1
    rows = slice(first, first + num_tokens)
    run = _Run(config=config, dtype=dtype, drop=drop, cache=cache, cos_TF=cos_TF[rows], sin_TF=sin_TF[rows])
    assert len(run.cos_TF) == num_tokens, "positions beyond the table"
    embedding_SVD = weights["embedding"]
    # A product with one-hot rows instead of a look-up, because its gradient is deterministic and fast on a GPU.
    ids_V = torch.arange(config.vocabulary, device=tokens_SBT.device)
    one_hot_SNV = (tokens_SBT.reshape(num_seeds, -1, 1) == ids_V).to(embedding_SVD.dtype)
    x_SND = run.dropped(torch.bmm(one_hot_SNV, embedding_SVD))
    for layer in range(config.layers):
        x_SND = x_SND + run.dropped(run.attention(x_SND, weights, layer, num_sequences))
        x_SND = x_SND + run.dropped(run.mlp(x_SND, weights, layer))
    if cache is not None:
        cache.length += num_tokens
    head_SDV = embedding_SVD.mT if config.tied else weights["head"]
    if config.tied and config.init == "t5":
        head_SDV = head_SDV * config.d_model**-0.5
    x_SND = run.dropped(_normed(x_SND) * weights["norm"][:, None, :])
    return torch.bmm(x_SND, head_SDV).view(num_seeds, num_sequences, num_tokens, config.vocabulary)


def model_inputs(tokens_SBT: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The model's input for predicting tokens `config.offset` … T−1: the start token, if any, and all but the last."""
    read_SBT = tokens_SBT[..., :-1]
    if not config.start_token:
        return read_SBT
    return functional.pad(read_SBT, (1, 0), value=config.modulus)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Run:
    """One forward pass: the settings that its layers share."""

    config: ModelConfig
    dtype: torch.dtype | None
    drop: Drop | None
    cache: Cache | None
    cos_TF: torch.Tensor
    sin_TF: torch.Tensor

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Applies dropout if this is a training pass."""
        return x if self.drop is None else self.drop(x)

    def product(self, x_SNI: torch.Tensor, weight_SIO: torch.Tensor) -> torch.Tensor:
        """Matrix product in the dtype of the pass."""
        return torch.bmm(x_SNI.to(self.dtype or x_SNI.dtype), weight_SIO.to(self.dtype or weight_SIO.dtype))

    def attention(self, x_SND: torch.Tensor, weights: Weights, layer: int, num_sequences: int) -> torch.Tensor:
        """Causal attention with rotated queries and keys, shape (S, N, D)."""
        config, num_seeds, num_tokens = self.config, len(x_SND), len(self.cos_TF)
        # The norm's gain is multiplied into the matrix, which is smaller than the activations.
        qkv_SDO = weights[f"{layer}.attention.norm"][..., None] * weights[f"{layer}.attention.qkv"]
        qkv_SNO = self.product(_normed(x_SND), qkv_SDO)
        shape = (num_seeds * num_sequences, num_tokens, 3, config.heads, config.head_dim)
        rotated = _Rotation.apply(qkv_SNO.view(shape), self.cos_TF, self.sin_TF)  # type: ignore[no-untyped-call]  # torch's
        query_RTHd, key_RTHd, value_RTHd = rotated
        if self.cache is not None:
            key_RTHd, value_RTHd = self.cache.extend(layer, key_RTHd, value_RTHd)
        out_RHTd = functional.scaled_dot_product_attention(
            query_RTHd.transpose(1, 2),
            key_RTHd.transpose(1, 2),
            value_RTHd.transpose(1, 2),
            is_causal=num_tokens > 1,
            scale=config.head_dim**-0.5 if config.attention_scale else 1.0,
        )
        out_SNO = out_RHTd.transpose(1, 2).reshape(num_seeds, -1, config.width)
        return self.product(out_SNO, weights[f"{layer}.attention.out"]).to(x_SND.dtype)

    def mlp(self, x_SND: torch.Tensor, weights: Weights, layer: int) -> torch.Tensor:
        """The feed-forward layer, shape (S, N, D)."""
        in_SDO = weights[f"{layer}.mlp.norm"][..., None] * weights[f"{layer}.mlp.in"]
        hidden_SNO = self.dropped(functional.relu_(self.product(_normed(x_SND), in_SDO)))
        return self.product(hidden_SNO, weights[f"{layer}.mlp.out"]).to(x_SND.dtype)


def _normed(x_SND: torch.Tensor) -> torch.Tensor:
    """RMSNorm without gain."""
    return functional.rms_norm(x_SND, (x_SND.shape[-1],), eps=NORM_EPS)


class _Rotation(torch.autograd.Function):
    """Rotates queries and keys, shape (R, T, H, d) each, in few passes over memory; values are only copied.

    The gradient is the inverse rotation, so no activation is stored for it. Cosines and sines are float32 and include
    the attention factor.
    """

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
    """Writes (a·cos − b·sin, b·cos + a·sin) into `out_RTHd`, where a and b are the halves of each head."""
    cos_TIF, sin_TIF = cos_TF[:, None, :], sin_TF[:, None, :]
    first_RTHF, second_RTHF = x_RTHd.chunk(2, dim=-1)
    out_first_RTHF, out_second_RTHF = out_RTHd.chunk(2, dim=-1)
    torch.mul(first_RTHF, cos_TIF, out=out_first_RTHF).addcmul_(second_RTHF, sin_TIF, value=-1)
    torch.mul(second_RTHF, cos_TIF, out=out_second_RTHF).addcmul_(first_RTHF, sin_TIF)
    return out_RTHd


class Cache:
    """Rotated keys and values of earlier positions, for generation.

    `num_sequences` is R = seeds × sequences, and `num_positions` the largest number of positions.
    """

    def __init__(
        self, config: ModelConfig, num_sequences: int, num_positions: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, 2, num_sequences, num_positions, config.heads, config.head_dim)
        self._held = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        """Number of positions in the cache."""

    def extend(self, layer: int, key_RTHd: torch.Tensor, value_RTHd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds keys and values of the next T positions in one layer; returns those of all positions so far."""
        end = self.length + key_RTHd.shape[1]
        held_2RTHd = self._held[layer, :, :, :end]
        held_2RTHd[0, :, self.length :] = key_RTHd
        held_2RTHd[1, :, self.length :] = value_RTHd
        return held_2RTHd[0], held_2RTHd[1]


def product_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype of `forward`'s products; None: that of the weights."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Allows TF32 for float32 products inside the block if `precision` is `tf32`; restores the setting afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
