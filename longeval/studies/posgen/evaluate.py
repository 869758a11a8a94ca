"""How well a trained model predicts each position, teacher-forced and in free-running generation.

For teacher-forced accuracy, which the paper reports, the model sees the true tokens before each token that it predicts
greedily. In free-running generation it sees its own tokens, so an error can cause further errors. Positions below the
training length are in distribution (ID), later ones are out of distribution (OOD).

Shapes: N sequences, B of them at once, T tokens of a sequence, P predicted tokens (those after the first j+k),
V vocabulary.
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
class ModelEvaluation:
    """The results of a model on some sequences, by position of the predicted token."""

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
        """The mean losses of an evaluation on the validation sequences, with the epoch and the table's name."""
        return ValidLoss(
            epoch=epoch,
            table=table,
            in_distribution=self.in_distribution(self.loss_P, length),
            ood=self.ood(self.loss_P, length),
        )


def evaluate(
    config: ModelConfig,
    weights: Weights,
    test_NT: TokenArray,
    table: RopeTable,
    *,
    first: int,
    device: str,
    precision: Precision = "float32",
    generate: bool = True,
) -> ModelEvaluation:
    """Evaluates a model.

    Args:
        config: Sizes of the model.
        weights: By name, on any device.
        test_NT: The sequences.
        table: The RoPE table; that of sequences of T tokens if its method depends on length.
        first: j+k: how many tokens are given.
        device: Where to compute.
        precision: Precision of the matrix products.
        generate: Whether to evaluate free-running generation too.

    Returns:
        One result per seed.
    """
    weights = {name: tensor.detach().to(device) for name, tensor in weights.items()}
    held = cos_sin(table, config.num_positions(test_NT.shape[1]), device)
    tokens_NT = torch.from_numpy(np.ascontiguousarray(test_NT)).to(device)
    with torch.inference_mode(), matmul_precision(precision):
        accuracy_P, loss_P = teacher_forced(config, weights, tokens_NT, held, first, precision)
        generated_P = free_running(config, weights, tokens_NT, held, first, precision) if generate else None
    return ModelEvaluation(
        first=first, accuracy_P=accuracy_P, loss_P=loss_P, generated_P=generated_P, num_sequences=len(tokens_NT)
    )


def teacher_forced(
    config: ModelConfig,
    weights: Weights,
    tokens_NT: torch.Tensor,
    table: TorchTable,
    first: int,
    precision: Precision,
) -> tuple[FloatArray, FloatArray]:
    """Accuracy and mean loss by predicted position, (P,) each; each token is predicted from the true ones before."""
    num_sequences, num_tokens = tokens_NT.shape
    correct_P, nll_P = np.zeros((2, num_tokens - first))
    per_token = 2 * config.d_ff + 8 * config.d_model + 8 * config.width + 4 * config.vocabulary
    for tokens_BT in _batches(tokens_NT, 4 * num_tokens * per_token):
        inputs_BT = model_inputs(tokens_BT, config)
        logits_BTV = forward(weights, inputs_BT, table.cos_TF, table.sin_TF, config, dtype=product_dtype(precision))
        hits_BP = predicted(logits_BTV, first, config).argmax(-1) == tokens_BT[:, first:]
        correct_P += hits_BP.sum(0).cpu().numpy()
        nll_P += token_nll(logits_BTV, tokens_BT, first, config).cpu().double().sum(0).numpy()
    return correct_P / num_sequences, nll_P / num_sequences


def free_running(
    config: ModelConfig,
    weights: Weights,
    tokens_NT: torch.Tensor,
    table: TorchTable,
    first: int,
    precision: Precision,
) -> FloatArray:
    """Share of sequences whose token is generated (greedily, from the first tokens) at each position, (P,)."""
    num_sequences, num_tokens = tokens_NT.shape
    dtype = product_dtype(precision)
    hits_P = np.zeros(num_tokens - first)
    for tokens_BT in _batches(tokens_NT, 16 * num_tokens * config.layers * config.width):
        cache = Cache(
            config,
            len(tokens_BT),
            config.num_positions(num_tokens),
            tokens_BT.device,
            dtype or weights["embedding"].dtype,
        )
        # `model_inputs` leaves out the last token, so this reads just the tokens that are given.
        read_BT = model_inputs(tokens_BT[:, : first + 1], config)
        answers = []
        for _ in range(first, num_tokens):
            logits_BTV = forward(weights, read_BT, table.cos_TF, table.sin_TF, config, dtype=dtype, cache=cache)
            read_BT = logits_BTV[:, -1:].argmax(-1)
            answers.append(read_BT)
        hits_P += (torch.cat(answers, dim=-1) == tokens_BT[:, first:]).sum(0).cpu().numpy()
    return hits_P / num_sequences


def predicted(logits_BTV: torch.Tensor, first: int, config: ModelConfig) -> torch.Tensor:
    """The logits of tokens `first` … T−1, (B, P, V)."""
    return logits_BTV[:, first - config.offset :]


def token_nll(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, first: int, config: ModelConfig) -> torch.Tensor:
    """Negative log-likelihood of tokens `first` … T−1 in nats, (B, P)."""
    targets_BP = tokens_BT[:, first:]
    logits_MV = predicted(logits_BTV, first, config).reshape(-1, config.vocabulary)
    return functional.cross_entropy(logits_MV, targets_BP.reshape(-1), reduction="none").view(targets_BP.shape)


def _batches(tokens_NT: torch.Tensor, bytes_each: int) -> Iterator[torch.Tensor]:
    """Yields batches of sequences that stay within the limit of memory."""
    size = max(1, BATCH_BYTES // bytes_each)
    for start in range(0, len(tokens_NT), size):
        yield tokens_NT[start : start + size]
