"""Estimates the cost of a forward pass: operations and memory from a model's sizes, and the speed of this machine.

A multiply-add counts as two operations. A pass has 2·parameters operations per token, 2·layers·width·T² for causal
attention over T tokens, and those of the output head for scored tokens only.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.backends.answering import order_prompts
from longeval.backends.base import capabilities
from longeval.errors import LongEvalError
from longeval.models.folder import stored_tensors
from longeval.models.library import empty_model
from longeval.models.prepare import PreparedModel
from longeval.models.quantisation import stored_bytes
from longeval.models.resolve import config_path, is_present
from longeval.request import ModelRequest
from longeval.values import format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One forward pass: a prefix and tokens [start, stop) of a document, of which [score_start, stop) are scored."""

    document: int
    """Index of the document (for `stream`, of the document that holds the first scored token)."""
    start: int
    """First token, index in the document (in the stream for `stream`)."""
    stop: int
    """End of the window, exclusive."""
    score_start: int
    """First scored token."""
    prefix: int
    """Number of tokens that the tokenizer puts before a text, such as a BOS."""

    @property
    def length(self) -> int:
        """Tokens in the window, prefix included. Length-dependent methods use this length."""
        return self.stop - self.start + self.prefix

    @property
    def context(self) -> int:
        """Position in the window, prefix included, of the first scored token."""
        return self.score_start - self.start + self.prefix

    @property
    def num_scored(self) -> int:
        """Number of scored tokens."""
        return self.stop - self.score_start


RUNTIME_BYTES = 500 * 1024 * 1024
"""Memory of Python, torch and transformers (measured with a CPU build)."""
LOGITS_COPIES = 3
"""Float32 logits of a chunk, their log-softmax, and the model's own precision."""
PASS_TOKENS = 8192
"""Tokens in a pass of several windows on a GPU; `python -m bench.batches --device cuda` measures what that brings."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """The sizes of a model that determine the cost of a pass."""

    num_parameters: int
    """Number of all parameters; a tied embedding counts once."""
    num_embedding: int
    """Number of parameters of the input embedding, which needs no multiplications."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    attention_width: int
    """Heads × head dimension."""
    key_value_width: int
    """Key/value heads × head dimension."""
    vocab_size: int
    tied: bool
    """Whether the output head is the input embedding."""
    quantised_bytes: int | None = None
    """What quantised weights take in memory; None for plain numbers, also those that were made of quantised ones."""

    @property
    def flops_per_token(self) -> float:
        """Operations for one token, without attention scores and the output head."""
        head = 0 if self.tied else self.hidden_size * self.vocab_size
        return 2.0 * (self.num_parameters - self.num_embedding - head)

    def attention_flops(self, length: int, cached: int = 0) -> float:
        """Operations of causal attention over `length` tokens in all layers; the first `cached` are not computed."""
        return 2.0 * self.num_layers * self.attention_width * (length**2 - cached**2)

    def head_flops(self, scored: int) -> float:
        """Operations of the output head at `scored` positions."""
        return 2.0 * self.hidden_size * self.vocab_size * scored

    def window_flops(self, window: Window) -> float:
        """Operations of one pass."""
        linear = self.flops_per_token * window.length + self.head_flops(window.num_scored)
        return linear + self.attention_flops(window.length)


def model_size(prepared: PreparedModel) -> ModelSize:
    """Sizes of a model from its configuration, and of quantised weights from their files."""
    model = empty_model(prepared.config, trust_remote_code=prepared.trust_remote_code)
    text = prepared.config.get_text_config()
    num_heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    size = ModelSize(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_embedding=model.get_input_embeddings().weight.numel(),
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_heads=num_heads,
        attention_width=num_heads * head_dim,
        key_value_width=(getattr(text, "num_key_value_heads", None) or num_heads) * head_dim,
        vocab_size=text.vocab_size,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )
    return dataclasses.replace(size, quantised_bytes=_quantised_bytes(prepared, size))


def _quantised_bytes(prepared: PreparedModel, size: ModelSize) -> int | None:
    """See `ModelSize.quantised_bytes`; while the files aren't here, from the bits of a weight."""
    quantisation, width = prepared.quantisation, BYTES[prepared.dtype]
    if quantisation is None or quantisation.dequantised:
        return None
    if is_present(prepared.ref):
        folder = os.path.dirname(config_path(prepared.ref))
        return stored_bytes(stored_tensors(prepared.name, folder).values(), width)
    if quantisation.bits is None:
        return None
    plain = size.num_embedding + (0 if size.tied else size.hidden_size * size.vocab_size)
    return (size.num_parameters - plain) * quantisation.bits // 8 + plain * width


def memory_bytes(model: PreparedModel, size: ModelSize, longest: int, *, batch: int = 1, cached: int = 0) -> int:
    """Weights, activations of a pass, a chunk of logits, and the program itself.

    A pass has `batch` windows of `longest` tokens; `cached` tokens have their keys and values held at the same time.
    """
    from longeval.backends.hf.parts import LOGITS_BYTES

    width = BYTES[model.dtype]
    # The largest moment of a layer: gate, up and their product, beside the residual stream and what of it was normed.
    # Measured with Llamas of 1B and 7B on a GPU; the allocator of a CPU keeps more of what is free again.
    beside = 4 if model.device.startswith("cuda") else 10
    per_token = width * (3 * size.intermediate_size + beside * size.hidden_size)
    if model.attn == "eager":
        # Tokens × tokens: logits, their cap or mask, probabilities, and the float32 in which the softmax is taken.
        per_token += size.num_heads * longest * (3 * width + 4)
    held = cached * 2 * size.num_layers * size.key_value_width * width
    weights = size.num_parameters * width if size.quantised_bytes is None else size.quantised_bytes
    return weights + batch * longest * per_token + held + LOGITS_COPIES * LOGITS_BYTES + RUNTIME_BYTES


