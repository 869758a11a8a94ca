"""Evaluates trained models at each position, teacher-forced and in free-running generation.

For teacher-forced accuracy, which the paper reports, the model sees the true tokens before each token that it predicts
greedily. In free-running generation it sees its own tokens, so an error can cause further errors. Positions below the
training length are in distribution (ID), later ones are out of distribution (OOD).

Shapes: S seeds, N sequences, B sequences of a batch, T tokens of a sequence, P predicted tokens (those after the first
j+k), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from longeval.rope.base import RopeTable
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.model import (
    Cache,
    TorchTable,
    Weights,
    cos_sin,
    forward,
    matmul_precision,
    model_inputs,
    product_dtype,
)
from longeval.studies.posgen.request import Precision
from longeval.studies.posgen.state import ValidLoss

BATCH_BYTES = 2**30
"""Approximate limit for the activations, or for the keys and values, of a batch."""

FloatArray = npt.NDArray[np.float64]
TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeedEvaluation:
    """Results of one seed's model on some sequences, by position of the predicted token."""

    first: int
    """Position of the first predicted token, j+k; the tokens before it are random."""
    accuracy_P: FloatArray
    """Teacher-forced: share of sequences whose token is predicted correctly."""
    loss_P: FloatArray
    """Teacher-forced: mean negative log-likelihood, nats."""
    generated_P: FloatArray | None
    """Free-running: share of sequences whose token is generated correctly; None if generation was not requested."""
    num_sequences: int

    @property
    def positions_P(self) -> TokenArray:
        """Position of each predicted token in its sequence."""
        return np.arange(self.first, self.first + len(self.accuracy_P), dtype=np.int64)

    def in_distribution(self, values_P: FloatArray, length: int) -> float:
        """Mean over the predicted positions below the training length."""
        return float(values_P[: length - self.first].mean())

    def ood(self, values_P: FloatArray, length: int) -> float:
        """Mean over the positions from the training length on; NaN if there are none."""
        values_P = values_P[length - self.first :]
        return float(values_P.mean()) if values_P.size else float("nan")

    def valid_loss(self, epoch: int, table: str, length: int) -> ValidLoss:
        """The mean losses on validation sequences, for an epoch and a table; `length` is the training length."""
        return ValidLoss(
            epoch=epoch,
            table=table,
            in_distribution=self.in_distribution(self.loss_P, length),
            ood=self.ood(self.loss_P, length),
        )


def evaluate(
    config: ModelConfig,
    weights: Weights,
    test_SNT: TokenArray,
    table: RopeTable,
    *,
    first: int,
    device: str,
    precision: Precision = "float32",
    generate: bool = True,
) -> list[SeedEvaluation]:
    """Evaluates the model of every seed on its own sequences.

    Args:
        config: Sizes of the model.
        weights: Name → tensor of shape (S, …), on any device.
        test_SNT: The sequences of each seed.
        table: The RoPE table; for a length-dependent method, the table for sequences of T tokens.
        first: j+k, the number of given tokens.
        device: Device to compute on.
        precision: Precision of the matrix products.
        generate: Whether to evaluate free-running generation too.

    Returns:
        One result per seed.
    """
    weights = {name: tensor.detach().to(device) for name, tensor in weights.items()}
    held = cos_sin(table, config.num_positions(test_SNT.shape[-1]), device)
    tokens_SNT = torch.from_numpy(np.ascontiguousarray(test_SNT)).to(device)
    with torch.inference_mode(), matmul_precision(precision):
        accuracy_SP, loss_SP = teacher_forced(config, weights, tokens_SNT, held, first, precision)
        generated_SP = free_running(config, weights, tokens_SNT, held, first, precision) if generate else None
    return [
        SeedEvaluation(
            first=first,
            accuracy_P=accuracy_SP[seed],
            loss_P=loss_SP[seed],
            generated_P=None if generated_SP is None else generated_SP[seed],
            num_sequences=tokens_SNT.shape[1],
        )
        for seed in range(len(tokens_SNT))
    ]


