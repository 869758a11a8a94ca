"""What a plan will cost, for `--dry-run`: operations, time and memory, before anything is computed.

Time is operations over rates measured on this machine in a fraction of a second; it is an estimate and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longeval.models.prepare import PreparedModel
from longeval.run.cost import ModelSize, memory_bytes, model_size, rates
from longeval.run.window import Window
from longeval.studies.ppl.plan import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The cost of one model's part of a plan."""

    model: str
    dtype: str
    cells: int
    passes: int
    tokens: int
    """Tokens that go through the model, all passes together."""
    seconds: float
    memory_bytes: int
    """Peak of the longest pass, weights included."""


def estimate(all_jobs: Sequence[Job]) -> list[Estimate]:
    """Estimates every model's part of what is to be done."""
    estimates = []
    for name in dict.fromkeys(job.model.name for job in all_jobs):
        jobs = [job for job in all_jobs if job.model.name == name]
        model = jobs[0].model
        windows = [window for job in jobs for window in job.passes()]
        size = model_size(model)
        estimates.append(
            Estimate(
                model=name,
                dtype=model.dtype,
                cells=sum(len(group.cells) for job in jobs for group in job.groups),
                passes=len(windows),
                tokens=sum(window.length for window in windows),
                seconds=_seconds(model, size, windows),
                memory_bytes=memory_bytes(model, size, max((window.length for window in windows), default=0)),
            )
        )
    return estimates


def _seconds(model: PreparedModel, size: ModelSize, windows: list[Window]) -> float:
    """Operations over the rates of a matrix product and of attention, both measured now on this model's shapes."""
    if not windows:
        return 0.0
    matmul_rate, attention_rate = rates(model, size)
    linear = sum(size.flops_per_token * window.length + size.head_flops(window.num_scored) for window in windows)
    attention = sum(size.attention_flops(window.length) for window in windows)
    return linear / matmul_rate + attention / attention_rate