def batch_size(model: PreparedModel, longest: int) -> int:
    """How many windows of up to `longest` tokens share a pass where nothing else is asked for.

    On a CPU one: SmolLM2-135M in float32 took 0.98 to 1.01 times the processor time for windows of 256 and 512 tokens
    with two or four in a pass, and 1.06 to 1.13 times with eight or sixteen. Elsewhere as many as have PASS_TOKENS
    together, fewer where their estimated memory isn't there.
    """
    most = 1 if model.device == "cpu" else max(1, PASS_TOKENS // longest)
    if most == 1:
        return 1
    size, there = model_size(model), total_memory(model)
    while most > 1 and there is not None and memory_bytes(model, size, longest, batch=most) > there:
        most //= 2
    return most


def rates(model: PreparedModel, size: ModelSize) -> tuple[float, float]:
    """Operations per second of (matrix product, causal attention), measured now with this model's shapes."""
    import torch

    from longeval.models.device import resolve_device

    device = torch.device(resolve_device(model.device))
    dtype = getattr(torch, model.dtype)
    tokens = 16384 if device.type == "cuda" else 2048  # fewer don't fill a GPU
    x_TH = torch.randn(tokens, size.hidden_size, dtype=dtype, device=device)
    weight_HI = torch.randn(size.hidden_size, size.intermediate_size, dtype=dtype, device=device)
    head_dim = size.attention_width // size.num_heads
    q_BHTD = torch.randn(1, size.num_heads, tokens, head_dim, dtype=dtype, device=device)

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(q_BHTD, q_BHTD, q_BHTD, is_causal=True)

    with torch.inference_mode():
        product_s = _time(lambda: x_TH @ weight_HI, device)
        attention_s = _time(attend, device)
    product = 2.0 * tokens * size.hidden_size * size.intermediate_size
    return product / product_s, 2.0 * size.attention_width * tokens**2 / attention_s


def _time(work: Callable[[], Any], device: Any, repeats: int = 5) -> float:
    """Median seconds of `work` after a warm-up."""
    import torch

    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[repeats // 2]


def seconds(model: PreparedModel, size: ModelSize, flops: float) -> float:
    """Estimated seconds for `flops` operations at the measured speed of a matrix product."""
    return flops / rates(model, size)[0]


def windows_seconds(model: PreparedModel, size: ModelSize, windows: Sequence[Window]) -> float:
    """Estimated seconds for passes, from the measured speeds of a matrix product and of attention."""
    if not windows:
        return 0.0
    matmul_rate, attention_rate = rates(model, size)
    linear = sum(size.flops_per_token * window.length + size.head_flops(window.num_scored) for window in windows)
    attention = sum(size.attention_flops(window.length) for window in windows)
    return linear / matmul_rate + attention / attention_rate


def precision(request: ModelRequest, model: PreparedModel) -> str:
    """The precision of a model for a dry run; that of a server is unknown."""
    return "precision unknown" if capabilities(request.backend).remote else model.dtype


def sample_costs(size: ModelSize, inputs: Sequence[npt.NDArray[np.int32]]) -> list[float]:
    """Operations for each of several inputs (token ids) that share the keys and values of common prefixes.

    The prefix that an input shares with the one before it in lexicographical order costs nothing.
    """
    order = order_prompts(inputs)
    costs, shared = [0.0] * len(inputs), 0
    for index, shared_next in zip(order.indices, order.shared, strict=True):
        length = len(inputs[index])
        costs[index] = size.flops_per_token * (length - shared) + size.attention_flops(length, shared)
        costs[index] += size.head_flops(1)
        shared = shared_next
    return costs


def check_memory(model: PreparedModel, size: ModelSize, length: int, tokens: int) -> None:
    """Raises LongEvalError if an input can't fit into all of the memory. Called before weights are loaded.

    `length` is the requested window length, for the message. `tokens` is that of the longest input with its answer; at
    the end, the keys and values of all of it are in memory.
    """
    needed, there = memory_bytes(model, size, tokens, cached=tokens), total_memory(model)
    if there is None or needed <= there:
        return
    raise LongEvalError(
        f"--lengths {format_length(length)}: an input of {tokens:,} tokens needs about {needed / 2**30:.1f} GiB with "
        f"{model.name} ({model.dtype}; weights, keys and values, activations), and there are {there / 2**30:.1f} GiB",
        f"Ask for {', or '.join(_ways_to_fit(model, size, there))}.",
    )


def _ways_to_fit(model: PreparedModel, size: ModelSize, there: int) -> list[str]:
    """Changes that may make a request fit into `there` bytes, without those that are already made or can't help."""
    import torch

    ways = ["shorter lengths"] if memory_bytes(model, size, 2, cached=2) <= there else []
    ways.append("a smaller --model")
    if model.dtype == "float32":
        ways.append("--dtype bfloat16")
    if model.device_map is None and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        ways.append("all devices with --device-map auto")
    return ways


def total_memory(model: PreparedModel) -> int | None:
    """Bytes of memory for a model: of its GPU (of all GPUs with `--device-map`), or else of the machine."""
    import psutil
    import torch

    if model.device_map is not None and torch.cuda.is_available():
        count = torch.cuda.device_count()
        return sum(torch.cuda.get_device_properties(index).total_memory for index in range(count))
    device = torch.device(model.device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
