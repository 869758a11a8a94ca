"""The seam of a study: what the engine knows of perplexity, downstream tasks and PosGen, and of those to come.

A study turns a request into a plan: cells, and work that computes them. The engine runs the work, stores what comes
out, and knows nothing else of a study. A study is a folder of `longeval/studies`; its package has a `STUDY`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from longeval import studies
from longeval.errors import LongEvalError
from longeval.request import StudyRequest
from longeval.store.plan import PlannedRequest

if TYPE_CHECKING:  # the program's --help looks for studies, and must not import what they need
    from rich.table import Table

    from longeval.backends.base import BackendError
    from longeval.report.build import StudyReport
    from longeval.run.cell import Cell
    from longeval.run.examples import ShownInputs
    from longeval.run.host import Host
    from longeval.run.overview import Overview
    from longeval.store.artefact import Artefact
    from longeval.store.folder import Store
    from longeval.store.records import Record


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What is stored of a cell."""

    records: tuple[Record, ...]
    """One for each metric."""
    found: Any = None
    """The artefact that they are made from: token NLLs, samples, curves; None for a cell that failed."""
    artefact: Artefact[Any] | None = None
    """Its kind, where it is another one than the records tell."""
    error: BackendError | None = None
    """Why the model can't be run at all: it ends a run that has no result yet, later it fails the cell."""

    @property
    def cell(self) -> str:
        """Id of the cell."""
        return self.records[0].cell


class Work(Protocol):
    """Cells that are computed together, since they share passes or a training. An executor gives it to one worker."""

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells that it computes."""
        ...

    def costs(self, host: Host) -> Sequence[float]:
        """The operations of each pass that is left to do; `run` tells the host's progress of as many passes."""
        ...

    def run(self, host: Host) -> Iterator[Outcome]:
        """Computes the cells and yields their outcomes, each once.

        Raises:
            OutOfMemoryError: The device has no memory for it; MemoryError says the same.
            BackendError: The model can't be run at all as asked.
        """
        ...

    def without(self, ids: Container[str]) -> Work | None:
        """What is left of it without some cells; None where nothing is."""
        ...

    def smaller(self) -> Work | None:
        """What may still fit into memory where this didn't; None where nothing may."""
        ...

    def no_memory(self, reason: str) -> str:
        """What the records of cells say that were too large for the device's memory."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedWork:
    """Cells with nothing to compute, and why. Plans put it last: a model that can't be loaded leaves nothing stored."""

    cells: tuple[Cell, ...]
    reason: str

    def costs(self, host: Host) -> Sequence[float]:
        """There are none."""
        return ()

    def run(self, host: Host) -> Iterator[Outcome]:
        """A record with the reason for each cell."""
        for cell in self.cells:
            yield Outcome(records=(cell.without_value("skipped", self.reason, ""),), artefact=cell.artefact)

    def without(self, ids: Container[str]) -> SkippedWork | None:
        """See `Work`."""
        cells = tuple(cell for cell in self.cells if cell.id not in ids)
        return SkippedWork(cells=cells, reason=self.reason) if cells else None

    def smaller(self) -> None:
        """See `Work`."""

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        return reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked request: what will be computed. Studies add what only they need."""

    request: Any
    """As it was understood, with what planning found out (the name of the model at a server)."""
    cells: tuple[Cell, ...]
    """In the order in which they were asked for."""
    work: tuple[Work, ...]
    """In the order in which it is to be done; it has every cell once."""
    notes: tuple[str, ...]
    """What a user should know before it starts."""

    def planned(self) -> PlannedRequest:
        """The cells as the run folder keeps them."""
        cells = tuple(cell.planned() for cell in self.cells)
        return PlannedRequest(command=self.request.command, digest=self.request.digest(), cells=cells)

    def left(self, stored: Container[str]) -> list[Work]:
        """The work without cells that are stored."""
        return [left for work in self.work if (left := work.without(stored)) is not None]

    def derived(self, records: Mapping[str, Sequence[Record]]) -> list[Record]:
        """Records that follow from those of the cells (by cell id), such as averages of groups."""
        return []

    def clear(self, store: Store) -> None:
        """Removes what an earlier run left and a fresh start must not go on with; called before its first file."""

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """What a dry run shows: the cells, and what the work that is left costs."""
        raise NotImplementedError

    def examples(self, number: int, store: Store) -> Iterator[ShownInputs]:
        """The first inputs of each model and length, with the answers that the run folder has: what `--show` prints."""
        raise NotImplementedError

    def stored_notes(self, store: Store, stored: Container[str]) -> list[str]:
        """What a user should know of cells that are stored already and stay as they are."""
        return []


class Tell(Protocol):
    """Hears how planning gets on."""

    def note(self, text: str) -> None:
        """What a user should know at once, before something is fetched."""
        ...

    def preparing(self, what: str, done: int = 0, total: int = 0) -> None:
        """What is being done, such as `opening NAME`; of its documents or samples, `done` of `total` (0: not known)."""
        ...


class Study(Protocol):
    """One kind of experiment and its command."""

    name: str
    """Name of the command and of the folder."""
    Request: type[StudyRequest]
    """What can be asked of it; its fields are the flags of the command."""
    tells_passes: bool
    """Whether `--verbose` prints a line for each pass."""
    report_command: str
    """The command that makes a report of its records: `longeval report`, or one of its own."""

    def check(self, requests: Sequence[Any], store: Store) -> None:
        """Raises LongEvalError where requests can't go into a run folder, with each other or with what is there."""
        ...

    def plan(self, request: Any, tell: Tell, *, dry_run: bool = False) -> Plan:
        """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it.

        With `dry_run` no code of models and of users' task files runs.
        """
        ...

    def summary(self, records: Sequence[Record], width: int) -> Sequence[Table]:
        """Tables for the terminal, which has so many columns."""
        ...

    def report(self) -> StudyReport:
        """What it says of its cells in a report."""
        ...


def study_names() -> tuple[str, ...]:
    """The names of all studies: the folders in longeval/studies."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(studies.__path__)))


def find_study(name: str) -> Study:
    """The study of a command."""
    study: Study = importlib.import_module(f"longeval.studies.{name}").STUDY
    return study


def request_from_mapping(plain: Mapping[str, Any], *, origin: str) -> StudyRequest:
    """A request from YAML; flags' spellings (`4k,8k`, `text-field`) are understood too.

    Args:
        plain: The mapping; without `command` it is a request of `ppl`.
        origin: File name for messages.

    Raises:
        LongEvalError: No such study, or a value that is refused.
    """
    command = str(plain.get("command", "ppl"))
    if command not in study_names():
        raise LongEvalError(f"{origin}: command {command}: unknown", f"Known: {', '.join(study_names())}.")
    return find_study(command).Request.read(plain, origin)


def failed(cell: Cell, reason: str, device: str, error: BackendError | None = None) -> Outcome:
    """The outcome of a cell that failed."""
    return Outcome(records=(cell.without_value("failed", reason, device),), artefact=cell.artefact, error=error)