def teacher_forced(
    config: ModelConfig,
    weights: Weights,
    tokens_SNT: torch.Tensor,
    table: TorchTable,
    first: int,
    precision: Precision,
) -> tuple[FloatArray, FloatArray]:
    """Accuracy and mean loss in nats by predicted position, shape (S, P) each, given the true tokens before it."""
    num_seeds, num_sequences, num_tokens = tokens_SNT.shape
    correct_SP, nll_SP = np.zeros((2, num_seeds, num_tokens - first))
    per_token = 2 * config.d_ff + 8 * config.d_model + 8 * config.width + 4 * config.vocabulary
    for tokens_SBT in _batches(tokens_SNT, 4 * num_seeds * num_tokens * per_token):
        inputs_SBT = model_inputs(tokens_SBT, config)
        logits_SBTV = forward(weights, inputs_SBT, table.cos_TF, table.sin_TF, config, dtype=product_dtype(precision))
        hits_SBP = predicted(logits_SBTV, first, config).argmax(-1) == tokens_SBT[..., first:]
        correct_SP += hits_SBP.sum(1).cpu().numpy()
        nll_SP += token_nll(logits_SBTV, tokens_SBT, first, config).cpu().double().sum(1).numpy()
    return correct_SP / num_sequences, nll_SP / num_sequences


def free_running(
    config: ModelConfig,
    weights: Weights,
    tokens_SNT: torch.Tensor,
    table: TorchTable,
    first: int,
    precision: Precision,
) -> FloatArray:
    """Share of sequences whose token is generated correctly (greedily) at each position, shape (S, P)."""
    num_seeds, num_sequences, num_tokens = tokens_SNT.shape
    dtype = product_dtype(precision)
    hits_SP = np.zeros((num_seeds, num_tokens - first))
    for tokens_SBT in _batches(tokens_SNT, 16 * num_seeds * num_tokens * config.layers * config.width):
        cache = Cache(
            config,
            num_seeds * tokens_SBT.shape[1],
            config.num_positions(num_tokens),
            tokens_SBT.device,
            dtype or weights["embedding"].dtype,
        )
        # `model_inputs` drops the last token, so this reads exactly the given tokens.
        read_SBT = model_inputs(tokens_SBT[..., : first + 1], config)
        answers = []
        for _ in range(first, num_tokens):
            logits_SBTV = forward(weights, read_SBT, table.cos_TF, table.sin_TF, config, dtype=dtype, cache=cache)
            read_SBT = logits_SBTV[:, :, -1:].argmax(-1)
            answers.append(read_SBT)
        hits_SP += (torch.cat(answers, dim=-1) == tokens_SBT[..., first:]).sum(1).cpu().numpy()
    return hits_SP / num_sequences


def predicted(logits_SBTV: torch.Tensor, first: int, config: ModelConfig) -> torch.Tensor:
    """The logits of tokens `first` … T−1, shape (S, B, P, V)."""
    return logits_SBTV[:, :, first - config.offset :]


def token_nll(logits_SBTV: torch.Tensor, tokens_SBT: torch.Tensor, first: int, config: ModelConfig) -> torch.Tensor:
    """Negative log-likelihood of tokens `first` … T−1 in nats, shape (S, B, P)."""
    targets_SBP = tokens_SBT[..., first:]
    logits_MV = predicted(logits_SBTV, first, config).reshape(-1, config.vocabulary)
    return functional.cross_entropy(logits_MV, targets_SBP.reshape(-1), reduction="none").view(targets_SBP.shape)


def _batches(tokens_SNT: torch.Tensor, bytes_each: int) -> Iterator[torch.Tensor]:
    """Yields batches of sequences of at most BATCH_BYTES."""
    size = max(1, BATCH_BYTES // bytes_each)
    for start in range(0, tokens_SNT.shape[1], size):
        yield tokens_SNT[:, start : start + size]
