"""A study in one folder: how often the slowest feature of a method turns in a window. It needs no model.

`test_new_study.py` puts this folder among the studies and edits nothing else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from longeval.metrics import Metric, Value, register
from longeval.report.build import StudyReport
from longeval.report.document import Section, Table
from longeval.report.formats.terminal import terminal_table
from longeval.report.tables import build_grids, length_columns, method_rows_of, value_cell
from longeval.request import StudyRequest, setting
from longeval.request.setting import Declare
from longeval.rope.base import Geometry
from longeval.rope.build import build_table, parse_method_name
from longeval.run.cell import Cell, cell_id
from longeval.run.overview import CellList, Overview
from longeval.run.study import Outcome, Plan
from longeval.store.artefact import ARTEFACTS, Artefact
from longeval.store.records import provenance

TURNS = Artefact(
    folder="turns",
    suffix="json",
    encode=lambda found: json.dumps(found).encode(),
    decode=json.loads,
    check=lambda found, records: None,
)
ARTEFACTS.register(TURNS.folder, TURNS)
SLOWEST = register(
    Metric(
        name="slowest_turns",
        artefact=TURNS,
        higher_is_better=None,
        number="significant",
        definition="Turns of the slowest feature in the window.",
        function=lambda found, protocol, params: Value(value=min(found)),
    )
)


class TurnsRequest(StudyRequest, frozen=True):
    """How often the slowest feature of a method turns in a window."""

    command: ClassVar[str] = "turns"

    pe: Annotated[tuple[str, ...], Declare(setting.names, "Methods; comma list.", example="none,pi")]
    lengths: Annotated[
        tuple[int, ...],
        Declare(setting.lengths, "Window lengths in tokens.", example="4k,8k", write=setting.lengths_as_written),
    ]
    native: Annotated[int, Declare(setting.length(), "Native length in tokens.")] = 4096


class TurnsCell(Cell):
    """One method at one length."""

    artefact: ClassVar[Artefact[list[float]] | None] = TURNS


@dataclass(frozen=True, kw_only=True)
class TurnsWork:
    """One cell at a time."""

    cells: tuple[TurnsCell, ...]
    native: int

    def costs(self, host):
        return (1.0,)

    def run(self, host):
        (cell,) = self.cells
        geometry = Geometry(head_dim=64, theta=10000.0, native_length=self.native, factor=cell.length / self.native)
        table = build_table(cell.pe.canonical, geometry, None, cell.length)
        turns = [cell.length * float(frequency) / (2 * math.pi) for frequency in table.inv_freq_F]
        if cell.length > 2**20:
            raise ValueError("too long a window for a toy")
        host.progress.advance(cell.length, 1.0, "")
        fields = cell.fields() | {"status": "ok", "provenance": provenance("cpu")}
        value = SLOWEST.function(turns, None, {})
        yield Outcome(records=(value.record(SLOWEST.name, fields),), found=turns, artefact=TURNS)

    def without(self, ids):
        return None if self.cells[0].id in ids else self

    def smaller(self):
        return None

    def no_memory(self, reason):
        return reason

    def memory(self, host):
        return None


class TurnsPlan(Plan):
    """The cells of a request."""

    def overview(self, host, left, stored):
        rows = tuple((cell.pe.canonical, str(cell.length)) for cell in self.cells)
        return Overview(
            columns=("method", "length"),
            words=frozenset({"method"}),
            sections=(CellList(title=None, rows=rows),),
            costs=(),
        )


def tables(records):
    """One table of the study's own records."""
    grids = build_grids([record for record in records if record.metric == SLOWEST.name], SLOWEST.name)
    return [
        Table(
            title="Turns of the slowest feature",
            columns=length_columns(["method"], grid.lengths),
            rows=method_rows_of(grid.rows, grid.lengths, value_cell),
        )
        for grid in grids
    ]


def sections(collection):
    """One section with the table."""
    found = tables(collection.made_from(TURNS))
    return [Section(title="Turns", blocks=tuple(found))] if found else []


class TurnsStudy:
    """The study of `longeval turns`."""

    name = "turns"
    Request = TurnsRequest
    tells_passes = False
    report_command = "longeval report"
    sums_up = ()

    def check(self, requests, store):
        pass

    def plan(self, request, tell, *, dry_run=False):
        cells = []
        for pe in map(parse_method_name, request.pe):
            for length in request.lengths:
                params = {"native_length": request.native}
                fields = {"model": "toy", "pe": pe.canonical, "length": length}
                cells.append(
                    TurnsCell(
                        id=cell_id("turns", fields, params),
                        model="toy",
                        pe=pe,
                        factor=None,
                        length=length,
                        backend="toy",
                        dtype="float64",
                        params=params,
                        metric=SLOWEST.name,
                    )
                )
        work = tuple(TurnsWork(cells=(cell,), native=request.native) for cell in cells)
        return TurnsPlan(request=request, cells=tuple(cells), work=work, notes=())

    def summary(self, records, width):
        return [terminal_table(table, width) for table in tables(records)]

    def report(self):
        return StudyReport(subject="Turns", sections=sections, summary=tables)


STUDY = TurnsStudy()
