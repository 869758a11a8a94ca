"""The interface between the engine and studies.

A study turns a request into a plan, which consists of cells and of work that computes them. The engine runs the work
and stores the outcomes; it knows nothing else about a study. A study is a package in `longeval/studies` with a `STUDY`.
"""

from __future__ import annotations

import dataclasses
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
    """The outcome of a cell, which is stored."""

    records: tuple[Record, ...]
    """One record for each metric."""
    found: Any = None
    """The artefact (token NLLs, samples, curves); None for a cell that failed."""
    artefact: Artefact[Any] | None = None
    """The kind of artefact; None: the one that `artefact_of` gives for the records."""
    error: BackendError | None = None
    """The error if the model can't be run at all. It ends a run without results; later it only fails the cell."""

    @property
    def cell(self) -> str:
        """The cell's id."""
        return self.records[0].cell


class Work(Protocol):
    """Cells that are computed together because they share passes or a training. An executor gives it to one worker."""

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells that it computes."""
        ...

    def costs(self, host: Host) -> Sequence[float]:
        """The operations of each remaining pass; `run` reports the same number of passes to the host's progress."""
        ...

    def run(self, host: Host) -> Iterator[Outcome]:
        """Computes the cells and yields their outcomes, each once.

        Raises:
            OutOfMemoryError: The device has not enough memory. A MemoryError means the same.
            BackendError: The model can't be run with these settings at all.
        """
        ...

    def without(self, ids: Container[str]) -> Work | None:
        """The same work without some cells; None if no cells are left."""
        ...

    def smaller(self) -> Work | None:
        """A part of the work that may fit into memory after the whole didn't; None if there is none."""
        ...

    def no_memory(self, reason: str) -> str:
        """The error text in the records of cells that didn't fit into the device's memory."""
        ...

    def memory(self, host: Host) -> int | None:
        """Estimated bytes of memory of the device that computes it; None where that isn't known."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedWork:
    """Cells that are skipped for a reason. They are last in a plan, so a model that can't be loaded stores none."""

    cells: tuple[Cell, ...]
    reason: str

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`. There are no passes."""
        return ()

    def run(self, host: Host) -> Iterator[Outcome]:
        """Yields a record with the reason for each cell."""
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

    def memory(self, host: Host) -> int:
        """See `Work`."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked request with its cells and work. Studies have subclasses with more fields."""

    request: Any
    """The request, completed by planning (such as with the name of the model at a server)."""
    cells: tuple[Cell, ...]
    """The cells in the order of the request."""
    work: tuple[Work, ...]
    """The work in the order of execution. It has every cell once."""
    notes: tuple[str, ...]
    """Notes for the user before the run starts."""
    parent: Plan | None = None
    """The plan that this one belongs to (`before`, `after`): the run folder's spec.yaml states the request of that."""

    def planned(self) -> PlannedRequest:
        """The cells in the form of plan.json."""
        cells = tuple(cell.planned() for cell in self.cells)
        return PlannedRequest(command=self.request.command, digest=self.request.digest(), cells=cells)

    def left(self, stored: Container[str]) -> list[Work]:
        """The work without the stored cells."""
        return [left for work in self.work if (left := work.without(stored)) is not None]

    def derived(self, records: Mapping[str, Sequence[Record]], store: Store) -> Iterator[Outcome]:
        """Outcomes that are derived from the records of the cells (by cell id) and from what the store holds of them.

        Examples are averages of groups.
        """
        yield from ()

    def clear(self, store: Store, busy: Container[str]) -> None:
        """Removes files of an earlier run that `--fresh` must not use. Called before the first file is written.

        Args:
            store: The run folder.
            busy: Ids of cells that another command computes now; their files stay.
        """

    def keep(self, store: Store) -> None:
        """Writes what cells of the run folder share, such as texts. Called before the first cell is stored."""

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """The content of a dry run: the cells, and the cost of the remaining work."""
        raise NotImplementedError

    def examples(self, number: int, store: Store) -> Iterator[ShownInputs]:
        """The first inputs of each model and length, with the answers that the run folder has: what `--show` prints."""
        raise NotImplementedError

    def stored_notes(self, store: Store, stored: Container[str]) -> list[str]:
        """What a user should know of cells that are stored already and stay as they are."""
        return []

    def stored(self, store: Store, ids: Sequence[str] | None = None) -> dict[str, tuple[Record, ...]]:
        """Records of those of some cells that are finished, by cell id; `ids` None: of all."""
        return store.finished_among([cell.id for cell in self.cells] if ids is None else ids)

    def check_folder(self, store: Store) -> None:
        """Raises LongEvalError if the run folder holds files that this plan would have to overwrite."""

    def before(self) -> Sequence[StudyRequest]:
        """Requests of other studies to carry out first, in the same run folder: what this plan is compared with."""
        return ()

    def after(self, store: Store) -> Sequence[StudyRequest]:
        """Requests of other studies to carry out at the end, on what this plan has made; planned only then."""
        return ()


class Tell(Protocol):
    """Receives the progress of planning."""

    def note(self, text: str) -> None:
        """Called with a note that the user should read immediately, such as before a download."""
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
    """The command that makes a report of its records, such as `longeval report`."""
    sums_up: tuple[str, ...]
    """Other studies whose records its summary shows too: those that its plans add with `Plan.before` and `after`."""

    def check(self, requests: Sequence[Any], store: Store) -> None:
        """Raises LongEvalError if a run folder can't hold the requests together with each other and its content."""
        ...

    def plan(self, request: Any, tell: Tell, *, dry_run: bool = False) -> Plan:
        """Checks a request and makes its plan. With `dry_run`, no code of models and of users' task files runs.

        Raises:
            LongEvalError: Anything in the request is wrong.
        """
        ...

    def summary(self, records: Sequence[Record], width: int) -> Sequence[Table]:
        """Tables of the records for a terminal with `width` columns."""
        ...

    def report(self) -> StudyReport:
        """The study's part of a report."""
        ...


def study_names() -> tuple[str, ...]:
    """The names of all studies: the folders in longeval/studies."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(studies.__path__)))


def find_study(name: str) -> Study:
    """The study of a command."""
    study: Study = importlib.import_module(f"longeval.studies.{name}").STUDY
    return study


def plan_all(requests: Sequence[StudyRequest], tell: Tell, *, dry_run: bool = False) -> list[Plan]:
    """The plans of requests, each behind those of the requests that come before it (`Plan.before`).

    Raises:
        LongEvalError: Anything in any of them is wrong.
    """
    plans = []
    for request in requests:
        plan = find_study(request.command).plan(request, tell, dry_run=dry_run)
        earlier = plan_all(plan.before(), tell, dry_run=dry_run)
        plans += [*(dataclasses.replace(one, parent=plan) for one in earlier), plan]
    return plans


def plan_after(plan: Plan, store: Store, tell: Tell) -> list[Plan]:
    """The plans of the requests that come after a plan whose work is done.

    They have no notes: those on data were told with the requests before, and those on models say what the plan made.
    """
    return [dataclasses.replace(one, parent=plan, notes=()) for one in plan_all(plan.after(store), tell)]


def request_from_mapping(plain: Mapping[str, Any], *, origin: str) -> StudyRequest:
    """Makes a request from a YAML mapping, by default of `ppl`. Spellings of flags (`text-field`) are accepted too.

    Raises:
        LongEvalError: The study is unknown, or a value is refused; the message names the file `origin`.
    """
    command = str(plain.get("command", "ppl"))
    if command not in study_names():
        raise LongEvalError(f"{origin}: command {command}: unknown", f"Known: {', '.join(study_names())}.")
    return find_study(command).Request.read(plain, origin)


def failed(cell: Cell, reason: str, device: str, error: BackendError | None = None) -> Outcome:
    """The outcome of a cell that failed."""
    return Outcome(records=(cell.without_value("failed", reason, device),), artefact=cell.artefact, error=error)
