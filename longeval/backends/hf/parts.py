"""A causal language model in parts: the decoder, the head, and a rotary module of ours in the place of its own.

Logits are computed in chunks and only where they are needed, so that no tokens × vocabulary matrix ever exists. They
come from the model's own forward with its decoder stood in for, so that soft caps, scales and whatever else a family
does between hidden states and logits is done by the family's own code.

The rotary module serves one float32 table (float64 angles, exact periodicity, see `rope.base.RopeTable.cos_sin`) and
casts last. It is accepted only if, given the model's own frequencies, it reproduces the module that it replaces.

Shapes: B batch (1), T tokens, S scored tokens, C a chunk of them, V vocabulary, H hidden size, F features, D rotary
dimensions = 2F.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from longeval.backends.base import OutOfMemoryError
from longeval.errors import LongEvalError, reason
from longeval.models.geometry import check_rotates
from longeval.models.load import is_out_of_memory
from longeval.rope.base import CosSin, RopeTable, table_digest

LOGITS_BYTES = 128 * 1024 * 1024
"""Size of the float32 logits of one chunk: large enough for full speed, small beside any model."""

Layout = Literal["halves", "interleaved"]

GLOBAL_LAYERS = "full_attention"
"""Where a model rotates by layer type (Gemma 3), the layers that see the whole context, and so the ones to scale."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states (C, H) to logits (C, V), in the model's dtype."""


class TokenScores(NamedTuple):
    """Scores of S tokens, on the device of the hidden states."""

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
        """Yields the head: the model's own forward, with an output of the decoder in the decoder's place."""
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
            decoded: An output of the decoder, see `head`.
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
        raise OutOfMemoryError(reason(error)) from error


class _Held(NamedTuple):
    """A float32 table as tensors, (T, F) each."""

    cos_TF: torch.Tensor
    sin_TF: torch.Tensor

    @classmethod
    def of(cls, table: RopeTable, length: int) -> _Held:
        """The rows 0 … length−1 of a table."""
        return cls(*(torch.from_numpy(part_TF) for part_TF in table.cos_sin(np.arange(length, dtype=np.int64))))

    def on(self, device: torch.device) -> _Held:
        """The same on a device."""
        return self if self.cos_TF.device == device else _Held(*(part_TF.to(device) for part_TF in self))


