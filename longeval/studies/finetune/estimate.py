"""Estimates memory, operations and time of a training before its weights are loaded, and chooses how it uses a device.

Memory is counted, not fitted: weights, gradients, AdamW's moments, what autograd keeps of a pass (`kept_bytes` lists
it), and a chunk of logits. The list is that of a decoder with RMSNorm and a gated MLP, such as Llama, Mistral, Qwen and
Gemma; layers of other kinds keep as much or less.

A multiply-add counts as two operations. A backward pass makes two products for each of the forward pass, one for the
gradient of the input and one for that of the weights; frozen weights need the first only.

Shapes: B sequences in a pass, T tokens of a window, N = B·T, H hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from longeval.errors import LongEvalError
from longeval.models.prepare import PreparedModel
from longeval.run.cost import BYTES, PASS_TOKENS, RUNTIME_BYTES, ModelSize, rates, total_memory
from longeval.run.overview import format_gib
from longeval.studies.finetune.loss import make_loss
from longeval.studies.finetune.request import FinetuneRequest, Trained
from longeval.values import format_length

_FLOAT32 = 4
_SHORTEST = 256
"""The shortest window that is proposed, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """How a training uses a device."""

    micro_batch: int
    """Sequences in a pass."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """The processes that train together, as `accelerate launch` tells them in the environment."""

    number: int = 1
    on_this_machine: int = 1
    is_sharded: bool = False
    """Whether each holds a part of the weights only (FSDP2), instead of all of them (DDP)."""

    @classmethod
    def launched(cls) -> Launch:
        """Those of this launch."""
        number = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            number=number,
            on_this_machine=int(os.environ.get("LOCAL_WORLD_SIZE", str(number))),
            is_sharded=number > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSetup:
    """All that the memory of a training depends on, beside the sizes of the model."""

    trained: Trained
    rank: int
    """LoRA's r."""
    window: int
    """T."""
    micro_batch: int
    """B."""
    checkpointing: bool
    accumulates: bool
    """Whether a step has several passes."""
    has_borders: bool
    """Whether attention ends at the borders of documents."""
    attention: str
    """Attention implementation: eager, sdpa, …"""
    weight_bytes: int
    """Of a weight as it is loaded."""
    product_bytes: int
    """Of a number in matrix products: 2 under autocast to bfloat16."""
    processes: Launch
    is_cpu: bool
    """Whether the allocator is that of a CPU, which keeps much of what is free again."""

    @classmethod
    def of(cls, request: FinetuneRequest, model: PreparedModel, dtype: str, resources: Resources) -> TrainingSetup:
        """The setup of a request on the processes of this launch."""
        processes = Launch.launched()
        return cls(
            trained=request.trains,
            rank=request.rank,
            window=request.window_tokens,
            micro_batch=resources.micro_batch,
            checkpointing=resources.checkpointing,
            accumulates=resources.micro_batch < request.batch_size // processes.number,
            has_borders=request.packing == "documents",
            attention=model.attn or "sdpa",
            weight_bytes=BYTES[model.dtype],
            product_bytes=BYTES[dtype],
            processes=processes,
            is_cpu=model.device == "cpu",
        )

    @property
    def tokens(self) -> int:
        """N, the tokens of a pass."""
        return self.micro_batch * self.window

    @property
    def is_mixed(self) -> bool:
        """Whether float32 weights and activations are cast for matrix products."""
        return self.product_bytes < _FLOAT32


def num_adapter(size: ModelSize, rank: int) -> int:
    """Number of weights of LoRA's adapters, on the projections of attention."""
    inside = size.attention_width + size.key_value_width
    return 2 * rank * size.num_layers * (2 * size.hidden_size + inside)


def num_trained(size: ModelSize, trained: Trained, rank: int) -> int:
    """Number of weights that are trained."""
    if trained == "full":
        return size.num_parameters
    whole = size.num_embedding + (2 * size.num_layers + 1) * size.hidden_size if trained == "lora_plus" else 0
    return num_adapter(size, rank) + whole


