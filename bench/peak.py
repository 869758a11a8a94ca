"""Peak memory of one pass, and what start-up takes, each measured in a fresh process.

A fresh process, because an allocator keeps what an earlier pass took, and because start-up happens once. On a CPU the
peak is the kernel's high-water mark of resident memory, reset after loading; on a CUDA device the allocator's.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

from bench.subject import Request, open_ours, open_plain, open_text, plain_loss

Which = Literal["ours", "plain"]

WARM_UP_TOKENS = 16
"""Tokens of the untimed first pass; it touches every weight, which loading only maps into memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """One pass of `length` tokens by one of the two, in a process of its own."""

    which: Which
    dtype: str
    length: int
    loaded_bytes: int | None
    """Memory in use before the pass, with the model loaded; None where the device has no such number."""
    peak_bytes: int | None
    """The most in use during the pass."""
    import_s: float | None
    """Importing torch, transformers and longeval."""
    plan_s: float | None
    """Checking the request: configuration, tokenizer, text from the cache."""
    load_s: float | None
    """Bringing the weights (for ours: and replacing the rotary module, and serving a table)."""
    error: str | None = None
    """Why there are no numbers: out of memory."""

    @property
    def extra_bytes(self) -> int | None:
        """What the pass itself needed beside the loaded model."""
        if self.peak_bytes is None or self.loaded_bytes is None:
            return None
        return self.peak_bytes - self.loaded_bytes


def peak_in_own_process(which: Which, request: Request, dtype: str) -> Peak:
    """Runs `peak_of` in a fresh process; one that the system kills (out of memory) becomes a Peak with an error."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak_of, which, request, dtype).result()
        except BrokenProcessPool:
            return _failed(which, request, dtype, "the process was killed, as systems do when memory runs out")


def peak_of(which: Which, request: Request, dtype: str) -> Peak:
    """Loads the model, makes one pass of the longest length, and tells what it took in this process."""
    started = time.perf_counter()
    # Imports are part of what a user waits for; these two bring all the heavy ones.

    from longeval.backends.base import OutOfMemoryError

    imported = time.perf_counter()
    text = open_text(request, dtype)
    planned = time.perf_counter()
    if which == "ours":
        backend = open_ours(text)

        def score(length: int) -> object:
            return backend.score(text.tokens_T[:length], 1)

    else:
        model = open_plain(text)

        def score(length: int) -> object:
            return plain_loss(model, text.tokens_T[:length])

    loaded = time.perf_counter()
    score(WARM_UP_TOKENS)
    loaded_bytes = _reset_peak(request.device)
    try:
        score(len(text.tokens_T))
    except OutOfMemoryError as error:
        return _failed(which, request, dtype, f"out of memory: {error}")
    return Peak(
        which=which,
        dtype=dtype,
        length=request.longest,
        loaded_bytes=loaded_bytes,
        peak_bytes=_peak_bytes(request.device),
        import_s=imported - started,
        plan_s=planned - imported,
        load_s=loaded - planned,
    )


def _failed(which: Which, request: Request, dtype: str, error: str) -> Peak:
    return Peak(
        which=which,
        dtype=dtype,
        length=request.longest,
        loaded_bytes=None,
        peak_bytes=None,
        import_s=None,
        plan_s=None,
        load_s=None,
        error=error,
    )


def _reset_peak(device: str) -> int | None:
    """Starts a new high-water mark and returns where it starts: what is in use now."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        from longeval.backends.hf import memory

        memory.reset_peak()
    return _peak_bytes(device)


def _peak_bytes(device: str) -> int | None:
    """The high-water mark since it was reset, bytes; None on devices that don't tell."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    from longeval.backends.hf import memory

    return memory.peak_bytes() if device == "cpu" else None
