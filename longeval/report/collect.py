"""Reads run folders into one set of cells, each counted once, in the order in which they were asked for.

Several folders may hold the same cell (its id is a digest of everything that decides the result): an equal one counts
once, and where values differ the one finished last is kept and a note says so. An ok cell is kept before a failed one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from longeval.errors import LongEvalError
from longeval.report.rows import base_method, is_group, is_resonance, method_of, method_sort_key
from longeval.report.settings import older_cells, older_note
from longeval.request import requests_from_yaml
from longeval.store.artefact import Artefact
from longeval.store.curves import CURVES
from longeval.store.folder import Store, StoredCell
from longeval.store.nll import TokenNll
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record
from longeval.store.samples import Sample
from longeval.values import format_length

# What was asked of run folders, as their plan.json says: which cells have no record, and in which order cells stand.
#
# Folders of earlier versions have no plan. The names in their spec.yaml then give the order, as far as they are names
# of methods, data, tasks and groups; which of their cells are unfinished is not known.

MAX_NAMED = 6
"""More items than this are counted and not named."""


class Names(NamedTuple):
    """Names in the order in which they were asked for."""

    models: Sequence[str] = ()
    methods: Sequence[str] = ()
    subjects: Sequence[tuple[str, str]] = ()
    """`("data", name)` or `("tasks", name)`."""


def subject_of(cell: Record | PlannedCell) -> tuple[str, str]:
    """What a cell is about: a task (or group), or data."""
    return ("data", cell.data or "") if cell.task is None else ("tasks", cell.task)


def planned_names(cells: Sequence[PlannedCell]) -> Names | None:
    """Names in a stored plan; None where it asks for nothing."""
    if not cells:
        return None
    return Names([cell.model for cell in cells], [cell.pe for cell in cells], [*map(subject_of, cells)])


def written_names(spec: str) -> Names:
    """Names in a spec.yaml; none where it can't be read."""
    try:
        requests = requests_from_yaml(spec, origin="spec.yaml") if spec else []
    except LongEvalError:
        return Names()
    models = [name for request in requests for name in _texts(request.get("model"))]
    methods = [name for request in requests for name in _texts(request.get("pe"))]
    kinds = ("data", "tasks")
    subjects = [(kind, name) for request in requests for kind in kinds for name in _texts(request.get(kind))]
    return Names(models, methods, subjects)


def _texts(value: Any) -> list[str]:
    """A name, names with commas between them, or a list of names."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


class ReadingOrder:
    """Sorts cells as they were asked for: by model, data before tasks, subject, protocol, method, factor and length.

    What nobody asked for by name comes after what was: models and subjects as they were finished, methods in the order
    of their publication. Resonance forms stand below their base.
    """

    def __init__(self, asked: Iterable[Names], records: Sequence[Record]) -> None:
        names = list(asked)
        by_date = sorted(records, key=lambda r: (is_group(r), r.provenance.date, r.model, subject_of(r)[1]))
        models = [name for one in names for name in one.models]
        members = {subject_of(record): record.params["members"] for record in records if is_group(record)}
        subjects: list[tuple[str, str]] = []
        for subject in (subject for one in names for subject in one.subjects):
            subjects += [*(("tasks", name) for name in members.get(subject, ())), subject]
        self._models = _places([*models, *(record.model for record in by_date)])
        self._methods = _places(base_method(name) for one in names for name in one.methods)
        self._subjects = _places([*subjects, *map(subject_of, by_date)])

    def key(self, record: Record) -> tuple[object, ...]:
        """What to sort by."""
        base = base_method(record.pe)
        unnamed, name, _ = method_sort_key(base)
        asked = (self._methods[base], 0, "") if base in self._methods else (len(self._methods), unnamed, name)
        setting = (record.protocol or "", record.backend, record.dtype)
        method = (*asked, method_of(record), record.factor or 0.0, is_resonance(record.pe))
        return (
            self._models[record.model],
            record.task is not None,
            self._subjects[subject_of(record)],
            *setting,
            *method,
            record.length,
            record.provenance.date,
            record.cell,
        )


def _places(names: Iterable[Any]) -> dict[Any, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def unfinished_note(planned: Sequence[PlannedCell], present: Container[str]) -> str:
    """A sentence that counts and names the cells without a record; empty where all have one.

    Averages of groups are not counted: they follow their members.

    Args:
        planned: All cells that were asked for.
        present: Ids of the cells that have a record.
    """
    asked = [cell for cell in planned if cell.params.get("members") is None]
    missing = [cell for cell in asked if cell.cell not in present]
    if not missing:
        return ""
    have = "has" if len(missing) == 1 else "have"
    several = len({cell.protocol for cell in asked if cell.protocol is not None}) > 1
    return (
        f"Not finished: {len(missing):,} of {len(asked):,} cells {have} no record yet: "
        f"{_named(missing, with_protocol=several)}. The same command goes on where it stopped."
    )


def _named(cells: Sequence[PlannedCell], *, with_protocol: bool) -> str:
    """`yarn, resonance_yarn at 8k, 16k (passkey, niah_single); …`, what is missing alike together."""
    lengths: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for cell in cells:
        subject = subject_of(cell)[1]
        subject += f", {cell.protocol}" if with_protocol and cell.protocol is not None else ""
        lengths[cell.model, cell.pe, subject].append(cell.length)
    subjects: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (model, pe, subject), found in lengths.items():
        subjects[model, pe, tuple(dict.fromkeys(found))].append(subject)
    methods: dict[tuple[str, tuple[int, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for (model, pe, at), about in subjects.items():
        methods[model, at, tuple(about)].append(pe)
    several = len({cell.model for cell in cells}) > 1
    items = [
        f"{f'{model} ' if several else ''}{', '.join(pes)} at {', '.join(map(format_length, at))} ({', '.join(about)})"
        for (model, at, about), pes in methods.items()
    ]
    more = f"; and {len(items) - MAX_NAMED} more such" if len(items) > MAX_NAMED else ""
    return "; ".join(items[:MAX_NAMED]) + more


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

    def made_from(self, artefact: Artefact[Any]) -> list[Record]:
        """Those of them whose cells leave a kind of artefact: what one study may speak of."""
        cells = (cell for cell in self.cells if cell.artefact is artefact and cell.cell not in self.older)
        return [record for cell in cells for record in cell.records]

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
            if cell.artefact is CURVES:
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
        f"{store.path} ({_ids_named(store.damaged)}). Running the request again computes "
        f"{'it' if len(store.damaged) == 1 else 'them'} anew."
        for store in stores
        if store.damaged
    ]


def but_damaged(stores: Sequence[Store]) -> str:
    """What to say behind `no cells`: that there are damaged ones, if so."""
    damaged = {cell: reason for store in stores for cell, reason in store.damaged.items()}
    return f" but damaged ones ({_ids_named(damaged)})" if damaged else ""


def _ids_named(damaged: Mapping[str, str]) -> str:
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
