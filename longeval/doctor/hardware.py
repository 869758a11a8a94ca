"""Processors, and what they compute: dtypes are not looked up but tried, a matrix product of each, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from longeval.doctor.check import Check
from longeval.errors import LongEvalError

_MATRIX = 1024
_GIB = 2**30


def cpu() -> Iterator[Check]:
    """Threads, bfloat16, memory."""
    import psutil
    import torch

    from longeval.models.device import native_bfloat16

    native = native_bfloat16("cpu")
    memory = psutil.virtual_memory()
    yield Check(
        name="cpu",
        status="ok",
        detail=f"{torch.get_num_threads()} threads, bfloat16 {'native' if native else 'emulated'}, "
        f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB memory free",
    )


def gpu() -> Iterator[Check]:
    """Every GPU that torch sees, or why it sees none."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield Check(
                name=f"cuda:{index}",
                status="ok",
                detail=f"{torch.cuda.get_device_name(index)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, "
                f"bfloat16 {'native' if torch.cuda.is_bf16_supported(including_emulation=False) else 'emulated'}",
            )
    elif torch.backends.mps.is_available():
        yield Check(name="mps", status="ok", detail="Apple GPU")
    else:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        yield Check(
            name="gpu",
            status="warn",
            detail=f"none seen; torch is built for {built}",
            remedy="Fine for models of up to about a billion weights. With an NVIDIA GPU, install the CUDA build of "
            "torch (pytorch.org, Get Started).",
        )


def dtypes() -> Iterator[Check]:
    """Multiplies a matrix in each dtype on the device that `--device auto` takes."""
    from longeval.models.device import resolve_device, resolve_dtype, unusable

    device = resolve_device("auto")
    auto = resolve_dtype("auto", device)
    reference = _multiply_s("float32", device)
    for dtype in ("float32", "bfloat16", "float16"):
        if reason := unusable(dtype, device):
            yield Check(name=dtype, status="warn", detail=f"fails on {device}: {reason}", remedy="Use --dtype auto.")
            continue
        seconds = reference if dtype == "float32" else _multiply_s(dtype, device)
        rate = 2 * _MATRIX**3 / seconds / 1e9
        compared = "" if dtype == "float32" else f", {reference / seconds:.2g} × float32"
        slow = seconds > (1.2 if dtype == auto else 4.0) * reference
        yield Check(
            name=dtype,
            status="warn" if slow else "ok",
            detail=f"{device}: {rate:.3g} GFLOP/s{compared}{', what --dtype auto takes' if dtype == auto else ''}",
            remedy=f"Works, but --dtype {'float32' if dtype == auto else auto} is quicker here." if slow else "",
        )


def _multiply_s(dtype: str, device: str) -> float:
    """Seconds of a matrix product, the best of three."""
    import torch

    x = torch.ones(_MATRIX, _MATRIX, dtype=getattr(torch, dtype), device=device)

    def once() -> float:
        started = time.perf_counter()
        (x @ x)[0, 0].item()  # fetching a value waits for the device
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(3))


def attention() -> Iterator[Check]:
    """Which values of `--attn` can run here."""
    from longeval.models.device import ATTENTIONS, resolve_attention, resolve_device

    device = resolve_device("auto")
    usable = []
    for name in ATTENTIONS[1:]:
        try:
            resolve_attention(name, device)
        except LongEvalError:
            continue
        usable.append(name)
    yield Check(name="attention", status="ok", detail=f"{', '.join(usable)} (--attn; default sdpa)")
