"""PosGen's cells, the trainings that they are made from, and stacks of trainings that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from longeval.posgen.data import DataSetting
from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.spec import Regime

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
