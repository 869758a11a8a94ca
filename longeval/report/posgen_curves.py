"""Curves of a PosGen table's rows over their seeds: mean, lowest and highest value at each position or epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longeval.report.posgen_tables import PosGenRow, PosGenTable
from longeval.stats.units import FloatArray
from longeval.store.curves import Curves

Along = Literal["positions", "epochs"]

BY_POSITION = ("accuracy", "generated", "loss")
"""Curves along positions, as `Curves` names them."""

BY_EPOCH = ("valid_loss_in_distribution", "valid_loss_ood")
"""Curves along epochs."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Band:
    """A curve over seeds. K points."""

    x_K: FloatArray
    """Positions or epochs that all seeds have, ascending."""
    mean_K: FloatArray
    low_K: FloatArray
    """Lowest value of any seed."""
    high_K: FloatArray
    """Highest value of any seed."""
    seeds: int
    """How many there are."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowCurves:
    """Curves of one method on one task, one a seed."""

    row: PosGenRow
    task: str
    curves: tuple[Curves, ...]

    def band(self, name: str, *, width: int = 1, edge: int = 0) -> Band | None:
        """A curve over seeds, NaN where a seed has no number; None where there is none at all.

        Args:
            name: A field of `Curves`.
            width: So many neighbouring points of each seed become one, their mean.
            edge: None of them holds points on both sides of this one.
        """
        along: Along = "epochs" if name in BY_EPOCH else "positions"
        points = [dict(zip(getattr(one, along), getattr(one, name), strict=True)) for one in self.curves]
        if along == "epochs" and any(len(found) > 1 for found in points):
            # Weights that were trained without this table have a loss at their end only, which is no curve.
            points = [found for found in points if len(found) > 1]
        x = sorted(set.intersection(*(set(found) for found in points)))
        values_SK = np.array([[found[at] for at in x] for found in points], dtype=np.float64)
        if not values_SK.size or np.isnan(values_SK).all():
            return None
        starts = np.unique([0, *range((edge - x[0]) % width, len(x), width)])
        sizes = np.diff(np.append(starts, len(x)))
        x_K, values_SK = (
            np.add.reduceat(values, starts, axis=-1) / sizes for values in (np.array(x, dtype=np.float64), values_SK)
        )
        return Band(
            x_K=x_K,
            mean_K=values_SK.mean(axis=0),
            low_K=values_SK.min(axis=0),
            high_K=values_SK.max(axis=0),
            seeds=len(points),
        )


def row_curves(table: PosGenTable, curves: Callable[[str], Curves | None]) -> list[RowCurves]:
    """Curves of every method and task with any, task by task.

    Args:
        table: The table.
        curves: Cell id to its curves.
    """
    found = []
    for task in table.tasks:
        for row in table.rows:
            cells = row.runs[task].cells.values() if task in row.runs else ()
            first = [next(iter(records.values())) for records in cells]
            ids = [record.cell for record in first if record.status == "ok"]
            read = tuple(one for one in map(curves, ids) if one is not None)
            if read:
                found.append(RowCurves(row=row, task=task, curves=read))
    return found


def of_task(curves: Sequence[RowCurves], task: str) -> list[RowCurves]:
    """Those of one task."""
    return [one for one in curves if one.task == task]
