"""The rotary module that takes the place of a transformers model's own, and the search for that place.

It serves one float32 table (float64 angles, exact periodicity, see `rope.base.RopeTable.cos_sin`) and casts last. A
model's own module says how it lays features out over the head; the replacement is accepted only if, given the model's
own frequencies, it reproduces the module it replaces.

Shapes: B batch, T tokens, F features, D rotary dimensions = 2F.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from longeval.errors import LongEvalError
from longeval.rope.base import CosSin, RopeTable, table_digest

Layout = Literal["halves", "interleaved"]

GLOBAL_LAYERS = "full_attention"
"""Where a model rotates by layer type (Gemma 3), the layers that see the whole context, and so the ones to scale."""


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
        # Plain attributes, not buffers: `model.to(bfloat16)` must never reach the table.
        self._cos_TF = torch.empty(0, 0)
        self._sin_TF = torch.empty(0, 0)

    def serve(self, table: RopeTable, length: int) -> None:
        """Holds `table` for positions 0 … length−1."""
        cos_TF, sin_TF = table.cos_sin(np.arange(length, dtype=np.int64))
        self._cos_TF = torch.from_numpy(cos_TF)
        self._sin_TF = torch.from_numpy(sin_TF)

    def digest(self, length: int) -> str:
        """Digest of the rows 0 … length−1 of the table that is held now."""
        assert length <= len(self._cos_TF), "digest of positions that were never served"
        return table_digest(CosSin(self._cos_TF[:length].cpu().numpy(), self._sin_TF[:length].cpu().numpy()))

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cos and sin for `position_ids` (B, T); positions beyond the served length are an error."""
        if layer_type is not None and layer_type != GLOBAL_LAYERS:
            local: tuple[torch.Tensor, torch.Tensor] = self.original(x, position_ids, layer_type)
            return local
        if self._cos_TF.device != x.device:
            self._cos_TF, self._sin_TF = self._cos_TF.to(x.device), self._sin_TF.to(x.device)
        cos_BTF, sin_BTF = self._cos_TF[position_ids], self._sin_TF[position_ids]
        if self.layout == "halves":
            cos_BTD = torch.cat((cos_BTF, cos_BTF), dim=-1)
            sin_BTD = torch.cat((sin_BTF, sin_BTF), dim=-1)
        else:
            cos_BTD = cos_BTF.repeat_interleave(2, dim=-1)
            sin_BTD = sin_BTF.repeat_interleave(2, dim=-1)
        return cos_BTD.to(x.dtype), sin_BTD.to(x.dtype)


class ShippedRope:
    """The frequencies that a model's own rotary module holds, as loaded."""

    def __init__(self, module: nn.Module, by_layer_type: bool) -> None:
        prefix = f"{GLOBAL_LAYERS}_" if by_layer_type else ""
        self.inv_freq_F: torch.Tensor = getattr(module, f"{prefix}inv_freq").detach().cpu()
        self.attention_factor = float(getattr(module, f"{prefix}attention_scaling"))
        self.by_layer_type = by_layer_type

    def table(self) -> RopeTable:
        """As a RopeTable (float32 frequencies widened to float64)."""
        return RopeTable(
            inv_freq_F=self.inv_freq_F.to(torch.float64).numpy(), attention_factor=self.attention_factor, period_F=None
        )


def replace_rotary(model: nn.Module, model_type: str) -> tuple[TableRotaryEmbedding, ShippedRope]:
    """Replaces the one rotary module of `model`; returns the replacement and what the model shipped with.

    Raises:
        LongEvalError: No rotary module, several, or one that this replacement can't reproduce. The model is unchanged.
    """
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
    shipped = ShippedRope(original, by_layer_type)
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
    arguments = (x_BTD, positions_BT, GLOBAL_LAYERS) if shipped.by_layer_type else (x_BTD, positions_BT)
    replacement.serve(shipped.table(), num_probes)
    expected, got = original(*arguments), replacement(*arguments)
    if not (isinstance(expected, tuple) and len(expected) == 2):
        return False
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, got, strict=True))
