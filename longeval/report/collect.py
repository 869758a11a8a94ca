"""Reads run folders into one set of cells, each counted once, in the order in which they were asked for.

Several folders may hold the same cell (its id is a digest of everything that decides the result): an equal one counts
once, and where values differ the one finished last is kept and a note says so. An ok cell is kept before a failed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longeval.errors import LongEvalError
from longeval.report.asked import MAX_NAMED, ReadingOrder, planned_names, unfinished_note, written_names
from longeval.report.versions import older_cells, older_note
from longeval.store.artefact import artefact_of
from longeval.store.curves import CURVES
from longeval.store.folder import Store, StoredCell
from longeval.store.nll import TokenNll
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record
from longeval.store.samples import Sample
from longeval.values import format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """One run folder of a report."""

    path: str
    """As the user named it."""
    spec: str
    """Text of its spec.yaml; empty if it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """All cells of a report."""

    cells: tuple[StoredCell, ...]
    """Each cell once, as asked for: by model, data or task, protocol, method, length."""
    runs: tuple[RunFolder, ...]
    """The folders, in the order given."""
    notes: tuple[str, ...]
    """What the reader must know: cells found twice, older or missing; whole sentences."""
    older: frozenset[str]
    """Ids of cells that tables leave out, since newer ones differ from them in the program's version alone."""
    stores: dict[str, Store]
    """Cell id to the run folder that it was taken from."""
    planned: tuple[PlannedRequest, ...] = ()
    """The requests that were made of the folders, as far as their plans are stored."""
    read_samples: dict[str, tuple[Sample, ...] | None] = field(default_factory=dict)
    """Samples that have been read."""

    @property
    def records(self) -> list[Record]:
        """All records of all cells, older ones too."""
        return [record for cell in self.cells for record in cell.records]

    @property
    def current(self) -> list[Record]:
        """Records that tables show: all but those of older cells."""
        return [record for record in self.records if record.cell not in self.older]

    def nll(self, cell: str) -> TokenNll | None:
        """Token NLLs of a cell, or None where none are stored."""
        return self.stores[cell].nll(cell)

    def samples(self, cell: str) -> tuple[Sample, ...] | None:
        """Samples of a task's cell, or None where none are stored (failed, a group, perplexity). Read once."""
        if cell not in self.read_samples:
            self.read_samples[cell] = self.stores[cell].samples(cell)
        return self.read_samples[cell]


def collect(paths: Sequence[str]) -> Collection:
    """Reads run folders.

    Args:
        paths: Run folders or fsspec URLs; one named twice is read once.

    Raises:
        LongEvalError: One is no run folder, or there are no whole cells but PosGen's.
    """
    stores = [Store(path, create=False) for path in dict.fromkeys(path.rstrip("/") or path for path in paths)]
    kept: dict[str, tuple[StoredCell, Store]] = {}
    notes: list[str] = []
    posgen: dict[str, int] = {}
    for store in stores:
        for cell in store.cells():
            if artefact_of(cell.records[0]) is CURVES:
                posgen[store.path] = posgen.get(store.path, 0) + 1
                continue
            if cell.cell not in kept:
                kept[cell.cell] = (cell, store)
                continue
            other, other_store = kept[cell.cell]
            newer = _rank(cell) > _rank(other)
            if _values(cell) != _values(other):
                taken = store if newer else other_store
                notes.append(
                    f"Cell {cell.cell[:12]} ({_name(cell)}) is in {other_store.path} and in {store.path} with "
                    f"different outcomes ({_outcome(other)}; {_outcome(cell)}); the one of {taken.path} is shown."
                )
            if newer:
                kept[cell.cell] = (cell, store)
    notes += damaged_notes(stores)
    if posgen:
        notes.append(_left_out(posgen))
    if not kept and posgen:
        raise LongEvalError(
            f"{', '.join(posgen)}: holds PosGen cells alone", f"Use longeval posgen table {' '.join(posgen)}."
        )
    if not kept:
        raise LongEvalError(
            f"{', '.join(paths)}: no cells{but_damaged(stores)}",
            "Run the request first: `longeval run RUN/spec.yaml` computes what is missing.",
        )
    runs, unread = run_folders(stores)
    planned, unplanned = _planned(stores)
    names = [planned_names(cells) or written_names(run.spec) for run, cells in zip(runs, planned, strict=True)]
    records = [record for cell, _ in kept.values() for record in cell.records]
    order = ReadingOrder(names, records)
    ids = sorted(kept, key=lambda cell: order.key(kept[cell][0].records[0]))
    older = older_cells(records)
    every = {cell.cell: cell for cells in planned for cell in cells}
    notes = [unfinished_note([*every.values()], kept), *unplanned, *unread, older_note(records, older), *notes]
    return Collection(
        cells=tuple(kept[cell][0] for cell in ids),
        runs=runs,
        notes=tuple(filter(None, notes)),
        older=older,
        stores={cell: kept[cell][1] for cell in ids},
    )


