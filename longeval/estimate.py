"""What a plan will cost: operations, time and memory, before anything is computed.

Time is operations over rates measured on this machine in a fraction of a second; it is an estimate and says so.
Operations count two per multiply-add: 2·parameters a token, 2·layers·width·T² for causal attention over T tokens, and
the output head only where a token is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longeval.evals.perplexity import Window
from longeval.models.prepare import PreparedModel
from longeval.plan import Job

RUNTIME_BYTES = 500 * 1024 * 1024
"""Python, torch and transformers themselves (measured, CPU build)."""
LOGITS_COPIES = 3
"""Float32 logits of a chunk, their log-softmax, and the model's own precision."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """The sizes that decide the cost of a pass."""

    num_parameters: int
    """All of them, a tied embedding once."""
    num_embedding: int
    """Those of the input embedding: looked up, not multiplied."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    attention_width: int
    """Heads × head dimension."""
    vocab_size: int
    tied: bool
    """Whether the output head is the input embedding."""

    @property
    def flops_per_token(self) -> float:
        """Of everything but attention scores and the output head."""
        head = 0 if self.tied else self.hidden_size * self.vocab_size
        return 2.0 * (self.num_parameters - self.num_embedding - head)

    def attention_flops(self, length: int) -> float:
        """Of causal attention scores and sums over `length` tokens, all layers."""
        return 2.0 * self.num_layers * self.attention_width * length**2

    def head_flops(self, scored: int) -> float:
        """Of the output head at `scored` positions."""
        return 2.0 * self.hidden_size * self.vocab_size * scored

    def window_flops(self, window: Window) -> float:
        """Of one pass."""
        linear = self.flops_per_token * window.length + self.head_flops(window.num_scored)
        return linear + self.attention_flops(window.length)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The cost of one model's part of a plan."""

    model: str
    dtype: str
    cells: int
    passes: int
    tokens: int
    """Tokens that go through the model, all passes together."""
    seconds: float
    memory_bytes: int
    """Peak of the longest pass, weights included."""


def model_size(prepared: PreparedModel) -> ModelSize:
    """Sizes of a model from its configuration: built without memory for its weights ("meta" device)."""
    import torch
    from transformers import AutoModelForCausalLM

    from longeval.models.quiet import quiet_transformers

    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(prepared.config, trust_remote_code=prepared.trust_remote_code)
    text = prepared.config.get_text_config()
    num_heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    return ModelSize(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_embedding=model.get_input_embeddings().weight.numel(),
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_heads=num_heads,
        attention_width=num_heads * head_dim,
        vocab_size=text.vocab_size,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def estimate(all_jobs: Sequence[Job]) -> list[Estimate]:
    """Estimates every model's part of what is to be done."""
    estimates = []
    for name in dict.fromkeys(job.model.name for job in all_jobs):
        jobs = [job for job in all_jobs if job.model.name == name]
        model = jobs[0].model
        windows = [window for job in jobs for window in job.passes()]
        size = model_size(model)
        estimates.append(
            Estimate(
                model=name,
                dtype=model.dtype,
                cells=sum(len(group.cells) for job in jobs for group in job.groups),
                passes=len(windows),
                tokens=sum(window.length for window in windows),
                seconds=_seconds(model, size, windows),
                memory_bytes=_memory_bytes(model, size, windows),
            )
        )
    return estimates


def _memory_bytes(model: PreparedModel, size: ModelSize, windows: Iterable[Window]) -> int:
    """Weights, activations of the longest pass, a chunk of logits, and the program itself."""
    from longeval.backends.hf import LOGITS_BYTES

    width = BYTES[model.dtype]
    longest = max((window.length for window in windows), default=0)
    # The largest moment of a layer: gate, up and their product, beside hidden states, residual, queries, keys, values.
    per_token = width * (3 * size.intermediate_size + 10 * size.hidden_size)
    if model.attn == "eager":
        # Tokens × tokens: logits, their cap or mask, probabilities, and the float32 in which the softmax is taken.
        per_token += size.num_heads * longest * (3 * width + 4)
    return size.num_parameters * width + longest * per_token + LOGITS_COPIES * LOGITS_BYTES + RUNTIME_BYTES


def _seconds(model: PreparedModel, size: ModelSize, windows: list[Window]) -> float:
    """Operations over the rates of a matrix product and of attention, both measured now on this model's shapes."""
    if not windows:
        return 0.0
    matmul_rate, attention_rate = _rates(model, size)
    linear = sum(size.flops_per_token * window.length + size.head_flops(window.num_scored) for window in windows)
    attention = sum(size.attention_flops(window.length) for window in windows)
    return linear / matmul_rate + attention / attention_rate


def _rates(model: PreparedModel, size: ModelSize) -> tuple[float, float]:
    """(matrix product, causal attention) in operations per second."""
    import torch

    from longeval.models.load import resolve_device

    device = torch.device(resolve_device(model.device))
    dtype = getattr(torch, model.dtype)
    tokens = 2048
    x_TH = torch.randn(tokens, size.hidden_size, dtype=dtype, device=device)
    weight_HI = torch.randn(size.hidden_size, size.intermediate_size, dtype=dtype, device=device)
    heads = max(1, size.attention_width // 64)
    q_BHTD = torch.randn(1, heads, tokens, 64, dtype=dtype, device=device)

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(q_BHTD, q_BHTD, q_BHTD, is_causal=True)

    with torch.inference_mode():
        product_s = _time(lambda: x_TH @ weight_HI, device)
        attention_s = _time(attend, device)
    product = 2.0 * tokens * size.hidden_size * size.intermediate_size
    return product / product_s, 2.0 * heads * 64 * tokens**2 / attention_s


def _time(work: Callable[[], Any], device: Any, repeats: int = 5) -> float:
    """Median seconds of `work`, warmed up."""
    import torch

    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[repeats // 2]
