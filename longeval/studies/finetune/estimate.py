"""Estimates operations and memory of a training, and chooses how many sequences share a pass.

A multiply-add counts as two operations. A backward pass costs twice its forward pass; with gradient checkpointing the
forward pass is made twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from longeval.models.prepare import PreparedModel
from longeval.run.cost import PASS_TOKENS, ModelSize
from longeval.studies.finetune.request import FinetuneRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """How a training uses a device."""

    micro_batch: int
    """Sequences in a pass."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""


def choose(request: FinetuneRequest, model: PreparedModel, size: ModelSize, dtype: str) -> Resources:
    """The resources of a training: as asked, or what is fast and fits."""
    most = 1 if model.device == "cpu" else max(1, PASS_TOKENS // request.window_tokens)
    micro = min(request.batch_size, most) if request.micro_batch is None else request.micro_batch
    return Resources(micro_batch=micro, checkpointing=bool(request.gradient_checkpointing))


def step_flops(request: FinetuneRequest, size: ModelSize, resources: Resources) -> float:
    """Operations of one optimiser step."""
    window = request.window_tokens
    forward = size.flops_per_token * window + size.attention_flops(window) + size.head_flops(window)
    return (4 if resources.checkpointing else 3) * forward * request.batch_size
