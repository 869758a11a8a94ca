"""A study whose units of work only sleep for a known time: what executors add to them can be measured.

`bench.scale` puts this folder among the studies. It needs no model and imports no torch.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from longeval.request import StudyRequest, setting
from longeval.request.setting import Declare
from longeval.rope.build import parse_method_name
from longeval.run.cell import Cell, cell_id
from longeval.run.host import Host
from longeval.run.study import Outcome, Plan
from longeval.store.artefact import ARTEFACTS, Artefact
from longeval.store.records import Record, provenance

SLEEPS: Artefact[list[float]] = Artefact(
    folder="sleeps",
    suffix="json",
    encode=lambda found: json.dumps(found).encode(),
    decode=json.loads,
    check=lambda found, records: None,
    other=lambda found, record: found[1] - found[0],
)
"""When a unit began and ended, in seconds since 1970."""
ARTEFACTS.register(SLEEPS.folder, SLEEPS)

_METHOD = parse_method_name("none")


class SleepsRequest(StudyRequest, frozen=True):
    """Units of work that sleep. Their times are log-normal."""

    command: ClassVar[str] = "sleeps"

    units: Annotated[int, Declare(setting.count(), "Number of units.")]
    models: Annotated[int, Declare(setting.count(), "Number of models that they need, in turn.")] = 1
    median: Annotated[float, Declare(setting.number(), "Median seconds of a unit; 0: none of them sleeps.")] = 0.0
    spread: Annotated[float, Declare(setting.number(), "Standard deviation of the logarithm of the seconds.")] = 1.0
    load: Annotated[float, Declare(setting.number(), "Seconds that a worker needs for a model that it hasn't.")] = 0.0
    seed: Annotated[int, Declare(setting.count(least=0), "Seed of the times.")] = 0

    @property
    def seconds(self) -> list[float]:
        """Seconds of each unit."""
        random_ = random.Random(self.seed)
        return [self.median * random_.lognormvariate(0.0, self.spread) for _ in range(self.units)]


class SleepCell(Cell):
    """One unit."""

    artefact: ClassVar[Artefact[list[float]] | None] = SLEEPS


class Held:
    """The model that a worker holds."""

    model = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SleepWork:
    """Sleeps."""

    cells: tuple[SleepCell, ...]
    seconds: float
    load: float

    def costs(self, host: Host) -> Sequence[float]:
        return (self.seconds,)

    def run(self, host: Host) -> Iterator[Outcome]:
        (cell,) = self.cells
        began, held = time.time(), host.kept(Held)
        if held.model != cell.model:
            time.sleep(self.load)
            held.model = cell.model
        time.sleep(self.seconds)
        found = [began, time.time()]
        record = Record(
            **cell.fields(), metric=cell.metric, value=found[1] - found[0], status="ok", provenance=provenance("none")
        )
        yield Outcome(records=(record,), found=found, artefact=SLEEPS)

    def without(self, ids: Container[str]) -> SleepWork | None:
        return None if self.cells[0].id in ids else self

    def smaller(self) -> None:
        return None

    def no_memory(self, reason: str) -> str:
        return reason

    def memory(self, host: Host) -> None:
        return None


class SleepsStudy:
    """What an executor and a worker need of a study."""

    name = "sleeps"
    Request = SleepsRequest

    def plan(self, request: SleepsRequest, tell: object, *, dry_run: bool = False) -> Plan:
        common = {
            "pe": _METHOD,
            "factor": None,
            "length": 1,
            "backend": "none",
            "dtype": "none",
            "metric": "seconds",
        }
        cells = []
        for number in range(request.units):
            params = {"number": number}
            model = f"model-{number % request.models}"
            cells.append(
                SleepCell(id=cell_id("sleeps", {"model": model}, params), model=model, params=params, **common)
            )
        work = tuple(
            SleepWork(cells=(cell,), seconds=seconds, load=request.load)
            for cell, seconds in zip(cells, request.seconds, strict=True)
        )
        return Plan(request=request, cells=tuple(cells), work=work, notes=())


STUDY = SleepsStudy()
