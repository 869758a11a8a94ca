"""How quick is a training step, and is the estimate of its memory right? Random Llamas, one window a step.

`of GEMM` is the step's operations (longeval.studies.finetune.estimate) over the time, as a share of what a large matrix
product in bfloat16 reaches on the same device.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

from bench.gpu.prefill import gemm_rate
from bench.gpu.rows import Row, Scale
from bench.models import NATIVE, THETA, as_prepared, make_model, size_of

MEMORY_BOUND = 0.25
"""How far the estimate of memory may be from what was measured."""
STEPS = 4


def run(scale: Scale) -> Iterator[Row]:
    """Yields a row for each window, in full and with an adapter."""
    dtype = "bfloat16" if scale.full else "float32"
    rate = gemm_rate(scale, dtype)
    for window in (2048, 32768) if scale.full else (64, 128):
        for lora in (False, True):
            yield _trained("1b" if scale.full else "tiny", window, dtype, rate, scale, lora=lora)
            gc.collect()


def _trained(name: str, window: int, dtype: str, rate: float, scale: Scale, *, lora: bool) -> Row:
    """Trains a model for a few steps."""
    import numpy as np
    import torch

    from longeval.backends.base import OutOfMemoryError
    from longeval.backends.hf import memory
    from longeval.backends.hf.parts import memory_told, replace_rotary
    from longeval.errors import LongEvalError
    from longeval.rope.base import Geometry
    from longeval.rope.build import build_table
    from longeval.run.cost import RUNTIME_BYTES
    from longeval.studies.finetune.attend import forward_arguments
    from longeval.studies.finetune.batch import Batch
    from longeval.studies.finetune.checkpoint import Checkpoints
    from longeval.studies.finetune.estimate import Resources, memory_bytes, step_flops
    from longeval.studies.finetune.lora import adapt
    from longeval.studies.finetune.request import FinetuneRequest
    from longeval.studies.finetune.train import train

    on_gpu = scale.device.startswith("cuda")
    asked = {"model": "random", "pe": "yarn", "length": max(window, NATIVE), "window": window, "steps": STEPS}
    request = FinetuneRequest.read(asked | {"batch_size": 1, "lora": lora})
    model: Any = make_model(name, device=scale.device)
    rotary, _ = replace_rotary(model, model.config.model_type)
    factor = request.length / NATIVE
    geometry = Geometry(head_dim=model.config.head_dim, theta=THETA, native_length=NATIVE, factor=factor)
    rotary.serve(build_table("yarn", geometry), request.length)
    size, prepared = size_of(model), as_prepared(model)
    resources = Resources(micro_batch=1, checkpointing=window > 8192)

    def batch(step: int) -> Batch:
        tokens_BT = np.random.default_rng(step).integers(0, 1024, (1, window))
        return Batch(tokens_BT=tokens_BT, positions_BT=np.arange(window)[None])

    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        memory.reset_peak()
    title = (
        f"{name}, window {window}, {'LoRA' if lora else 'full'}{', checkpointing' if resources.checkpointing else ''}"
    )
    try:
        with memory_told(), tempfile.TemporaryDirectory() as folder:
            log = train(
                adapt(model, request) if lora else model,
                batch,
                request,
                seed=0,
                micro_batch=1,
                precision="bfloat16" if dtype == "bfloat16" else "float32",
                serve=lambda batch: None,
                arguments=forward_arguments,
                checkpoints=Checkpoints(folder),
                gradient_checkpointing=resources.checkpointing,
            )
    except (OutOfMemoryError, LongEvalError) as error:  # peft may not be there
        return {"name": title, "error": str(error)}
    took = statistics.median(log.seconds[1:])  # the first step also makes AdamW's moments
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory.peak_bytes()
    estimate = memory_bytes(request, prepared, size, dtype, resources) - (RUNTIME_BYTES if on_gpu else 0)
    return {
        "name": title,
        "tokens/s": window / took,
        "seconds a step": took,
        "of GEMM": step_flops(request, prepared, size, resources) / took / rate,
        "peak GiB": peak / 2**30,
        "estimated GiB": estimate / 2**30,
        "estimate / peak": estimate / peak,
        "memory within 25%": abs(estimate / peak - 1) <= MEMORY_BOUND if scale.full else None,
    }
