"""Cells, their stable ids, and groups of cells that share forward passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longeval.data.selection import Selection
from longeval.data.sources import Source
from longeval.request import PplRequest
from longeval.rope.base import RopeTable
from longeval.rope.build import MethodName
from longeval.run.cell import cell_id
from longeval.run.setups import Setup, dtype_of, setups
from longeval.run.window import Window
from longeval.store.plan import PlannedCell
from longeval.studies.ppl.protocols import Protocol

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

DEFAULT_STRIDE = 256
"""Tokens between windows where nothing else is asked for, as in YaRN's and LongLoRA's runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A data set as one model sees it."""

    source: Source
    selection: Selection
    min_tokens: int
    """Documents below it were skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One (model, method, length, data, protocol): the unit of work, storage and resume."""

    id: str
    model: str
    pe: MethodName
    factor: float | None
    """None for methods that don't use it."""
    length: int
    data: str
    protocol: str
    backend: str
    """What runs it."""
    dtype: str
    """The precision, as far as it is known."""
    params: dict[str, Any]
    """Everything else that decides the value, as the record shows it."""
    windows: tuple[Window, ...]
    """What is scored, in order; empty where no document is long enough."""
    skipped: int
    """Documents that were looked at and left out because they are too short."""
    truncated: int
    """Documents of which tokens after the last scored one are left out."""

    def planned(self) -> PlannedCell:
        """The cell as the run folder's plan keeps it."""
        return PlannedCell(
            cell=self.id,
            model=self.model,
            pe=self.pe.canonical,
            factor=self.factor,
            length=self.length,
            data=self.data,
            task=None,
            protocol=self.protocol,
            backend=self.backend,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells of one model and data set that the same forward passes serve: equal tables, and nested or equal windows."""

    cells: tuple[Cell, ...]
    """Ascending in length (all of one length unless the protocol's windows are nested)."""
    table: Callable[[int], RopeTable]
    """Window length → table."""
    static: bool
    """Whether that is the same table for every window of the group."""

    def passes(self) -> list[Window]:
        """The windows to run: for each, every cell's window of the same document and start is a beginning of it."""
        longest: dict[tuple[int, int], Window] = {}
        for cell in self.cells:
            for window in cell.windows:
                key = (window.document, window.start)
                if key not in longest or window.stop > longest[key].stop:
                    longest[key] = window
        return list(longest.values())


def stride_of(spec: PplRequest) -> int:
    """Tokens between windows, as asked or 256."""
    return DEFAULT_STRIDE if spec.stride is None else spec.stride


def build_groups(
    spec: PplRequest, protocol: Protocol, model: PreparedModel, corpus: Corpus, names: Sequence[MethodName]
) -> tuple[Group, ...]:
    """All cells of one model and data set, cells with the same passes together."""
    groups: list[Group] = []
    for setup in setups(spec, model, names):
        cell = _cell(spec, protocol, model, corpus, setup)
        _add(groups, Group(cells=(cell,), table=setup.table, static=setup.static), protocol)
    return tuple(groups)


def _add(groups: list[Group], new: Group, protocol: Protocol) -> None:
    """Puts a one-cell group into the first group that can serve it, or at the end."""
    length = new.cells[0].length
    for index, group in enumerate(groups):
        same_lengths = group.cells[0].length == length
        if not (new.static and group.static and (protocol.nested or same_lengths)):
            continue
        if group.table(length).same_as(new.table(length)):
            cells = sorted((*group.cells, *new.cells), key=lambda cell: cell.length)
            groups[index] = dataclasses.replace(group, cells=tuple(cells))
            return
    groups.append(new)


def _cell(spec: PplRequest, protocol: Protocol, model: PreparedModel, corpus: Corpus, setup: Setup) -> Cell:
    lengths = corpus.selection.lengths
    windows = tuple(protocol.windows(lengths, setup.length, stride_of(spec), len(model.prefix)))
    scored = len({window.document for window in windows})
    too_short = 0 if protocol.joined or not windows else len(lengths) - scored
    skipped = corpus.selection.skipped + (too_short if windows else len(lengths))
    params = setup.params | {
        "stride": stride_of(spec) if protocol.strided else None,
        "min_tokens": corpus.min_tokens,
        "data_digest": corpus.selection.digest,
        "data_origin": corpus.source.origin,
    }
    decides = {
        "model": model.name,
        "pe": setup.pe.canonical,
        "factor": setup.factor,
        "length": setup.length,
        "data": corpus.source.name,
        "protocol": protocol.name,
        "backend": spec.backend,
        "dtype": dtype_of(spec, model),
        "skipped": skipped,
    }
    return Cell(
        id=cell_id("ppl", decides, params),
        model=model.name,
        pe=setup.pe,
        factor=setup.factor,
        length=setup.length,
        data=corpus.source.name,
        protocol=protocol.name,
        backend=spec.backend,
        dtype=dtype_of(spec, model),
        params=params,
        windows=windows,
        skipped=skipped,
        truncated=_truncated(protocol, lengths, windows),
    )


def _truncated(protocol: Protocol, lengths: Sequence[int], windows: Sequence[Window]) -> int:
    """Documents of which tokens after the last scored one are left out."""
    if not windows:
        return 0
    if protocol.joined:
        last = max(window.stop for window in windows)
        return int(np.sum(np.cumsum(lengths) > last))
    ends: dict[int, int] = {}
    for window in windows:
        ends[window.document] = max(window.stop, ends.get(window.document, 0))
    return sum(end < lengths[document] for document, end in ends.items())
