"""PosGen: an optimiser step of one seed alone beside one of five seeds stacked, and what the hardware would allow.

Both sides make as many steps of seeds, so the ratio of their times is what stacking saves; the floor is the operations
of a step over the rate of its own largest matrix product, measured here too. On a GPU the model is of the published
sizes.

Shapes: S seeds, K steps, B sequences of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.subject import Request
from bench.timing import Timed, alternate

if TYPE_CHECKING:
    from collections.abc import Callable

    from longeval.studies.posgen.cells import ModelConfig
    from longeval.studies.posgen.request import Precision

NUM_SEEDS = 5
BATCH_SIZE = 128
LENGTH = 64
NUM_STEPS = {"cpu": 2, "cuda": 100}
"""Steps of all stacked seeds in one timing; a seed alone makes NUM_SEEDS times as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacking:
    """One seed alone first, NUM_SEEDS stacked second."""

    precision: Precision
    model: str
    """Sizes: layers × d_model."""
    batch_size: int
    num_seeds: int
    num_steps: int
    """Steps of all stacked seeds; the seed alone makes num_seeds times as many."""
    timed: Timed
    flops: float
    """Operations of one seed's step."""
    rate: float
    """Operations per second of the stack's largest matrix product."""
    alone_rate: float
    """The same with one seed."""

    def steps_per_s(self, side: int) -> float | None:
        """Optimiser steps per second, alone (0) or of all seeds together (1)."""
        median_s = self.timed[side].median_s
        num_steps = self.num_steps * (1 if side else self.num_seeds)
        return None if median_s is None else num_steps / median_s

    def of_floor(self, side: int) -> float | None:
        """Operations per second over what the matrix product reaches: 1 would be the floor itself."""
        steps_per_s = self.steps_per_s(side)
        if steps_per_s is None:
            return None
        return steps_per_s * self.flops * (self.num_seeds / self.rate if side else 1 / self.alone_rate)


def measure_stacking(request: Request, config: ModelConfig | None = None) -> list[Stacking]:
    """Measures in float32, and in TF32 where there is a GPU."""
    kind = "cpu" if request.device == "cpu" else "cuda"
    precisions: tuple[Precision, ...] = ("float32", "tf32") if request.device.startswith("cuda") else ("float32",)
    sizes = config or default_config(request.device)
    return [_measure(request, sizes, precision, NUM_STEPS[kind]) for precision in precisions]


def default_config(device: str) -> ModelConfig:
    """The published sizes; on a CPU, where their steps take seconds, those of the smoke preset."""
    from longeval.studies.posgen.cells import ModelConfig

    return ModelConfig(d_model=128, d_ff=512, heads=2) if device == "cpu" else ModelConfig()


def _measure(request: Request, config: ModelConfig, precision: Precision, num_steps: int) -> Stacking:
    """One row."""
    from longeval.studies.posgen.estimate import matmul_rate, train_flops

    alone = stepping(config, 1, precision, request.device)
    stacked = stepping(config, NUM_SEEDS, precision, request.device)
    timed = alternate(
        lambda: alone(num_steps * NUM_SEEDS), lambda: stacked(num_steps), repeats=request.repeats, warm_up=True
    )
    rates = [
        matmul_rate(config, num_seeds, BATCH_SIZE * LENGTH, precision, request.device) for num_seeds in (1, NUM_SEEDS)
    ]
    return Stacking(
        precision=precision,
        model=f"{config.layers}×{config.d_model}",
        batch_size=BATCH_SIZE,
        num_seeds=NUM_SEEDS,
        num_steps=num_steps,
        timed=timed,
        flops=BATCH_SIZE * train_flops(config, LENGTH),
        rate=rates[1],
        alone_rate=rates[0],
    )


def stepping(
    config: ModelConfig, num_seeds: int, precision: Precision, device: str, *, graph: bool = True
) -> Callable[[int], float]:
    """A training of some seeds, as a function that makes so many steps, waits for them, and returns the mean loss.

    Without `graph`, no CUDA graph is captured on a GPU.
    """
    import numpy as np
    import torch

    from longeval.rope.base import Geometry
    from longeval.rope.build import build_table
    from longeval.studies.posgen.data import DataSetting, generate
    from longeval.studies.posgen.model import cos_sin, matmul_precision
    from longeval.studies.posgen.state import initial_state
    from longeval.studies.posgen.train import Rate, Stepper

    sizes = DataSetting(
        task="cot", modulus=config.modulus, length=LENGTH, num_train=BATCH_SIZE, num_valid=0, num_test=0
    )
    state = initial_state(config, range(num_seeds), device)
    geometry = Geometry(head_dim=config.head_dim, theta=config.theta, native_length=LENGTH)
    stepper = Stepper(
        state,
        tokens_SNT=torch.from_numpy(np.stack([generate(sizes).train_NT] * num_seeds)).to(device),
        table=cos_sin(build_table("none", geometry), LENGTH - 1, device),
        first_predicted=sizes.start_length,
        batch_size=BATCH_SIZE,
        weight_decay=0.01,
        precision=precision,
    )
    if not graph:
        stepper._capturable = False  # only a measurement wants this

    def make(num_steps: int) -> float:
        batches_SKB = np.tile(np.arange(BATCH_SIZE), (num_seeds, num_steps, 1))
        rates = [Rate(1e-3, 0.9)] * num_steps
        with matmul_precision(precision):
            for step, buffer in enumerate(stepper.buffers(batches_SKB, [BATCH_SIZE] * num_steps, rates, 0)):
                stepper.step(buffer, step)
        return float(stepper.loss_S.mean())  # waits for a GPU

    return make