class TableRotaryEmbedding(nn.Module):
    """Drop-in for a transformers `*RotaryEmbedding`: `forward(x, position_ids) → (cos, sin)`, (B, T, D) in x's dtype.

    Args:
        original: The module that is replaced; still asked for layer types other than `GLOBAL_LAYERS`.
        layout: Whether feature j sits at dimensions (j, j+F), `halves`, or (2j, 2j+1), `interleaved`.
    """

    def __init__(self, original: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.original = original
        self.layout: Layout = layout
        # Plain attributes, not buffers: `model.to(bfloat16)` must never reach the tables.
        self._held = _Held(torch.empty(0, 0), torch.empty(0, 0))
        self._local: _Held | None = None

    def serve(self, table: RopeTable, length: int) -> None:
        """Holds `table`, and that of the local layers if it has one, for positions 0 … length−1."""
        self._held = _Held.of(table, length)
        self._local = None if table.local is None else _Held.of(table.local, length)

    @property
    def length(self) -> int:
        """How many positions are served."""
        return len(self._held.cos_TF)

    def digest(self, length: int) -> str:
        """Digest of the rows 0 … length−1 of the table that is held now (then those of the local layers' one)."""
        assert length <= len(self._held.cos_TF), "digest of positions that were never served"
        held = [self._held] if self._local is None else [self._held, self._local]
        return table_digest(*(CosSin(*(part_TF[:length].cpu().numpy() for part_TF in part)) for part in held))

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cos and sin for `position_ids` (B, T); positions beyond the served length are an error.

        Models that can also see (Qwen3.5) give positions by axis, (3, B, T), which for text are all the same.
        """
        if position_ids.ndim == 3:
            assert bool((position_ids == position_ids[:1]).all()), "positions by axis that differ: not text"
            position_ids = position_ids[0]
        if layer_type is None or layer_type == GLOBAL_LAYERS:
            held = self._held = self._held.on(x.device)
        elif self._local is not None:
            held = self._local = self._local.on(x.device)
        else:
            own: tuple[torch.Tensor, torch.Tensor] = self.original(x, position_ids, layer_type)
            return own
        cos_BTF, sin_BTF = held.cos_TF[position_ids], held.sin_TF[position_ids]
        if self.layout == "halves":
            cos_BTD = torch.cat((cos_BTF, cos_BTF), dim=-1)
            sin_BTD = torch.cat((sin_BTF, sin_BTF), dim=-1)
        else:
            cos_BTD = cos_BTF.repeat_interleave(2, dim=-1)
            sin_BTD = sin_BTF.repeat_interleave(2, dim=-1)
        return cos_BTD.to(x.dtype), sin_BTD.to(x.dtype)


class ShippedRope:
    """The frequencies that a model's own rotary module holds, as loaded or as it computes them by length.

    Args:
        module: The model's own module.
        layer_type: The layers meant, in a model that rotates by layer type.
    """

    def __init__(self, module: nn.Module, layer_type: str | None) -> None:
        self._module = module
        self.layer_type = layer_type
        self._prefix = "" if layer_type is None else f"{layer_type}_"

    def table(self, length: int = 2) -> RopeTable:
        """For a sequence of `length` tokens, as a RopeTable (float32 frequencies widened to float64).

        Some modules (longrope, dynamic) choose or compute frequencies when they see a long sequence: this one is shown
        the position length−1.
        """
        device = next((buffer.device for buffer in self._module.buffers()), torch.device("cpu"))
        arguments = (torch.zeros(1, 1, 1, device=device), torch.tensor([[length - 1]], device=device))
        self._module(*arguments, *(() if self.layer_type is None else (self.layer_type,)))
        inv_freq_F: torch.Tensor = getattr(self._module, f"{self._prefix}inv_freq").detach().cpu()
        return RopeTable(
            inv_freq_F=inv_freq_F.to(torch.float64).numpy(),
            attention_factor=float(getattr(self._module, f"{self._prefix}attention_scaling")),
        )


def replace_rotary(model: nn.Module, model_type: str) -> tuple[TableRotaryEmbedding, ShippedRope]:
    """Replaces the one rotary module of `model`; returns the replacement and what the model shipped with.

    Raises:
        LongEvalError: No rotary module, several, or one that this replacement can't reproduce. The model is unchanged.
    """
    check_rotates(model.config)
    places = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "rope_type")
    ]
    if len(places) != 1:
        what = "no rotary embedding" if not places else f"{len(places)} rotary embeddings"
        raise LongEvalError(
            f"--model: {what} found in a {model_type} model",
            "longeval needs a RoPE model of transformers with one rotary module, such as Llama, Mistral or Qwen.",
        )
    name, original = places[0]
    by_layer_type = isinstance(original.rope_type, dict)
    if by_layer_type and GLOBAL_LAYERS not in original.rope_type:
        raise LongEvalError(f"--model: a {model_type} model rotates by layer type without '{GLOBAL_LAYERS}' layers")
    shipped = ShippedRope(original, GLOBAL_LAYERS if by_layer_type else None)
    for layout in ("halves", "interleaved"):
        replacement = TableRotaryEmbedding(original, layout)
        if _reproduces(replacement, original, shipped):
            parent_name, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, replacement)
            return replacement, shipped
    raise LongEvalError(
        f"--model: the rotary embedding of a {model_type} model ({type(original).__name__}) can't be replaced exactly",
        "Its layout is unknown to longeval; use a model of another family.",
    )


def _reproduces(replacement: TableRotaryEmbedding, original: nn.Module, shipped: ShippedRope) -> bool:
    """Whether `replacement`, serving the shipped frequencies, gives what `original` gives at a few positions."""
    num_probes = 16  # few and small: float32 angles agree with float64 ones there
    device = next((buffer.device for buffer in original.buffers()), torch.device("cpu"))
    x_BTD = torch.zeros(1, num_probes, 1, device=device)
    positions_BT = torch.arange(num_probes, device=device)[None]
    rope_type: Any = original.rope_type
    kinds = [None] if shipped.layer_type is None else list(rope_type)
    for kind in kinds:
        # Every kind of layer in the place of the global ones: they may all come to be scaled.
        replacement.serve(ShippedRope(original, kind).table(), num_probes)
        expected = original(x_BTD, positions_BT, *([] if kind is None else [kind]))
        got = replacement(x_BTD, positions_BT)
        if not (isinstance(expected, tuple) and len(expected) == 2):
            return False
        if not all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, got, strict=True)):
            return False
    return True
