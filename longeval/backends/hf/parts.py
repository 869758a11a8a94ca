"""A causal language model as two parts: the decoder, and what turns its hidden states into logits.

Logits are computed in chunks and only where they are needed, so that no tokens × vocabulary matrix ever exists. They
come from the model's own forward with its decoder stood in for, so whatever a family does between hidden states and
logits (soft caps, scales) is done by the family's own code.

Shapes: B batch (1), T tokens, S scored tokens, C a chunk of them, V vocabulary, H hidden size.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from longeval.backends.base import OutOfMemoryError
from longeval.errors import LongEvalError
from longeval.models.load import is_out_of_memory

LOGITS_BYTES = 128 * 1024 * 1024
"""Size of the float32 logits of one chunk: large enough for full speed, small beside any model."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states (C, H) to logits (C, V), in the model's dtype."""


class TokenScores(NamedTuple):
    """What the model says of tokens, in float32 on the device of the head."""

    nll_S: torch.Tensor
    """Negative log-likelihoods, nats."""
    greedy_S: torch.Tensor | None
    """Whether each is the most probable token; None where nobody asked."""


class ModelParts:
    """Decoder and head of a transformers model.

    Args:
        model: A causal language model in eval mode.

    Raises:
        LongEvalError: The model has no separable decoder.
    """

    def __init__(self, model: Any) -> None:
        decoder = getattr(model, model.base_model_prefix, None)
        if decoder is None:
            raise LongEvalError(f"--model: a {model.config.model_type} model has no decoder apart from its head")
        self.model = model
        self.decoder: Any = decoder
        self.device: torch.device = model.get_input_embeddings().weight.device
        """Where token ids go."""

    @contextmanager
    def head(self, decoded: Any) -> Iterator[Head]:
        """Yields the head: the model's forward, its decoder stubbed by `decoded`, something that the decoder gave."""
        stand_in = copy.copy(decoded)  # of the family's own class, with whatever else its forward looks at
        own_forward = self.decoder.__dict__.get("forward")  # an instance attribute only where accelerate put one
        self.decoder.forward = lambda *_, **__: stand_in
        unused_BT = torch.zeros(1, 1, dtype=torch.long, device=self.device)

        def head(hidden_CH: torch.Tensor) -> torch.Tensor:
            stand_in.last_hidden_state = hidden_CH[None]
            logits_CV: torch.Tensor = self.model(input_ids=unused_BT, use_cache=False).logits[0]
            return logits_CV

        try:
            yield head
        finally:
            if own_forward is None:
                del self.decoder.forward
            else:
                self.decoder.forward = own_forward

    def score(
        self, decoded: Any, hidden_SH: torch.Tensor, targets_S: torch.Tensor, *, greedy: bool = False
    ) -> TokenScores:
        """Scores tokens by the hidden states before them, a chunk of logits at a time.

        Args:
            decoded: Something that the decoder gave, see `head`.
            hidden_SH: Hidden states of the tokens before.
            targets_S: The tokens.
            greedy: Whether to tell which are the most probable.
        """
        targets_S = targets_S.to(hidden_SH.device)
        nll_S = torch.empty(len(targets_S), dtype=torch.float32, device=hidden_SH.device)
        greedy_S = torch.empty(len(targets_S), dtype=torch.bool, device=hidden_SH.device) if greedy else None
        chunk = max(1, LOGITS_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        with self.head(decoded) as head:
            for start in range(0, len(targets_S), chunk):
                part = slice(start, start + chunk)
                logits_CV = head(hidden_SH[part])
                targets_C = targets_S[part].to(logits_CV.device)
                nll_C = torch.nn.functional.cross_entropy(logits_CV.float(), targets_C, reduction="none")
                nll_S[part] = nll_C.to(nll_S.device)
                if greedy_S is not None:
                    greedy_S[part] = (logits_CV.argmax(dim=-1) == targets_C).to(greedy_S.device)
        return TokenScores(nll_S, greedy_S)


@contextmanager
def memory_told() -> Iterator[None]:
    """Turns any error that says that memory ran out into OutOfMemoryError, and lets go of what the failed pass held."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # else the error keeps the pass's tensors while it is handled
        raise OutOfMemoryError(str(error).splitlines()[0] if str(error) else "MemoryError") from error
