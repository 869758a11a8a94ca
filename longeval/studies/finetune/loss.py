"""The loss of a training: next-token cross-entropy, with all tokens alike or weighted as LongCE weights them.

Logits exist for one chunk of tokens at a time, in the forward as in the backward pass, so there is never a tokens ×
vocabulary matrix. They come from the model's own forward (see `ModelParts.head`), with the soft caps and scales of its
family.

LongCE (Fang et al. 2024, arXiv 2410.23771): a token's weight is p(token | long context) / p(token | short context), at
most 5, and no gradient goes through it. As in the published code, the short contexts are windows that move by 1,024
tokens and start at position 0; the new tokens of a window have 4,096 to 5,119 tokens before them. The first window is
the beginning of the sequence itself, so the first 5,120 tokens have weight 1.

Shapes: B sequences, T tokens of a window, P of them that LongCE weights, N = B·T, C a chunk of N, H hidden size,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from longeval.backends.hf.parts import LOGITS_BYTES, ModelParts
from longeval.errors import LongEvalError, did_you_mean
from longeval.request.setting import written
from longeval.studies.finetune.request import FinetuneRequest
from longeval.values import format_length, parse_length, parse_number

_NO_LABEL = -100
"""The label of a token that predicts nothing; torch's own value."""

ForwardArguments = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], dict[str, Any]]
"""From tokens, positions and documents, (B, T) each, to the arguments of the decoder's forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongCE:
    """Parameters of LongCE."""

    context: int = 4096
    """Least number of tokens in a short context."""
    step: int = 1024
    """Tokens by which the short contexts move."""
    bound: float = 5.0
    """Largest weight of a token."""


def make_loss(request: FinetuneRequest) -> LongCE | None:
    """Reads the parameters of a request's loss.

    Returns:
        The parameters of LongCE; None for cross-entropy, which has none.

    Raises:
        LongEvalError: A parameter is unknown, impossible, or would be ignored; or the windows don't suit LongCE.
    """
    for name, values in request.loss_args.items():
        for parameter, value in values.items():
            if name != request.loss or name == "ce":
                raise LongEvalError(
                    f"--loss-arg {name}.{parameter}={written(value)}: would be ignored beside --loss {request.loss}",
                    "Leave it out, or add --loss longce.",
                )
    if request.loss == "ce":
        return None
    readers: dict[str, Callable[[str, str], float]] = {
        "context": lambda text, flag: parse_length(text, flag=flag, least=1),
        "step": lambda text, flag: parse_length(text, flag=flag, least=1),
        "bound": lambda text, flag: parse_number(text, flag=flag),
    }
    found: dict[str, Any] = {}
    for parameter, value in request.loss_args.get("longce", {}).items():
        flag = f"--loss-arg longce.{parameter}"
        if parameter not in readers:
            raise LongEvalError(f"{flag}: unknown parameter", did_you_mean(parameter, readers))
        found[parameter] = readers[parameter](written(value), flag)
    loss = LongCE(**found)
    if loss.bound <= 0:
        raise LongEvalError(f"--loss-arg longce.bound={loss.bound:g}: must be greater than 0", "Use 5, as published.")
    if request.window_tokens <= loss.context + loss.step:
        raise LongEvalError(
            f"--loss longce: the window of {format_length(request.window_tokens)} tokens is not longer than a short "
            f"context and a step ({loss.context} + {loss.step}), so all tokens would have weight 1",
            "Give a longer --window, or less of both with --loss-arg longce.context=… --loss-arg longce.step=….",
        )
    if any(name != "none" for name in request.augment):
        raise LongEvalError(
            f"--loss longce --augment {','.join(request.augment)}: LongCE needs the positions that the text has",
            "Use --augment none, or --loss ce.",
        )
    return loss


def loss_params(request: FinetuneRequest) -> dict[str, Any]:
    """The parameters of a request's loss for a training's id, by name; empty for cross-entropy."""
    loss = make_loss(request)
    return {} if loss is None else dataclasses.asdict(loss)


class LossSums(NamedTuple):
    """Sums over the predicted tokens of some sequences; scalars."""

    weighted: torch.Tensor
    """Sum of weight × negative log-likelihood, nats; the only one with a gradient."""
    plain: torch.Tensor
    """Sum of the negative log-likelihoods, nats."""
    tokens: torch.Tensor
    """Number of predicted tokens."""


class ModelWithLoss(nn.Module):
    """A model together with its loss.

    DDP and FSDP act when the outermost module's forward is called, so that forward must hold everything.

    Args:
        model: A causal language model of transformers, which may hold adapters.
        loss: Parameters of LongCE, or None.
        arguments: Gives the arguments of the decoder's forward.
    """

    def __init__(self, model: Any, loss: LongCE | None, arguments: ForwardArguments) -> None:
        super().__init__()
        self.model = model
        self._parts = ModelParts(model)
        self._loss = loss
        self._arguments = arguments

    def forward(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, documents_BT: torch.Tensor | None
    ) -> LossSums:
        """Computes the sums of the loss over some sequences.

        Args:
            tokens_BT: Token ids.
            positions_BT: Positions.
            documents_BT: Number of each token's document where attention ends at its borders, or None.
        """
        # Before the pass with gradients, so that the two passes don't hold memory at once.
        short_BP = None if self._loss is None else self._short_nll(self._loss, tokens_BT, documents_BT)
        labels_BT = next_tokens(tokens_BT, documents_BT)
        nll_BT = self._nll(tokens_BT, positions_BT, documents_BT, labels_BT)
        weights_BT = (labels_BT != _NO_LABEL).to(nll_BT.dtype)
        tokens, plain = weights_BT.sum(), nll_BT.detach().sum()
        if self._loss is None or short_BP is None:
            return LossSums(nll_BT.sum(), plain, tokens)
        first = self._loss.context + self._loss.step - 1
        ratio_BP = torch.exp(short_BP - nll_BT.detach()[:, first:])
        weights_BT[:, first:] *= ratio_BP.clamp(max=self._loss.bound)
        return LossSums((weights_BT * nll_BT).sum(), plain, tokens)

    def _nll(
        self,
        tokens_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        documents_BT: torch.Tensor | None,
        labels_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Negative log-likelihoods of the labels, (B, T); 0 where there is no label."""
        decoded = self._parts.decoder(**self._arguments(tokens_BT, positions_BT, documents_BT))
        return token_nll(self._parts, decoded, labels_BT)

    @torch.no_grad()
    def _short_nll(self, loss: LongCE, tokens_BT: torch.Tensor, documents_BT: torch.Tensor | None) -> torch.Tensor:
        """Negative log-likelihoods of the labels in short contexts, (B, P), nats.

        Left out are the first context + step − 1 places; the place of a label is that of the token before it.
        """
        num_tokens, first = tokens_BT.shape[1], loss.context - 1
        parts = []
        for start in range(loss.step, num_tokens - loss.context, loss.step):
            part = slice(start, min(start + loss.context + loss.step, num_tokens))
            tokens, documents = tokens_BT[:, part], None if documents_BT is None else documents_BT[:, part]
            labels = next_tokens(tokens, documents)
            labels[:, :first] = _NO_LABEL  # the window before has predicted those
            nll = self._nll(tokens, restarted_positions(tokens, documents), documents, labels)
            parts.append(nll[:, first:-1])
        parts.append(torch.zeros_like(parts[0][:, :1]))  # the last token predicts nothing
        return torch.cat(parts, dim=1)


