"""A study whose cells take a known time and whose values are known: one unit of work for each method, or cell.

Each start of a cell is a line in the file `trace`, so that a test sees what was computed how often, in which process
and on which GPUs.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from longeval.metrics import Metric, Value, register
from longeval.report.build import StudyReport
from longeval.request import StudyRequest, setting
from longeval.request.setting import Declare
from longeval.rope.build import parse_method_name
from longeval.run.cell import Cell, cell_id
from longeval.run.study import Outcome, Plan
from longeval.store.artefact import ARTEFACTS, Artefact
from longeval.store.records import provenance

NAPS = Artefact(
    folder="naps",
    suffix="json",
    encode=lambda found: json.dumps(found).encode(),
    decode=json.loads,
    check=lambda found, records: None,
)
ARTEFACTS.register(NAPS.folder, NAPS)
DEPTH = register(
    Metric(
        name="depth",
        artefact=NAPS,
        higher_is_better=None,
        number="significant",
        definition="Length times the number of letters of the method.",
        function=lambda found, protocol, params: Value(value=found[0]),
    )
)


class NapsRequest(StudyRequest, frozen=True):
    """How deep a method sleeps."""

    command: ClassVar[str] = "naps"

    pe: Annotated[tuple[str, ...], Declare(setting.names, "Methods; comma list.", example="none,pi")]
    lengths: Annotated[
        tuple[int, ...],
        Declare(setting.lengths, "Window lengths in tokens.", example="4k,8k", write=setting.lengths_as_written),
    ]
    seconds: Annotated[float, Declare(setting.number(), "Seconds that a cell takes.")] = 0.05
    fatal: Annotated[int, Declare(setting.count(0), "Length of cells that kill their process.")] = 0
    apart: Annotated[bool, Declare(setting.switch, "A unit of work for each cell.")] = False
    trace: Annotated[str, Declare(setting.text, "File for the starts of cells.")] = "trace.txt"


class NapsCell(Cell):
    """One method at one length."""

    artefact: ClassVar[Artefact[list[float]] | None] = NAPS


@dataclass(frozen=True, kw_only=True)
class NapsWork:
    """The cells of one method."""

    cells: tuple[NapsCell, ...]
    request: NapsRequest

    def costs(self, host):
        return [float(cell.length) for cell in self.cells]

    def run(self, host):
        host.progress.stage(self.cells[0].pe.canonical, len(self.cells), "nap")
        for cell in self.cells:
            with open(self.request.trace, "a") as file:
                file.write(f"{cell.id} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES') or '-'}\n")
            time.sleep(self.request.seconds)
            if cell.length == self.request.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            if cell.length == 13:
                raise ValueError("thirteen is too many")
            host.progress.advance(cell.length, float(cell.length), "")
            depth = [float(cell.length * len(cell.pe.canonical))]
            fields = cell.fields() | {"status": "ok", "provenance": provenance("bed")}
            records = (Value(value=depth[0]).record(DEPTH.name, fields),)
            yield Outcome(records=records, found=depth, artefact=NAPS)

    def without(self, ids):
        left = tuple(cell for cell in self.cells if cell.id not in ids)
        return replace(self, cells=left) if left else None

    def smaller(self):
        return None

    def no_memory(self, reason):
        return reason

    def memory(self, host):
        return sum(cell.length for cell in self.cells) << 10


class NapsStudy:
    """The study of `longeval naps`."""

    name = "naps"
    Request = NapsRequest
    tells_passes = False
    report_command = "longeval report"
    sums_up = ()

    def check(self, requests, store):
        pass

    def plan(self, request, tell, *, dry_run=False):
        work = []
        for pe in map(parse_method_name, request.pe):
            cells = []
            for length in request.lengths:
                # Where the variable is set on one machine alone, that machine sees another request.
                params = {"seen": os.environ.get("LONGEVAL_NAPS", "")}
                fields = {"model": "bed", "pe": pe.canonical, "length": length}
                cells.append(
                    NapsCell(
                        id=cell_id("naps", fields, params), model="bed", pe=pe, factor=None, length=length,
                        backend="none", dtype="float32", params=params, metric=DEPTH.name,
                    )
                )  # fmt: skip
            units = [[cell] for cell in cells] if request.apart else [cells]
            work += [NapsWork(cells=tuple(unit), request=request) for unit in units]
        cells = tuple(cell for one in work for cell in one.cells)
        return Plan(request=request, cells=cells, work=tuple(work), notes=())

    def summary(self, records, width):
        return []

    def report(self):
        return StudyReport(subject="Naps", sections=lambda collection: [], summary=lambda records: [])


STUDY = NapsStudy()
