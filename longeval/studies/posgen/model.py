"""The PosGen model: a small decoder with RoPE, as functions of a dictionary of weights.

The model has pre-norm RMSNorm, causal attention, a ReLU feed-forward layer and no biases: T5's block without
cross-attention, at the sizes of T5-Small and with two layers, as Wang et al. 2024 (arXiv 2403.00071, section 6.1) train
it. Choices that the paper leaves open are fields of `ModelConfig`.

Queries and keys are rotated (Su et al. 2021, arXiv 2104.09864) with the rows of `RopeTable.cos_sin`, as in all backends
of longeval. Pairs are laid out as in Llama: feature j is dimensions (j, j+F) of a head.

Shapes: B sequences, T positions, F = head_dim/2 features, H heads, d head_dim, D d_model, V vocabulary; I and O are the
inputs and outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
"""Weights by name, in the shapes of `ModelConfig.shapes`; matrices are (inputs, outputs)."""

Drop = Callable[[torch.Tensor], torch.Tensor]
"""A function that applies dropout to a tensor of any shape."""

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
    config: ModelConfig, seed: int, device: str | torch.device, dtype: torch.dtype = torch.float32
) -> Weights:
    """Draws the initial weights on the CPU in float32, then casts them and moves them to the device.

    They depend on `config` and the seed, not on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.shapes.items():
        if name.endswith("norm"):
            weight = torch.ones(shape)
        else:
            weight = torch.randn(shape, generator=generator) * _std(config, name, shape)
        weights[name] = weight.to(device=device, dtype=dtype)
    return weights


def _std(config: ModelConfig, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The standard deviation of a weight's initial values: a scalar, or one value per column for `qkv`."""
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
    tokens_BT: torch.Tensor,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    drop: Drop | None = None,
    cache: Cache | None = None,
) -> torch.Tensor:
    """Computes the model's logits.

    Args:
        weights: As `initial_weights` gives them.
        tokens_BT: The model's input, integers; see `model_inputs`.
        cos_TF: The RoPE table's cosines, attention factor included, for at least the positions read.
        sin_TF: Its sines.
        config: Sizes of the model.
        dtype: Dtype of the matrix products and of attention; None: that of the weights. The residual stream, the norms
            and the logits keep the weights' dtype.
        drop: Dropout, while training.
        cache: For generation: the tokens follow those in the cache, and their keys and values are added to it. The
            first call may read any number of tokens, every later call reads one.

    Returns:
        (B, T, V): row i predicts the token after the i-th one read.
    """
    num_tokens = tokens_BT.shape[1]
    first = 0 if cache is None else cache.length
    assert first == 0 or num_tokens == 1
    rows = slice(first, first + num_tokens)
    run = _Run(config=config, dtype=dtype, drop=drop, cache=cache, cos_TF=cos_TF[rows], sin_TF=sin_TF[rows])
    assert len(run.cos_TF) == num_tokens, "positions beyond the table"
    embedding_VD = weights["embedding"]
    # A product with one-hot rows instead of a look-up: its gradient is a product too, deterministic and quick on a GPU.
    ids_V = torch.arange(config.vocabulary, device=tokens_BT.device)
    one_hot_BTV = (tokens_BT[..., None] == ids_V).to(embedding_VD.dtype)
    x_BTD = run.dropped(one_hot_BTV @ embedding_VD)
    for layer in range(config.layers):
        x_BTD = x_BTD + run.dropped(run.attention(x_BTD, weights, layer))
        x_BTD = x_BTD + run.dropped(run.mlp(x_BTD, weights, layer))
    if cache is not None:
        cache.length += num_tokens
    head_DV = embedding_VD.T if config.tied else weights["head"]
    if config.tied and config.init == "t5":
        head_DV = head_DV * config.d_model**-0.5
    return run.dropped(_normed(x_BTD) * weights["norm"]) @ head_DV


