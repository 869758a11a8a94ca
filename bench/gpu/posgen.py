"""PosGen on a GPU: optimiser steps per second of one seed, with and without a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator

from bench.gpu.rows import Row, Scale


def run(scale: Scale) -> Iterator[Row]:
    """Yields steps per second for each precision, with and without a graph."""
    from bench.posgen import measure_stepping

    for row in measure_stepping(scale.device, repeats=3 if scale.full else 1):
        yield {
            "name": row.precision + (f", graph {'on' if row.graph else 'off'}" if scale.full else ""),
            "model": row.model,
            "steps per s": row.steps_per_s,
            "of the floor": row.of_floor,
        }
