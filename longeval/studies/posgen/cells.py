"""PosGen's cells, the trainings that they are made from, and stacks: trainings that differ in their seed alone.

A stack trains as one model with a leading axis of seeds. Where seeds train one after another, each is a stack by
itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from longeval.request import Regime
from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.studies.posgen.data import DataSetting

PREFIX = "posgen_"
"""In front of a rule's name, it is what records and reports call the data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What gives one seed's weights."""

    id: str
    """A digest of everything that decides them."""
    seed: int
    data: DataSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenCell:
    """One (task, method, regime, seed): the unit of storage and resume."""

    id: str
    training: Training
    pe: MethodName
    regime: Regime
    factor: float | None
    """None for methods that don't use it."""
    params: dict[str, Any]
    """Everything else that decides the values, as the record shows it."""

    @property
    def data(self) -> str:
        """The data's name in records: `posgen_cot`."""
        return PREFIX + self.training.data.task


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
    """It."""
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
