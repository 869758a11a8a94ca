"""Does a GPU compute what a CPU computes? Tables by digest, token NLLs in float32, and what each precision costs.

The reference is float32 on the CPU. A control says how much the NLLs move when the method changes: a difference between
devices means something only beside it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Iterator
from typing import Any

from bench.gpu.rows import Row, Scale
from bench.models import NATIVE, THETA, make_model

FLOAT32_BOUND = 1e-3
"""Largest difference of a token's NLL between CPU and GPU in float32 without TF32, nats (30 layers of rounding)."""
BFLOAT16_BOUND = 1.5
"""Largest mean |difference| of token NLLs between bfloat16 on the device and float32 on the CPU, as a multiple of what
bfloat16 costs on the CPU."""
METHODS = ("none", "resonance", "pi", "ntk", "dynamic_ntk", "ntk_by_parts", "yarn", "resonance_yarn", "llama3")


def run(scale: Scale) -> Iterator[Row]:
    """Yields a row a comparison."""
    import numpy as np
    import torch

    from longeval.backends.hf.backend import HFBackend
    from longeval.rope.base import Geometry, table_digest
    from longeval.rope.build import build_table

    size, length = ("135m", 2048) if scale.full else ("tiny", 256)
    num_rows = 4 * NATIVE if scale.full else 1024
    geometry = Geometry(head_dim=64 if scale.full else 16, theta=THETA, native_length=NATIVE, factor=8.0)
    tables = {name: build_table(name, geometry) for name in METHODS}
    rng = np.random.default_rng(0)
    tokens_T = rng.integers(0, 1024, length).astype(np.int32)

    plain = make_model(size, device="cpu")
    expected: dict[tuple[str, str], Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        reference = HFBackend(copy.deepcopy(plain).to(dtype))
        for name in ("none", "resonance_yarn"):
            reference.serve(tables[name], length)
            expected[reference.dtype, name] = reference.score(tokens_T, 1).astype(float)
    control = np.abs(expected["float32", "none"] - expected["float32", "resonance_yarn"])
    yield {"name": "control: none against resonance_yarn on the CPU", "mean |difference|": float(control.mean())}
    rounding = {
        name: float(np.abs(expected["bfloat16", name] - expected["float32", name]).mean())
        for name in ("none", "resonance_yarn")
    }
    for name, mean in rounding.items():
        yield {"name": f"bfloat16 on the CPU, {name}", "mean |difference|": mean}

    here = HFBackend(copy.deepcopy(plain).to(scale.device))
    for name, table in tables.items():
        here.serve(table, num_rows)
        here.score(tokens_T[:16], 1)  # moves the table to the device
        planned = table_digest(table.cos_sin(np.arange(num_rows, dtype=np.int64)))
        equal = here.rope_digest(num_rows) == planned
        yield {"name": f"digest of {name}, {num_rows} rows read back from the device", "passed": equal}
    del here

    for name, dtype, attn, kernel, tf32 in _variants(scale):
        model = copy.deepcopy(plain)
        model.set_attn_implementation(attn)
        backend = HFBackend(model.to(device=scale.device, dtype=getattr(torch, dtype)))
        for pe in ("none", "resonance_yarn"):
            backend.serve(tables[pe], length)
            with _setting(kernel, tf32):
                found = backend.score(tokens_T, 1).astype(float)
            difference = np.abs(found - expected["float32", pe])
            strict = dtype == "float32" and not tf32
            limit = BFLOAT16_BOUND * rounding[pe]
            passed = difference.max() <= FLOAT32_BOUND if strict else difference.mean() <= limit
            yield {
                "name": f"{name}, {pe}",
                "mean |difference|": float(difference.mean()),
                "largest |difference|": float(difference.max()),
                "mean NLL": float(found.mean()),
                "mean NLL on the CPU": float(expected["float32", pe].mean()),
                "passed": bool(passed),
            }
        del backend, model


def _variants(scale: Scale) -> Iterator[tuple[str, str, str, str | None, bool]]:
    """(name, dtype, attention of transformers, kernel of SDPA, TF32) of everything that is compared."""
    yield "float32, sdpa", "float32", "sdpa", None, False
    yield "float32, eager", "float32", "eager", None, False
    yield "bfloat16, eager", "bfloat16", "eager", None, False
    yield "bfloat16, sdpa", "bfloat16", "sdpa", None, False
    if not scale.device.startswith("cuda"):
        return
    yield "float32 with TF32, sdpa", "float32", "sdpa", None, True
    yield "bfloat16, sdpa, flash kernel only", "bfloat16", "sdpa", "FLASH_ATTENTION", False
    if importlib.util.find_spec("flash_attn") is not None:
        yield "bfloat16, flash_attention_2", "bfloat16", "flash_attention_2", None, False


@contextlib.contextmanager
def _setting(kernel: str | None, tf32: bool) -> Iterator[None]:
    """A kernel of SDPA and nothing else, and TF32 on or off."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with contextlib.nullcontext() if kernel is None else sdpa_kernel(getattr(SDPBackend, kernel)):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
