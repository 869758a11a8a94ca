"""PosGen's cells, their trainings, and the configuration of the trained models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.run.cell import Cell
from longeval.store.records import Record, Status
from longeval.studies.posgen.data import DataSetting
from longeval.studies.posgen.request import Init, PosGenRequest, Regime

ALGORITHM = 1
"""A part of every training's id. Raise it when a change of the code gives other weights for the same request (rounding
aside): in how data, initial weights, orders or dropout are drawn, in the model, the loss, the schedule or AdamW. Stored
weights and checkpoints of the earlier code are not used then; those models are trained again."""

PREFIX = "posgen_"
"""Prefix of a rule's name that gives the data set's name in records and reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the PosGen model and choices that the paper leaves open; all are settings of `PosGenRequest`."""

    modulus: int = 17
    """m: tokens are 0 … m−1."""
    layers: int = 2
    d_model: int = 512
    """Width of the residual stream."""
    d_ff: int = 2048
    """Width of the feed-forward layers."""
    heads: int = 8
    head_dim: int = 64
    """Dimensions of a head, all rotated."""
    theta: float = 10000.0
    """RoPE's base b. The frequency table is computed from it outside the model."""
    tied: bool = True
    """Whether the output layer shares the embedding's weights. With `t5`, hidden states are then multiplied by
    d_model^−0.5, as in T5."""
    attention_scale: bool = False
    """Whether attention logits are divided by √head_dim. T5 scales the queries' initialisation instead."""
    init: Init = "t5"
    """`t5`: normal with T5's standard deviations (embedding 1, matrices 1/√inputs, and queries further divided by
    √head_dim without attention_scale); `normal`: standard deviation 0.02 for all."""
    start_token: bool = False
    """Whether every sequence begins with a token of id m, which shifts positions by one."""
    dropout: float = 0.0
    """Dropout rate in training, applied to embeddings, to the outputs of attention and feed-forward layers, inside the
    feed-forward layers and before the output layer; not to attention weights."""
    frozen_mlp: bool = False
    """Whether the feed-forward layers and their norms keep their initial weights."""

    @property
    def vocabulary(self) -> int:
        """V: m, plus 1 with a start token."""
        return self.modulus + int(self.start_token)

    @property
    def width(self) -> int:
        """Heads × head_dim."""
        return self.heads * self.head_dim

    @property
    def offset(self) -> int:
        """Index of the first predicted token: 1, or 0 with a start token. Row i of logits is for token i + offset."""
        return 1 - int(self.start_token)

    def num_positions(self, length: int) -> int:
        """Number of positions that the model reads for sequences of `length` tokens: all tokens except the last."""
        return length - self.offset

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name, in the order in which they are drawn; matrices are (inputs, outputs)."""
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
        """Names of the trained weights."""
        return tuple(name for name in self.shapes if not (self.frozen_mlp and ".mlp." in name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The settings that all trainings of a request share."""

    request: PosGenRequest
    config: ModelConfig
    device: str
    """A value of `resolve_device`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training run with one seed."""

    id: str
    """A digest of everything that determines its weights."""
    seed: int
    data: DataSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenCell(Cell):
    """The cell of one task, method, regime and seed."""

    told_apart_by: ClassVar[tuple[str, ...]] = ("regime", "seed")

    training: Training
    regime: Regime

    def without_value(self, status: Status, reason: str, device: str) -> Record:
        """See `Cell`. The main metric has the protocol `teacher_forced`."""
        return dataclasses.replace(Cell.without_value(self, status, reason, device), protocol="teacher_forced")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One method in one regime on the weights of one training."""

    pe: MethodName
    regime: Regime
    table: RopeTable
    """The table in evaluation."""
    name: str
    """What validation losses with this table are stored under: the method, and the table's digest."""
    cell: PosGenCell
