"""PosGen's cells, the trainings that they are made from, and stacks: trainings that differ in their seed alone.

A stack trains as one model with a leading axis of seeds. Where seeds train one after another, each is a stack by
itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.run.cell import Cell
from longeval.store.records import Record, Status
from longeval.studies.posgen.data import DataSetting
from longeval.studies.posgen.request import PosGenRequest, Regime

# The settings of a PosGen model and of its training.
#
# Nothing is checked here: a `PosGenRequest` has checked the values before they get here. Source of the defaults: Wang
# et al. 2024 (arXiv 2403.00071), sections 5, 6.1 and C.1.

Precision = Literal["float32", "tf32", "bf16"]
"""Precision of matrix products: float32 as IEEE has it, TF32 or bfloat16. Weights are float32 in all of them."""

ALGORITHM = 1
"""A part of every training's id. Raise it when a change of the code gives other weights for the same request (rounding
aside): in how data, initial weights, orders or dropout are drawn, in the model, the loss, the schedule or AdamW. Stored
weights and checkpoints of the earlier code are then not used, but trained again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The sizes of the PosGen model, and the choices that the paper leaves open."""

    modulus: int = 17
    """m: tokens are 0 … m−1."""
    layers: int = 2
    """Number of decoder layers."""
    d_model: int = 512
    """Width of the residual stream."""
    d_ff: int = 2048
    """Width of the feed-forward layers."""
    heads: int = 8
    """Number of attention heads."""
    head_dim: int = 64
    """Rotary dimensions of a head."""
    theta: float = 10000.0
    """RoPE's base b. It decides the frequency table, which is computed outside the model."""
    tied: bool = True
    """Whether the output layer is the embedding; with `t5` it reads hidden states times d_model^−0.5 then, as in T5."""
    attention_scale: bool = False
    """Whether attention logits are divided by √head_dim; T5 puts that into the queries' initialisation instead."""
    init: Literal["t5", "normal"] = "t5"
    """`t5`: normal with T5's standard deviations (embedding 1, matrices 1/√inputs, queries as attention_scale needs);
    `normal`: 0.02 everywhere."""
    start_token: bool = False
    """Whether a token with id m stands in front of every sequence, which shifts positions by one."""
    dropout: float = 0.0
    """Dropout while training: of embeddings, of each part's output, inside the feed-forward layer and before the output
    layer; not of attention weights."""
    frozen_mlp: bool = False
    """Whether the feed-forward layers, norms included, stay as initialised."""

    @property
    def vocabulary(self) -> int:
        """V: m, and the start token where there is one."""
        return self.modulus + int(self.start_token)

    @property
    def width(self) -> int:
        """Heads × head_dim."""
        return self.heads * self.head_dim

    @property
    def offset(self) -> int:
        """The first token that is predicted: 1, or 0 with a start token; logits at row i are of token i + offset."""
        return 1 - int(self.start_token)

    def num_positions(self, length: int) -> int:
        """Positions that the model reads to predict sequences of `length` tokens: all tokens but the last."""
        return length - self.offset

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name, without the seeds' axis, in the order in which they are drawn."""
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, self.d_model)}
        for layer in range(self.layers):
            shapes |= {
                f"{layer}.attention.norm": (self.d_model,),
                f"{layer}.attention.qkv": (self.d_model, 3 * self.width),
                f"{layer}.attention.out": (self.width, self.d_model),
                f"{layer}.mlp.norm": (self.d_model,),
                f"{layer}.mlp.in": (self.d_model, self.d_ff),
                f"{layer}.mlp.out": (self.d_ff, self.d_model),
            }
        shapes["norm"] = (self.d_model,)
        if not self.tied:
            shapes["head"] = (self.d_model, self.vocabulary)
        return shapes

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the weights that training changes."""
        return tuple(name for name in self.shapes if not (self.frozen_mlp and ".mlp." in name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSetting:
    """How to train. The defaults are the paper's."""

    epochs: int = 150
    """Times that every sequence is seen."""
    batch_size: int = 128
    """Sequences of one step."""
    lr: float = 2e-4
    """The largest learning rate."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises."""
    precision: Precision = "float32"
    """Precision of the matrix products."""
    validate_every: int = 2
    """Epochs from one validation to the next; there is one after the last epoch in any case."""
    checkpoint_every: int = 5
    """Epochs from one checkpoint to the next."""


PREFIX = "posgen_"
"""In front of a rule's name, it is what records and reports call the data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What all trainings of a request share."""

    request: PosGenRequest
    config: ModelConfig
    setting: TrainSetting
    device: str
    """As `resolve_device` returns it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training run of one seed."""

    id: str
    """A digest of everything that decides its weights."""
    seed: int
    data: DataSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenCell(Cell):
    """One (task, method, regime, seed)."""

    told_apart_by: ClassVar[tuple[str, ...]] = ("regime", "seed")

    training: Training
    regime: Regime

    def without_value(self, status: Status, reason: str, device: str) -> Record:
        """The record of a cell that failed: of its main metric, which has a protocol of its own."""
        return dataclasses.replace(Cell.without_value(self, status, reason, device), protocol="teacher_forced")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One method and regime on the weights of a stack."""

    pe: MethodName
    regime: Regime
    table: RopeTable
    """The table that is on in evaluation."""
    name: str
    """What validation losses with this table are stored under: the method, and the table's digest."""
    cells: tuple[PosGenCell, ...]
    """One a seed."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The cells' seeds."""
        return tuple(cell.training.seed for cell in self.cells)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Trainings that differ in their seed alone, and all cells that are made from them."""

    task: str
    trained_with: tuple[MethodName, ...]
    """Methods that have this table while training."""
    table: RopeTable
    """The table while training."""
    trainings: tuple[Training, ...]
    """One a seed."""
    evaluations: tuple[Evaluation, ...]

    @property
    def cells(self) -> Iterator[PosGenCell]:
        """All cells."""
        return (cell for evaluation in self.evaluations for cell in evaluation.cells)

    @property
    def tables(self) -> dict[str, RopeTable]:
        """What to validate with, by name; regimes share the table of a method."""
        return {evaluation.name: evaluation.table for evaluation in self.evaluations}

    def only(self, cells: Container[str]) -> Stack:
        """The same with some of its cells, named by their ids, and the trainings that these need."""
        evaluations = []
        for one in self.evaluations:
            kept = tuple(cell for cell in one.cells if cell.id in cells)
            if kept:
                evaluations.append(dataclasses.replace(one, cells=kept))
        needed = {cell.training.id for one in evaluations for cell in one.cells}
        trainings = tuple(training for training in self.trainings if training.id in needed)
        return dataclasses.replace(self, trainings=trainings, evaluations=tuple(evaluations))

    def by_seed(self) -> Iterator[Stack]:
        """One stack a seed."""
        for training in self.trainings:
            yield self.only({cell.id for cell in self.cells if cell.training.id == training.id})

    def alike(self) -> list[list[Evaluation]]:
        """Evaluations together that differ in their regime's name alone."""
        groups: dict[tuple[str, tuple[int, ...]], list[Evaluation]] = {}
        for evaluation in self.evaluations:
            groups.setdefault((evaluation.name, evaluation.seeds), []).append(evaluation)
        return list(groups.values())

    @property
    def title(self) -> str:
        """`cot, trained with none`."""
        return f"{self.task}, trained with {', '.join(name.canonical for name in self.trained_with)}"