def next_tokens(tokens_BT: torch.Tensor, documents_BT: torch.Tensor | None) -> torch.Tensor:
    """The label of each token, (B, T): the token after it, and none for the last token of a sequence or document."""
    labels_BT = torch.full_like(tokens_BT, _NO_LABEL)
    labels_BT[:, :-1] = tokens_BT[:, 1:]
    if documents_BT is not None:
        labels_BT[:, :-1][documents_BT[:, 1:] != documents_BT[:, :-1]] = _NO_LABEL
    return labels_BT


def restarted_positions(tokens_BT: torch.Tensor, documents_BT: torch.Tensor | None) -> torch.Tensor:
    """Positions (B, T) that start at 0 in each sequence, and in each document where there are borders."""
    places_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    if documents_BT is None:
        return places_BT
    starts_BT = torch.zeros_like(places_BT)
    starts_BT[:, 1:] = places_BT[:, 1:] * (documents_BT[:, 1:] != documents_BT[:, :-1])
    return places_BT - starts_BT.cummax(dim=1).values


def token_nll(parts: ModelParts, decoded: Any, labels_BT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods of labels, (B, T), nats, at least in float32; 0 where there is no label.

    Only hidden states and likelihoods are kept for the backward pass, which computes each chunk's logits once more.

    Args:
        parts: The model.
        decoded: The output of its decoder for the B sequences.
        labels_BT: The token that each token predicts.
    """

    def chunk_nll(hidden_CH: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
        with parts.head(decoded) as head:  # within the chunk, as it also runs in the backward pass
            logits_CV = head(hidden_CH)
        wide = torch.promote_types(logits_CV.dtype, torch.float32)
        return cross_entropy(
            logits_CV.to(wide), labels_C.to(logits_CV.device), ignore_index=_NO_LABEL, reduction="none"
        )

    hidden_NH, labels_N = decoded.last_hidden_state.flatten(0, 1), labels_BT.flatten()
    size = max(1, LOGITS_BYTES // (4 * parts.model.config.get_text_config().vocab_size))
    chunks = zip(torch.split(hidden_NH, size), torch.split(labels_N, size), strict=True)
    nlls = [checkpoint(chunk_nll, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(nlls).view(labels_BT.shape)
