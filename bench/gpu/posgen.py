"""PosGen on a GPU: steps per second of seeds alone, stacked, with and without a CUDA graph; then the paper's table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from bench.gpu.rows import Row, Scale

LEAST_GAIN = 2.0
"""Stacking must be at least so much faster than seed after seed, or it goes."""


def run(scale: Scale) -> Iterator[Row]:
    """Yields steps per second for each precision, number of seeds, and with and without a graph."""
    from bench.posgen import NUM_SEEDS, default_config, stepping
    from longeval.studies.posgen.request import Precision

    config = default_config(scale.device)
    cuda = scale.device.startswith("cuda")
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bf16") if cuda else ("float32",)
    steps = 60 if cuda else 1
    for precision in precisions:
        alone: dict[bool, float] = {}
        for num_seeds in (1, NUM_SEEDS):
            for graph in (True, False) if cuda else (False,):
                make = stepping(config, num_seeds, precision, scale.device, graph=graph)
                make(6)  # the steps before a capture, and the capture
                seconds = []
                for _ in range(3 if cuda else 1):
                    started = time.perf_counter()
                    make(steps)
                    seconds.append(time.perf_counter() - started)
                rate = steps * num_seeds / statistics.median(seconds)
                gain = None if num_seeds == 1 else rate / alone[graph]
                if num_seeds == 1:
                    alone[graph] = rate
                yield {
                    "name": f"{precision}, {num_seeds} seed{'s' if num_seeds > 1 else ''}"
                    + (f", graph {'on' if graph else 'off'}" if cuda else ""),
                    "model": f"{config.layers}×{config.d_model}",
                    "steps of seeds per s": rate,
                    "gain by stacking": gain,
                    "passed": gain >= LEAST_GAIN if cuda and graph and gain is not None else None,
                }
