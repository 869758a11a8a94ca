"""PosGen: optimiser steps per second of one seed, with and without a CUDA graph, beside what the hardware would allow.

The floor is the time of a step whose operations ran at the rate of its own largest matrix product, which is measured
here too. On a GPU the model is of the published sizes.

Shapes: K steps, B sequences of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.timing import Side, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longeval.studies.posgen.cells import ModelConfig
    from longeval.studies.posgen.request import Precision

BATCH_SIZE = 128
LENGTH = 64
NUM_STEPS = {"cpu": 10, "cuda": 200}
"""Steps in one timing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepping:
    """Training steps of one seed."""

    precision: Precision
    graph: bool
    """Whether a captured CUDA graph is replayed; never on a CPU."""
    model: str
    """Sizes: layers × d_model."""
    batch_size: int
    num_steps: int
    """Steps in one timing."""
    side: Side
    """Wall times of `num_steps` steps."""
    flops: float
    """Operations of a step."""
    rate: float
    """Operations per second of a step's largest matrix product."""

    @property
    def steps_per_s(self) -> float | None:
        """Optimiser steps per second; None if memory ran out."""
        return None if self.side.median_s is None else self.num_steps / self.side.median_s

    @property
    def of_floor(self) -> float | None:
        """Operations per second over what the matrix product reaches: 1 would be the floor itself."""
        return None if self.steps_per_s is None else self.steps_per_s * self.flops / self.rate


def measure_stepping(device: str, repeats: int, config: ModelConfig | None = None) -> Iterator[Stepping]:
    """Measures in float32; on a GPU in TF32 and bfloat16 too, each with and without a graph in turn."""
    cuda, sizes = device.startswith("cuda"), config or default_config(device)
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bf16") if cuda else ("float32",)
    for precision in precisions:
        yield from _measure(sizes, precision, device, repeats, graphs=(True, False) if cuda else (False,))


def default_config(device: str) -> ModelConfig:
    """The published sizes; on a CPU, where their steps take seconds, those of the presets for CPUs."""
    from longeval.studies.posgen.cells import ModelConfig

    return ModelConfig(d_model=128, d_ff=512, heads=2) if device == "cpu" else ModelConfig()


def _measure(
    config: ModelConfig, precision: Precision, device: str, repeats: int, *, graphs: tuple[bool, ...]
) -> list[Stepping]:
    """A row for each way to make steps."""
    from longeval.studies.posgen.estimate import matmul_rate, train_flops

    num_steps = NUM_STEPS["cuda" if device.startswith("cuda") else "cpu"]
    calls = [partial(stepping(config, precision, device, graph=graph), num_steps) for graph in graphs]
    sides = in_turn(*calls, repeats=repeats, warm_up=True)  # the warm-up captures the graph
    rate = matmul_rate(config, BATCH_SIZE * LENGTH, precision, device)
    return [
        Stepping(
            precision=precision,
            graph=graph,
            model=f"{config.layers}×{config.d_model}",
            batch_size=BATCH_SIZE,
            num_steps=num_steps,
            side=side,
            flops=BATCH_SIZE * train_flops(config, LENGTH),
            rate=rate,
        )
        for graph, side in zip(graphs, sides, strict=True)
    ]


def stepping(config: ModelConfig, precision: Precision, device: str, *, graph: bool = True) -> Callable[[int], float]:
    """A training, as a function that makes so many steps, waits for them, and returns the loss of the last.

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
    geometry = Geometry(head_dim=config.head_dim, theta=config.theta, native_length=LENGTH)
    stepper = Stepper(
        initial_state(config, 0, device),
        tokens_NT=torch.from_numpy(generate(sizes).train_NT).to(device),
        table=cos_sin(build_table("none", geometry), LENGTH - 1, device),
        first_predicted=sizes.start_length,
        batch_size=BATCH_SIZE,
        weight_decay=0.01,
        precision=precision,
    )
    if not graph:
        stepper._capturable = False  # only a measurement wants this

    def make(num_steps: int) -> float:
        batches_KB = np.tile(np.arange(BATCH_SIZE), (num_steps, 1))
        rates = [Rate(1e-3, 0.9)] * num_steps
        with matmul_precision(precision):
            for step, buffer in enumerate(stepper.buffers(batches_KB, [BATCH_SIZE] * num_steps, rates, 0)):
                stepper.step(buffer, step)
        return float(stepper.loss)  # waits for a GPU

    return make
