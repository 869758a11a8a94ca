"""How quick are long passes, and are the estimates of time and memory right? Random Llamas, one window at a time.

`of GEMM` is the model's operations (longeval.run.cost) over the time, as a share of what a large matrix product in
bfloat16 reaches on the same device in the same process.

Shapes: T tokens of a window.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.gpu.rows import Row, Scale
from bench.models import NATIVE, THETA, as_prepared, make_model, size_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEAST_OF_GEMM = 0.6
"""What a 7B model must reach at 32k tokens."""
MEMORY_BOUND = 0.15
"""How far the estimate of memory may be from what was measured."""


def run_prefill(scale: Scale) -> Iterator[Row]:
    """Yields a row a model and length: rate, share of the matrix product's rate, estimates beside measurements."""
    import torch

    dtype = "bfloat16" if scale.full else "float32"
    gemm = gemm_rate(scale, dtype)
    yield {"name": f"matrix product, {dtype}", "TFLOP/s": gemm / 1e12}
    lengths = (4096, 16384, 32768, 65536, 131072) if scale.full else (256, 512)
    for name in ("1b", "7b") if scale.full else ("tiny",):
        model = make_model(name, device=scale.device, dtype=dtype)
        yield from _prefill(name, model, lengths, gemm, scale)
        del model
        gc.collect()
        if scale.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _prefill(name: str, model: Any, lengths: Sequence[int], gemm: float, scale: Scale) -> Iterator[Row]:
    """The rows of one model."""
    from longeval.backends.base import OutOfMemoryError
    from longeval.run.cost import RUNTIME_BYTES, Window, memory_bytes, windows_seconds

    size, prepared = size_of(model), as_prepared(model)
    backend = _serving(model, max(lengths), "yarn")
    backend.score(_tokens(min(lengths)), 1)
    for length in lengths:
        window = Window(document=0, start=0, stop=length, score_start=1, prefix=0)
        backend.reset_peak_memory()
        try:
            took = _median_s(partial(backend.score, _tokens(length), 1), scale, 1 if length > 65536 else 3)
        except OutOfMemoryError as error:
            yield {"name": f"{name} at {length}", "error": str(error)}
            continue
        peak, rate = backend.peak_memory_bytes(), size.window_flops(window) / took
        # Of the estimate, what the program itself takes lies outside of what torch counts on a GPU.
        estimate = memory_bytes(prepared, size, length) - (RUNTIME_BYTES if scale.full else 0)
        bound = rate / gemm >= LEAST_OF_GEMM if (name, length) == ("7b", 32768) else None
        yield {
            "name": f"{name} at {length}",
            "tokens/s": length / took,
            "seconds": took,
            "estimated seconds": windows_seconds(prepared, size, [window]),
            "of GEMM": rate / gemm,
            "peak GiB": peak / 2**30,
            "estimated GiB": estimate / 2**30,
            "estimate / peak": estimate / peak,
            "passed": bound,
            "memory within 15%": abs(estimate / peak - 1) <= MEMORY_BOUND if scale.full else None,
        }


def run_shared(scale: Scale) -> Iterator[Row]:
    """Yields ratios of what longeval shares: a pass for a curve of lengths, and logits of the scored tail only."""
    import numpy as np
    import torch

    dtype, longest, stride = ("bfloat16", 32768, 256) if scale.full else ("float32", 512, 64)
    model = make_model("1b" if scale.full else "tiny", device=scale.device, dtype=dtype)
    backend = _serving(model, longest, "none")
    tokens_T = _tokens(longest)
    lengths = [longest // 4, longest // 2, 3 * longest // 4, longest]
    backend.score(tokens_T, 1)

    one = _median_s(lambda: backend.score(tokens_T, 1), scale, 3)
    each = _median_s(lambda: [backend.score(tokens_T[:length], 1) for length in lengths], scale, 3)
    together_T = backend.score(tokens_T, 1)
    worst = max(
        float(np.abs(backend.score(tokens_T[:length], 1) - together_T[: length - 1]).max()) for length in lengths[:-1]
    )
    yield {
        "name": f"curve of four lengths up to {longest}: a pass each / one pass",
        "first s": each,
        "second s": one,
        "ratio": each / one,
        "largest |difference|": worst,
    }

    def plain_tail() -> npt.NDArray[np.float32]:
        ids_BT = torch.from_numpy(tokens_T.astype(np.int64))[None].to(scale.device)
        with torch.inference_mode():
            logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0, -stride - 1 : -1].float()
        nll_S = torch.nn.functional.cross_entropy(logits_TV, ids_BT[0, -stride:], reduction="none")
        return nll_S.cpu().numpy()

    plain = _median_s(plain_tail, scale, 3)
    tail = _median_s(lambda: backend.score(tokens_T, longest - stride), scale, 3)
    difference = np.abs(plain_tail() - backend.score(tokens_T, longest - stride)).max()
    yield {
        "name": f"sliding window of {longest}, last {stride} scored: all logits / the tail's",
        "first s": plain,
        "second s": tail,
        "ratio": plain / tail,
        "largest |difference|": float(difference),
    }


def run_batches(scale: Scale) -> Iterator[Row]:
    """Yields for each window length how much faster a pass over several windows is than a pass each."""
    from bench.batches import LENGTHS, measure_batches

    lengths, dtype = (LENGTHS, "bfloat16") if scale.full else ((64,), "float32")
    for name in ("1b", "7b") if scale.full else ("tiny",):
        backend = _serving(make_model(name, device=scale.device, dtype=dtype), max(lengths), "none")
        for length in lengths:
            rows = measure_batches(
                backend,
                name,
                vocab_size=1024,
                lengths=[length],
                device=scale.device,
                sizes=[tokens // length for tokens in ((8192, 32768) if scale.full else (256,))],
                repeats=3,
            )
            for row in rows:
                yield {
                    "name": f"{name}: {row.batch_size} windows of {row.length}",
                    "tokens/s": row.tokens_per_s,
                    "times as fast as single": row.timed.ratio,
                    "largest |difference|": row.largest_difference,
                }
        backend.close()


def _serving(model: Any, length: int, pe: str) -> Any:
    """The model in longeval's backend, with a method's table for `length` positions."""
    from longeval.backends.hf.backend import HFBackend
    from longeval.rope.base import Geometry
    from longeval.rope.build import build_table

    config = model.config
    factor = max(1.0, length / NATIVE)
    geometry = Geometry(head_dim=config.head_dim, theta=THETA, native_length=NATIVE, factor=factor)
    backend = HFBackend(model)
    backend.serve(build_table(pe, geometry), length)
    return backend


def _tokens(length: int) -> npt.NDArray[np.int32]:
    """Random tokens that every model here knows."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 1024, length).astype(np.int32)


def gemm_rate(scale: Scale, dtype: str) -> float:
    """Operations per second of a large matrix product."""
    import torch

    side = 8192 if scale.full else 512
    a, b = (torch.randn(side, side, device=scale.device, dtype=getattr(torch, dtype)) for _ in range(2))
    return 2.0 * side**3 / _median_s(lambda: a @ b, scale, 10)


def _median_s(work: Callable[[], object], scale: Scale, repeats: int) -> float:
    """Median seconds of `work`, the device waited for."""
    import torch

    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        if scale.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