def trains_head(size: ModelSize, trained: Trained) -> bool:
    """Whether the output head is trained; under LoRA+ if it is the embedding."""
    return trained == "full" or (trained == "lora_plus" and size.tied)


def kept_bytes(size: ModelSize, setup: TrainingSetup) -> int:
    """What autograd keeps of a layer for its backward pass, in bytes.

    Its list for each token: the input of both norms, and what it is after division by its root mean square, if the
    norm's weights are trained; the inputs of the products whose weights are trained (one copy for all that share it,
    but one cast for each under autocast); the rotated q and k, v, the output of attention and its log-sum-exp; of the
    MLP gate, its activation, up, and the product of both. Under autocast also the cast weights.
    """
    full, mixed, width = setup.trained == "full", setup.is_mixed, setup.product_bytes
    hidden, wide = size.hidden_size, size.attention_width
    norms = 2 * _FLOAT32 * ((1 if setup.trained == "lora" else 2) * hidden + 1)
    copies = 2 if full else 1
    if mixed:  # of q, k, v, gate and up; of the adapters of q, k, v and o
        copies = 5 if full else 3
    inputs = width * copies * hidden
    if mixed and not full and setup.attention != "eager":  # beside the output of attention, which eager doesn't keep
        inputs += width * wide
    inputs += 0 if full else 4 * setup.rank * width  # between the two matrices of each adapter
    mlp = (4 if full else 3) * size.intermediate_size * width
    masked = setup.attention == "sdpa" and setup.has_borders
    repeated = setup.attention == "eager" or masked  # keys and values are repeated for all heads
    attention = width * (2 * wide + 2 * (wide if repeated else size.key_value_width))
    if setup.attention == "eager":  # probabilities, and their cast
        attention += size.num_heads * setup.window * (_FLOAT32 + (width if mixed else 0))
    else:
        attention += size.num_heads * _FLOAT32
    if masked:  # a mask of numbers, made for each layer
        attention += setup.window * width
    adapter = 0 if full else num_adapter(size, setup.rank) // size.num_layers
    casts = width * (_layer_weights(size) + adapter) if mixed else 0
    return setup.tokens * (norms + inputs + attention + mlp) + casts


def _layer_weights(size: ModelSize) -> int:
    """Number of weights of a layer."""
    head = 0 if size.tied else size.hidden_size * size.vocab_size
    return (size.num_parameters - size.num_embedding - head) // size.num_layers


def _layer_moment(size: ModelSize, setup: TrainingSetup) -> int:
    """Bytes of gradients of activations while a layer's backward pass goes on: three of the MLP, and the stream."""
    moment = setup.tokens * (3 * size.intermediate_size * setup.product_bytes + 3 * size.hidden_size * _FLOAT32)
    if setup.attention != "eager":
        return moment
    # Gradients of probabilities and of scores, and a product of both.
    return moment + 3 * setup.tokens * size.num_heads * setup.window * _FLOAT32


def _loss_moment(size: ModelSize, setup: TrainingSetup) -> int:
    """Bytes of the loss's backward pass: a chunk of logits three times, and the gradient of the head's weights twice.

    The three are the log-softmax, its gradient, and that of the logits; gradients of chunks are summed.
    """
    from longeval.backends.hf.parts import LOGITS_BYTES

    logits = min(LOGITS_BYTES, setup.tokens * size.vocab_size * _FLOAT32)
    moment = 3 * logits + setup.tokens * size.hidden_size * _FLOAT32
    head = size.hidden_size * size.vocab_size
    if setup.is_mixed:
        moment += logits * setup.product_bytes // _FLOAT32 + head * setup.product_bytes
    return moment + (2 * head * _FLOAT32 if trains_head(size, setup.trained) else 0)