def model_inputs(tokens_BT: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Makes the model's input for predicting tokens `config.offset` … T−1.

    It is all tokens but the last, after the start token if there is one.
    """
    read_BT = tokens_BT[:, :-1]
    if not config.start_token:
        return read_BT
    return functional.pad(read_BT, (1, 0), value=config.modulus)


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

    def product(self, x_BTI: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
        """Matrix product in the dtype of the pass, (B, T, O)."""
        return x_BTI.to(self.dtype or x_BTI.dtype) @ weight_IO.to(self.dtype or weight_IO.dtype)

    def attention(self, x_BTD: torch.Tensor, weights: Weights, layer: int) -> torch.Tensor:
        """Causal attention with rotated queries and keys, (B, T, D)."""
        config, (num_sequences, num_tokens, _) = self.config, x_BTD.shape
        # The norm's gain goes into the matrix, which is smaller than what it would multiply.
        qkv_DO = weights[f"{layer}.attention.norm"][:, None] * weights[f"{layer}.attention.qkv"]
        qkv_BTO = self.product(_normed(x_BTD), qkv_DO)
        qkv_BT3Hd = qkv_BTO.view(num_sequences, num_tokens, 3, config.heads, config.head_dim)
        rotated = _Rotation.apply(qkv_BT3Hd, self.cos_TF, self.sin_TF)  # type: ignore[no-untyped-call]  # torch's
        query_BTHd, key_BTHd, value_BTHd = rotated
        if self.cache is not None:
            key_BTHd, value_BTHd = self.cache.extend(layer, key_BTHd, value_BTHd)
        out_BHTd = functional.scaled_dot_product_attention(
            query_BTHd.transpose(1, 2),
            key_BTHd.transpose(1, 2),
            value_BTHd.transpose(1, 2),
            is_causal=num_tokens > 1,
            scale=config.head_dim**-0.5 if config.attention_scale else 1.0,
        )
        out_BTO = out_BHTd.transpose(1, 2).reshape(num_sequences, num_tokens, config.width)
        return self.product(out_BTO, weights[f"{layer}.attention.out"]).to(x_BTD.dtype)

    def mlp(self, x_BTD: torch.Tensor, weights: Weights, layer: int) -> torch.Tensor:
        """The feed-forward layer, (B, T, D)."""
        in_DO = weights[f"{layer}.mlp.norm"][:, None] * weights[f"{layer}.mlp.in"]
        hidden_BTO = self.dropped(functional.relu_(self.product(_normed(x_BTD), in_DO)))
        return self.product(hidden_BTO, weights[f"{layer}.mlp.out"]).to(x_BTD.dtype)


def _normed(x_BTD: torch.Tensor) -> torch.Tensor:
    """RMSNorm without its gain."""
    return functional.rms_norm(x_BTD, (x_BTD.shape[-1],), eps=NORM_EPS)


class _Rotation(torch.autograd.Function):
    """Rotates queries and keys, (B, T, H, d) each, in few passes over memory; values stay as they are.

    The gradient is the inverse rotation, so no activation is stored for it. Cosines and sines are float32 and include
    the attention factor.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_BT3Hd: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos_TF, sin_TF)
        query_BTHd, key_BTHd, value_BTHd = qkv_BT3Hd.unbind(2)
        return (
            _rotate(query_BTHd, cos_TF, sin_TF, torch.empty_like(query_BTHd)),
            _rotate(key_BTHd, cos_TF, sin_TF, torch.empty_like(key_BTHd)),
            value_BTHd.clone(),
        )

    @staticmethod
    def backward(ctx: Any, *gradients_BTHd: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos_TF, sin_TF = ctx.saved_tensors
        query_BTHd, key_BTHd, value_BTHd = gradients_BTHd
        num_sequences, num_tokens, heads, head_dim = query_BTHd.shape
        out_BT3Hd = query_BTHd.new_empty((num_sequences, num_tokens, 3, heads, head_dim))
        _rotate(query_BTHd, cos_TF, -sin_TF, out_BT3Hd[:, :, 0])
        _rotate(key_BTHd, cos_TF, -sin_TF, out_BT3Hd[:, :, 1])
        out_BT3Hd[:, :, 2] = value_BTHd
        return out_BT3Hd, None, None


def _rotate(x_BTHd: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, out_BTHd: torch.Tensor) -> torch.Tensor:
    """(a, b) → (a·cos − b·sin, b·cos + a·sin), halves of each head, into `out_BTHd`."""
    cos_TIF, sin_TIF = cos_TF[:, None, :], sin_TF[:, None, :]
    first_BTHF, second_BTHF = x_BTHd.chunk(2, dim=-1)
    out_first_BTHF, out_second_BTHF = out_BTHd.chunk(2, dim=-1)
    torch.mul(first_BTHF, cos_TIF, out=out_first_BTHF).addcmul_(second_BTHF, sin_TIF, value=-1)
    torch.mul(second_BTHF, cos_TIF, out=out_second_BTHF).addcmul_(first_BTHF, sin_TIF)
    return out_BTHd


class Cache:
    """Keys (rotated) and values of the positions read so far, for the generation of B sequences.

    `num_sequences` is R = seeds × sequences, and `num_positions` the largest number of positions.
    """

    def __init__(
        self, config: ModelConfig, num_sequences: int, num_positions: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, 2, num_sequences, num_positions, config.heads, config.head_dim)
        self._held = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        """Number of positions in the cache."""

    def extend(self, layer: int, key_BTHd: torch.Tensor, value_BTHd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the keys and values of the next T positions in one layer; returns those of all positions up to there."""
        end = self.length + key_BTHd.shape[1]
        held_2BTHd = self._held[layer, :, :, :end]
        held_2BTHd[0, :, self.length :] = key_BTHd
        held_2BTHd[1, :, self.length :] = value_BTHd
        return held_2BTHd[0], held_2BTHd[1]


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