def _planned(stores: Sequence[Store]) -> tuple[list[list[PlannedCell]], list[str]]:
    """The cells that were asked of each folder, PosGen's left out, and a sentence on folders that don't say."""
    plans = [store.plan() for store in stores]
    planned = [
        [cell for request in plan.requests if request.command != "posgen" for cell in request.cells] if plan else []
        for plan in plans
    ]
    without = [store.path for store, plan in zip(stores, plans, strict=True) if plan is None]
    if not without:
        return planned, []
    have = "has" if len(without) == 1 else "have"
    return planned, [f"Whether cells are missing is not known: {', '.join(without)} {have} no plan.json."]


def run_folders(stores: Sequence[Store]) -> tuple[tuple[RunFolder, ...], list[str]]:
    """The run folders with their spec.yaml, and a sentence for each of these that can't be read."""
    folders, notes = [], []
    for store in stores:
        text = ""
        try:
            text = (store.read_text("spec.yaml") or "").strip()
        except LongEvalError as error:
            notes.append(f"The request of {store.path} can't be shown: {error.problem}.")
        folders.append(RunFolder(path=store.path, spec=text))
    return tuple(folders), notes


def damaged_notes(stores: Sequence[Store]) -> list[str]:
    """A sentence for each run folder that counts and names its damaged cells."""
    return [
        f"{len(store.damaged):,} {'cell is' if len(store.damaged) == 1 else 'cells are'} damaged and left out in "
        f"{store.path} ({_named(store.damaged)}). Running the request again computes "
        f"{'it' if len(store.damaged) == 1 else 'them'} anew."
        for store in stores
        if store.damaged
    ]


def but_damaged(stores: Sequence[Store]) -> str:
    """What to say behind `no cells`: that there are damaged ones, if so."""
    damaged = {cell: reason for store in stores for cell, reason in store.damaged.items()}
    return f" but damaged ones ({_named(damaged)})" if damaged else ""


def _named(damaged: Mapping[str, str]) -> str:
    """`0123abcd: its records differ in model; …; and 3 more`."""
    named = "; ".join(f"{cell[:40]}: {reason}" for cell, reason in [*damaged.items()][:MAX_NAMED])
    return f"{named}; and {len(damaged) - MAX_NAMED:,} more" if len(damaged) > MAX_NAMED else named


def _left_out(posgen: Mapping[str, int]) -> str:
    """A sentence on cells that another command shows."""
    number, folders = sum(posgen.values()), " ".join(posgen)
    are = "PosGen cell is" if number == 1 else "PosGen cells are"
    return f"{number} {are} left out here: longeval posgen table {folders} shows them."


def _rank(cell: StoredCell) -> tuple[bool, str]:
    """Ok before failed, then the later date."""
    return cell.status == "ok", cell.records[0].provenance.date


def _values(cell: StoredCell) -> dict[str, float | None]:
    return {record.metric: record.value for record in cell.records} | {cell.status: None}


def _name(cell: StoredCell) -> str:
    record = cell.records[0]
    return f"{record.pe}, {format_length(record.length)}, {record.data or record.task}"


def _outcome(cell: StoredCell) -> str:
    record = cell.records[0]
    shown = cell.status if record.value is None else f"{record.metric} {record.value:.6g}"
    return f"{shown} on {record.provenance.date}"
