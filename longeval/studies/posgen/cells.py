"""PosGen's cells, the trainings that they are made from, and stacks: trainings that differ in their seed alone.

A stack trains as one model with a leading axis of seeds. Where seeds train one after another, each is a stack by
itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import ClassVar

from longeval.request import PosGenRequest, Regime
from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.run.cell import Cell
from longeval.store.records import Record, Status
from longeval.studies.posgen.config import ModelConfig, TrainSetting
from longeval.studies.posgen.data import DataSetting

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
