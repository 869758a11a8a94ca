"""RoPE tables as the PosGen model reads them: the same float32 rows that every other part of longeval serves.

`RopeTable.cos_sin` makes them (float64 angles, exact periodicity where wavelengths were rounded, the attention factor
in both), as it does for the rotary modules of `backends`. A method that depends on length is asked, by whoever builds
the table, for that of the window's own length.

Shapes: T positions, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from longeval.rope.base import CosSin, RopeTable, table_digest


class TorchTable(NamedTuple):
    """Rows of a table, float32, (T, F) each, attention factor included."""

    cos_TF: torch.Tensor
    sin_TF: torch.Tensor


def cos_sin(table: RopeTable, num_positions: int, device: str | torch.device = "cpu") -> TorchTable:
    """The rows 0 … num_positions−1 of a table on a device."""
    rows = table.cos_sin(np.arange(num_positions, dtype=np.int64))
    return TorchTable(*(torch.from_numpy(part_TF).to(device) for part_TF in rows))


def digest(table: RopeTable, num_positions: int) -> str:
    """SHA-256 of those rows as a record holds it (`rope_digest`): of what the model reads, brought back from torch."""
    return table_digest(CosSin(*(part_TF.numpy() for part_TF in cos_sin(table, num_positions))))
