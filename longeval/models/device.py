"""Resolves `--device`, `--dtype`, `--attn` and `--device-map` on this machine.

`--dtype auto` is bfloat16 if the processor multiplies it in hardware (AVX512-BF16, AMX or ARM BF16 on CPUs; Ampere and
later on NVIDIA), otherwise float32, because emulated bfloat16 is slower.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re

from longeval.errors import LongEvalError, check_word, did_you_mean, reason

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

_FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def resolve_device(name: str = "auto") -> str:
    """Returns `cpu`, `cuda:N` or `mps` for the value of `--device`.

    Args:
        name: `auto` (CUDA, else MPS, else CPU), `cpu`, `cuda` (the first CUDA device; with `accelerate launch` that of
            this process), `cuda:N`, `mps`.

    Raises:
        LongEvalError: The name is unknown, or this machine has no such device.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return resolve_device("cuda")
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return name
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise LongEvalError("--device mps: this torch sees no Apple GPU", "Use --device cpu or auto.")
        return name
    if match := re.fullmatch(r"cuda(?::(\d+))?", name):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(match[1] or os.environ.get("LOCAL_RANK", "0"))
        if index >= count:
            seen = f"has {count} GPUs, cuda:0 to cuda:{count - 1}" if count else "sees no NVIDIA or AMD GPU"
            build = "" if torch.version.cuda or torch.version.hip else "; this torch is built for CPUs only"
            raise LongEvalError(f"--device {name}: this machine {seen}{build}", "Use --device cpu or auto.")
        return f"cuda:{index}"
    raise LongEvalError(f"--device {name}: unknown", did_you_mean(name, ("auto", "cpu", "cuda", "cuda:1", "mps")))


def resolve_dtype(name: str, device: str) -> str:
    """Returns `float32`, `bfloat16` or `float16` for the value of `--dtype` on a device from `resolve_device`.

    Raises:
        LongEvalError: The name is unknown, or the device can't compute with this dtype.
    """
    check_word("--dtype", name, DTYPES)
    if name == "auto":
        return "bfloat16" if native_bfloat16(device) else "float32"
    if name != "float32" and (why := unusable(name, device)):
        raise LongEvalError(f"--dtype {name}: {device} can't compute with it ({why})", "Use --dtype auto or float32.")
    return name


def resolve_attention(name: str | None, device: str) -> str | None:
    """Returns transformers' name of the attention implementation for the value of `--attn`.

    None and `auto` give None: transformers then chooses, SDPA if the model supports it.

    Raises:
        LongEvalError: The name is unknown, or the implementation can't run on this device.
    """
    if name is None or name == "auto":
        return None
    check_word("--attn", name, ATTENTIONS)
    package = _FLASH_PACKAGES.get(name)
    if package is not None and not device.startswith("cuda"):
        raise LongEvalError(f"--attn {name}: needs an NVIDIA or AMD GPU, the device is {device}", "Use --attn sdpa.")
    if package is not None and importlib.util.find_spec(package) is None:
        raise LongEvalError(f"--attn {name}: its package {package} isn't installed", "Install it, or use --attn sdpa.")
    return name


def resolve_device_map(name: str | None) -> str | None:
    """Returns the value of `--device-map`; raises LongEvalError if accelerate doesn't know it."""
    if name is not None:
        check_word("--device-map", name, DEVICE_MAPS)
    return name


def process_rank() -> int:
    """The number of this process among those of `accelerate launch`, from 0; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def device_name(device: str) -> str:
    """The name of a torch device in records, such as `cpu (AMD EPYC, 2 threads)` or `cuda (NVIDIA H100)`."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return f"cuda ({torch.cuda.get_device_name(torch.device(device))})"
    name = _processor("model name") or platform.processor() or platform.machine()
    return f"{kind} ({name}, {torch.get_num_threads()} threads)"


def _processor(*names: str) -> str:
    """The first entry with one of these names in Linux's /proc/cpuinfo; empty if there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip().lower() in names:
                    return value.strip()
    except OSError:
        pass
    return ""


def native_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return False  # Apple GPUs before the M3 emulate it, and torch doesn't report which GPU it is
    flags = set(_processor("flags", "features").split())
    if not flags and hasattr(torch.cpu, "get_capabilities"):
        flags = {flag for flag, has in torch.cpu.get_capabilities().items() if has}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16", "arm_bf16"})


@functools.cache
def unusable(dtype: str, device: str) -> str | None:
    """Tries a matrix product, attention and log-softmax in a dtype; returns the reason if they fail, else None."""
    import torch
    from torch.nn import functional

    try:
        x = torch.ones(1, 1, 8, 16, dtype=getattr(torch, dtype), device=device)
        attended = functional.scaled_dot_product_attention(x @ x.mT @ x, x, x, is_causal=True)
        finite = bool(torch.isfinite(functional.log_softmax(attended, dim=-1)).all())
    except (RuntimeError, TypeError) as error:
        return reason(error)
    return None if finite else "a small product is NaN"