def peak_bytes(size: ModelSize, setup: TrainingSetup) -> int:
    """The peak memory of a training on one device, in bytes.

    A pass has two high moments: when its loss is taken, all activations are there and, with accumulation or DDP, the
    gradients of the passes before; when it ends, gradients and one layer's activations. Moments of AdamW are there
    from the first step on. Checkpoints and the saved model are written without a copy; a saved bfloat16 model is cast.
    """
    processes = setup.processes
    trained = num_trained(size, setup.trained, setup.rank)
    weights = size.num_parameters * setup.weight_bytes + (trained * _FLOAT32 if setup.trained != "full" else 0)
    gradients, moments = trained * _FLOAT32, 2 * trained * _FLOAT32
    loaded, gathered = weights, 0
    if processes.is_sharded:
        weights, gradients, moments = (part // processes.number for part in (weights, gradients, moments))
        # The layer in use and the next one, a layer's gradients, and embeddings and head, which stay gathered.
        outside = size.num_parameters - size.num_layers * _layer_weights(size)
        gathered = setup.weight_bytes * (2 * _layer_weights(size) + outside)
        gathered += _FLOAT32 * _layer_weights(size) if setup.trained == "full" else 0
    kept, moment = kept_bytes(size, setup), _layer_moment(size, setup)
    tokens, layers = setup.tokens, size.num_layers
    stream = tokens * size.hidden_size * _FLOAT32
    activations, at_loss = layers * (stream if setup.checkpointing else kept), _loss_moment(size, setup)
    if setup.is_cpu:
        at_loss += kept + moment
    elif setup.checkpointing:
        at_loss = max(at_loss, kept + moment)
    activations += 3 * stream  # the last norm's input, its quotient and the output
    if setup.has_borders or setup.attention == "eager":
        activations += tokens * setup.window * (_FLOAT32 if setup.attention == "eager" else 1)  # the mask
    waiting = gradients if setup.accumulates or (processes.number > 1 and not processes.is_sharded) else 0
    training = weights + moments + gathered + max(waiting + activations + at_loss, gradients + kept + moment)
    saving = loaded + (size.num_parameters * setup.product_bytes if setup.product_bytes < setup.weight_bytes else 0)
    return max(training, saving) + RUNTIME_BYTES


def memory_bytes(
    request: FinetuneRequest, model: PreparedModel, size: ModelSize, dtype: str, resources: Resources
) -> int:
    """The estimated peak memory of a training on one device; see `peak_bytes`."""
    return peak_bytes(size, TrainingSetup.of(request, model, dtype, resources))


def device_memory(model: PreparedModel) -> int | None:
    """Bytes of memory for one process: those of its GPU, or its share of the machine's."""
    there = total_memory(model)
    shared = 1 if there is None or model.device.startswith("cuda") else Launch.launched().on_this_machine
    return None if there is None else there // shared


def choose(request: FinetuneRequest, model: PreparedModel, size: ModelSize, dtype: str) -> Resources:
    """The resources of a training: as asked, or what is fast and fits.

    Unless asked for, a pass has one sequence on a CPU, elsewhere up to PASS_TOKENS tokens, and fewer where they don't
    fit; activations are computed twice only where one sequence doesn't fit without.

    Raises:
        LongEvalError: The training doesn't fit into the device's memory.
    """
    there = device_memory(model)
    options = list(_options(request, model))
    for resources in options:
        if there is None or memory_bytes(request, model, size, dtype, resources) <= there:
            return resources
    least = min(memory_bytes(request, model, size, dtype, resources) for resources in options)
    processes = Launch.launched()
    where = f" on each of {processes.number} processes" if processes.number > 1 else ""
    fitting = _fitting(request, model, size, TrainingSetup.of(request, model, dtype, options[-1]), there or 0)
    raise LongEvalError(
        f"--window {format_length(request.window_tokens)}{'' if request.window else ' (that of --length)'}: training "
        f"{model.name} needs about {format_gib(least)}{where} (weights, gradients, moments, activations), and there "
        f"are {format_gib(there or 0)}",
        f"{'; '.join(fitting)}." if fitting else f"Use {_larger(model, processes)}.",
    )


def _options(request: FinetuneRequest, model: PreparedModel) -> Iterator[Resources]:
    """Resources that are tried, the fastest first."""
    most = 1 if model.device == "cpu" else max(1, PASS_TOKENS // request.window_tokens)
    most = min(max(1, request.batch_size // Launch.launched().number), most)
    asked = request.gradient_checkpointing
    for checkpointing in (False, True) if asked is None else (asked,):
        micro = most if request.micro_batch is None else request.micro_batch
        yield Resources(micro_batch=micro, checkpointing=checkpointing)
        while request.micro_batch is None and micro > 1:
            micro //= 2
            yield Resources(micro_batch=micro, checkpointing=checkpointing)


def _fitting(
    request: FinetuneRequest, model: PreparedModel, size: ModelSize, asked: TrainingSetup, there: int
) -> list[str]:
    """Changes with which a training fits: the longest window as asked, and with LoRA."""
    found = []
    kinds: tuple[Trained, ...] = ("full", "lora") if asked.trained == "full" else (asked.trained,)
    for trained in kinds:
        for setup in _smaller(dataclasses.replace(asked, trained=trained), request):
            if (needed := peak_bytes(size, setup)) <= there:
                window = f"--window {format_length(setup.window)}"
                if setup.window < request.length and request.augment == ("none",) and request.window is None:
                    window += " --augment pose"
                flags = _flags(setup, asked, request)
                found.append(f"{window} fits{f' with {flags}' if flags else ''}: {format_gib(needed)}")
                break
    return found


def _smaller(setup: TrainingSetup, request: FinetuneRequest) -> Iterator[TrainingSetup]:
    """Setups of less and less memory: other ways to train on a window, then shorter windows."""
    attentions = [setup.attention, *(["sdpa"] if request.attn == "eager" else [])]
    window = setup.window
    while window >= min(setup.window, _SHORTEST):
        for attention in attentions:
            for micro in sorted({setup.micro_batch, 1}, reverse=True):
                for checkpointing in sorted({setup.checkpointing and request.gradient_checkpointing is True, True}):
                    yield dataclasses.replace(
                        setup, window=window, attention=attention, micro_batch=micro, checkpointing=checkpointing
                    )
        window = 1 << ((window - 1).bit_length() - 1)


def _flags(setup: TrainingSetup, asked: TrainingSetup, request: FinetuneRequest) -> str:
    """What to add to the command for a setup."""
    flags = ["--lora"] if setup.trained != asked.trained else []
    flags += [f"--attn {setup.attention}"] if setup.attention != asked.attention else []
    flags += ["--micro-batch 1"] if request.micro_batch is not None and setup.micro_batch < asked.micro_batch else []
    flags += ["--gradient-checkpointing"] if setup.checkpointing and not request.gradient_checkpointing else []
    return " ".join(flags)


def _larger(model: PreparedModel, processes: Launch) -> str:
    """What else may help where no window fits."""
    if model.device.startswith("cuda") and not processes.is_sharded:
        return "a smaller --model, or several devices: accelerate launch --use_fsdp --fsdp_version 2 -m longeval …"
    return "a smaller --model, or more devices" if processes.is_sharded else "a smaller --model"


class Operations(NamedTuple):
    """Operations of all processes; a device makes its share."""

    products: float
    attention: float


def step_operations(
    request: FinetuneRequest, model: PreparedModel, size: ModelSize, resources: Resources
) -> Operations:
    """Operations of one optimiser step.

    The head's logits are computed twice, see `loss.token_nll`. The backward pass of fused attention computes scores
    again: 5 products for 2 of the forward pass (Dao 2023, arXiv 2307.08691); eager attention makes 4, on all pairs of
    tokens instead of the causal half. LongCE's short contexts have forward passes of their own.
    """
    trained = request.trains
    window, again = request.window_tokens, 1 if resources.checkpointing else 0
    products = size.flops_per_token * window * (1 + again + (2 if trained == "full" else 1))
    # Nothing needs the result of a layer's last product, so torch leaves it out when it computes a layer again.
    products -= again * 2.0 * size.num_layers * size.intermediate_size * size.hidden_size * window
    if trained != "full":
        products += 2.0 * num_adapter(size, request.rank) * window * (3 + again)
    products += size.head_flops(window) * (4 if trains_head(size, trained) else 3)
    eager = model.attn == "eager"
    once = size.attention_flops(window) * (2 if eager else 1)
    attention = once * (1 + again + (2 if eager else 2.5))
    loss = make_loss(request)
    if loss is not None:
        for start in range(loss.step, window - loss.context, loss.step):  # the first has the weight 1
            length = min(loss.context + loss.step, window - start)
            products += size.flops_per_token * length + size.head_flops(length)
            attention += size.attention_flops(length) * (2 if eager else 1)
    return Operations(products * request.batch_size, attention * request.batch_size)


def step_flops(request: FinetuneRequest, model: PreparedModel, size: ModelSize, resources: Resources) -> float:
    """Operations of one optimiser step, of all processes."""
    return sum(step_operations(request, model, size, resources))


def step_seconds(
    request: FinetuneRequest, model: PreparedModel, size: ModelSize, dtype: str, resources: Resources
) -> float:
    """Estimated seconds of one optimiser step, from the measured speeds of a matrix product and of attention."""
    product_rate, attention_rate = rates(dataclasses.replace(model, dtype=dtype), size)
    operations = step_operations(request, model, size, resources)
    processes = Launch.launched()
    # On a CPU the processes of a machine share its cores, which all take part in the measured speed.
    workers = processes.number // (processes.on_this_machine if model.device == "cpu" else 1)
    return (operations.products / product_rate + operations.attention / attention_rate) / max(1, workers)


def memory_lines(
    request: FinetuneRequest, model: PreparedModel, size: ModelSize, dtype: str, resources: Resources
) -> list[str]:
    """A table of the memory that a device needs, by window: all weights or LoRA, with and without checkpointing."""
    there, asked = device_memory(model), request.window_tokens
    base = TrainingSetup.of(request, model, dtype, dataclasses.replace(resources, micro_batch=1))
    middle = (asked - 1).bit_length()
    windows = sorted({asked, *(1 << power for power in range(max(8, middle - 2), middle + 3))})
    kinds: tuple[Trained, ...] = ("full", "lora_plus" if request.lora_plus else "lora")
    names = {"full": "full", "lora": "LoRA", "lora_plus": "LoRA+"}
    header = [text for trained in kinds for text in (names[trained], f"{names[trained]}, checkpointing")]
    each = f" on each of {base.processes.number} devices" if base.processes.number > 1 else ""
    lines = [
        f"Memory by window in GiB, one sequence in a pass{each}:",
        f"{'window':>10}" + "".join(f"{text:>{len(text) + 3}}" for text in header),
    ]
    for window in windows:
        line = f"{'asked: ' if window == asked else ''}{format_length(window)}".rjust(10)
        setups = [
            dataclasses.replace(base, trained=trained, window=window, checkpointing=checkpointing)
            for trained in kinds
            for checkpointing in (False, True)
        ]
        for text, setup in zip(header, setups, strict=True):
            needed = peak_bytes(size, setup)
            mark = "*" if there is not None and needed > there else " "
            line += f"{needed / 2**30:.1f}{mark}".rjust(len(text) + 3)
        lines.append(line.rstrip())
    if there is not None and any("*" in line for line in lines):
        lines.append(f"* more than the {format_gib(there)} of memory here")
    return lines
