"""Reads run folders into one set of cells, each counted once, in the order in which they were asked for.

Several folders may hold the same cell (its id is a digest of everything that decides the result). An equal one counts
once. Where values differ the one finished last is kept and a note says so; an ok cell is kept before a failed one.

`plan.json` says what was asked of a folder: which cells have no record, and in which order cells stand. Folders of
earlier versions have no plan. The names in their spec.yaml then give the order, and which of their cells are unfinished
is not known.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from longeval.errors import LongEvalError
from longeval.looks import base_method, is_resonance
from longeval.report.numbers import numbers_text
from longeval.report.settings import method_of, older_cells, older_note
from longeval.report.tables import is_group, method_sort_key
from longeval.request import requests_from_yaml
from longeval.store.artefact import Artefact
from longeval.store.folder import Store, StoredCell
from longeval.store.nll import TokenNll
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record
from longeval.store.samples import Sample
from longeval.values import format_length

MAX_NAMED = 6
"""More items than this are counted and not named."""

MAX_DRAWN = 20
"""Sections of one study that get figures, the first ones: drawing a still picture takes as long as hundreds of cells,
and nobody looks at hundreds."""

LONGEVAL_REPORT = "longeval report"
"""The command whose report shows most cells."""


def report_command(cell: Record | PlannedCell) -> str:
    """The command whose report shows a cell."""
    return "longeval posgen table" if cell.backend == "posgen" else LONGEVAL_REPORT


def posgen_rule(cell: Record | PlannedCell) -> str:
    """The rule that a PosGen cell is about: its data without `posgen_`."""
    return (cell.data or "").removeprefix("posgen_")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """One run folder of a report."""

    path: str
    """As the user named it."""
    spec: str
    """Text of its spec.yaml; empty if it has none."""


class RecentNlls:
    """Token NLLs that were read last, up to a limit of memory: tables, pairs and curves need the same ones in turn."""

    def __init__(self, most_tokens: int = 1 << 26) -> None:
        self._most_tokens = most_tokens
        self._tokens = 0
        self._kept: OrderedDict[str, TokenNll] = OrderedDict()

    def get(self, cell: str, store: Store) -> TokenNll | None:
        """Those of a cell, or None where none are stored."""
        if cell in self._kept:
            self._kept.move_to_end(cell)
            return self._kept[cell]
        nll = store.nll(cell)
        if nll is not None:
            self._kept[cell] = nll
            self._tokens += len(nll.nll_S)
            while self._tokens > self._most_tokens:
                self._tokens -= len(self._kept.popitem(last=False)[1].nll_S)
        return nll


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
    pairs: tuple[str, ...] = ()
    """Pairs of rows that are compared in place of each method with its resonance form."""
    all_drawn: bool = False
    """Whether every section gets its figures, because they are not drawn before somebody looks at them."""
    planned: tuple[PlannedRequest, ...] = ()
    """The requests that were made of the folders, as far as their plans are stored."""
    read_samples: dict[str, tuple[Sample, ...] | None] = field(default_factory=dict)
    """Samples that have been read."""
    read_nlls: RecentNlls = field(default_factory=RecentNlls)
    """Token NLLs that were read last."""

    def is_drawn(self, number: int) -> bool:
        """Whether a study's section of this number, from 0, gets figures."""
        return self.all_drawn or number < MAX_DRAWN

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
        return self.read_nlls.get(cell, self.stores[cell])

    def samples(self, cell: str) -> tuple[Sample, ...] | None:
        """Samples of a task's cell, or None where none are stored (failed, a group, perplexity). Read once."""
        if cell not in self.read_samples:
            self.read_samples[cell] = self.stores[cell].samples(cell)
        return self.read_samples[cell]


def collect(paths: Sequence[str], command: str | None = LONGEVAL_REPORT) -> Collection:
    """Reads run folders.

    Args:
        paths: Run folders or fsspec URLs, or local folders of run folders; one named twice is read once.
        command: The command that makes the report. Cells that another one shows are counted and left out.
            None: all cells are wanted.

    Raises:
        LongEvalError: One is no run folder, or none has a whole cell for this command.
    """
    named = [folder for path in paths for folder in _named(path.rstrip("/") or path)]
    stores = [Store(path, create=False) for path in dict.fromkeys(named)]
    kept: dict[str, tuple[StoredCell, Store]] = {}
    others: dict[str, list[str]] = {}
    notes: list[str] = []
    for store in stores:
        for cell in store.cells(keep_artefacts=True):
            shown_by = report_command(cell.records[0])
            if shown_by != (command or shown_by):
                others.setdefault(shown_by, []).append(store.path)
            elif cell.cell not in kept:
                kept[cell.cell] = cell, store
            else:
                before, taken = kept[cell.cell], max(kept[cell.cell], (cell, store), key=_rank)
                kept[cell.cell] = taken
                notes += _different_outcomes(before, (cell, store), taken)
    notes += [_damaged_note(store) for store in stores if store.damaged]
    notes += [_left_out(other, folders) for other, folders in others.items()]
    if not kept:
        raise _nothing(paths, command, stores, others)

    runs, unread = _run_folders(stores)
    planned = [_planned(store, command) for store in stores]
    cells = [[cell for request in requests or () for cell in request.cells] for requests in planned]
    names = [planned_names(found) or written_names(run.spec) for run, found in zip(runs, cells, strict=True)]
    records = [record for cell, _ in kept.values() for record in cell.records]
    order = ReadingOrder(names, records)
    ids = sorted(kept, key=lambda cell: order.key(kept[cell][0].records[0]))
    older = older_cells(records)
    every = {cell.cell: cell for found in cells for cell in found}
    without_plan = [store.path for store, requests in zip(stores, planned, strict=True) if requests is None]
    notes = [
        unfinished_note([*every.values()], kept),
        _unknown_note(without_plan),
        *unread,
        older_note(records, older),
        *notes,
    ]
    return Collection(
        cells=tuple(kept[cell][0] for cell in ids),
        runs=runs,
        notes=tuple(filter(None, notes)),
        older=older,
        stores={cell: kept[cell][1] for cell in ids},
        planned=tuple(request for requests in planned for request in requests or ()),
    )


def _named(path: str) -> list[str]:
    """The run folder of a path; where it is a local folder of others, those run folders that lie in it."""
    if not os.path.isdir(path) or Store(path).is_run_folder():
        return [path]
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError:  # it may be entered and not listed
        return [path]
    inside = [os.path.join(path, name) for name in names]
    return [folder for folder in inside if os.path.isdir(folder) and Store(folder).is_run_folder()] or [path]


def _rank(found: tuple[StoredCell, Store]) -> tuple[bool, str]:
    """Ok before failed, then the later date."""
    cell, _ = found
    return cell.status == "ok", cell.records[0].provenance.date


def _different_outcomes(
    one: tuple[StoredCell, Store], other: tuple[StoredCell, Store], taken: tuple[StoredCell, Store]
) -> list[str]:
    """A sentence on a cell that two folders hold with different values; none where they agree."""
    (cell, store), (second, second_store) = one, other
    if _values(cell) == _values(second):
        return []
    return [
        f"Cell {cell.cell[:12]} ({_name(cell.records[0])}) is in {store.path} and in {second_store.path} with "
        f"different outcomes ({_outcome(cell)}; {_outcome(second)}); the one of {taken[1].path} is shown."
    ]


def _values(cell: StoredCell) -> dict[str, float | None]:
    return {record.metric: record.value for record in cell.records} | {cell.status: None}


def _name(record: Record) -> str:
    """`yarn, 8k, gov_report`; of a training, its regime and seed too."""
    name = f"{record.pe}, {format_length(record.length)}, {record.data or record.task}"
    regime = _regime(record)
    return f"{name}, {regime}, seed {record.params.get('seed')}" if regime else name


def _outcome(cell: StoredCell) -> str:
    record = cell.records[0]
    shown = cell.status if record.value is None else f"{record.metric} {record.value:.6g}"
    return f"{shown} on {record.provenance.date}"


def _nothing(
    paths: Sequence[str], command: str | None, stores: Sequence[Store], others: Mapping[str, Sequence[str]]
) -> LongEvalError:
    """The error for folders without a cell that this command shows."""
    named = ", ".join(paths)
    if others:
        remedies = [f"{other} {' '.join(dict.fromkeys(folders))}" for other, folders in others.items()]
        return LongEvalError(f"{named}: no cells that `{command}` shows", f"Use {' or '.join(remedies)}.")
    damaged = {cell: reason for store in stores for cell, reason in store.damaged.items()}
    but = f" but damaged ones ({_ids_named(damaged)})" if damaged else ""
    return LongEvalError(
        f"{named}: no cells{but}", "Run the request first: `longeval run RUN/spec.yaml` computes what is missing."
    )


def _left_out(command: str, folders: Sequence[str]) -> str:
    """A sentence on cells that another command shows."""
    one = len(folders) == 1
    return (
        f"{len(folders):,} {'cell is' if one else 'cells are'} left out here: "
        f"{command} {' '.join(dict.fromkeys(folders))} shows {'it' if one else 'them'}."
    )


def _damaged_note(store: Store) -> str:
    """A sentence that counts and names the damaged cells of a run folder."""
    one = len(store.damaged) == 1
    return (
        f"{len(store.damaged):,} {'cell is' if one else 'cells are'} damaged and left out in {store.path} "
        f"({_ids_named(store.damaged)}). Running the request again computes {'it' if one else 'them'} anew."
    )


def _ids_named(damaged: Mapping[str, str]) -> str:
    """`0123abcd: its records differ in model; …; and 3 more`."""
    named = "; ".join(f"{cell[:40]}: {reason}" for cell, reason in [*damaged.items()][:MAX_NAMED])
    return f"{named}; and {len(damaged) - MAX_NAMED:,} more" if len(damaged) > MAX_NAMED else named


def _run_folders(stores: Sequence[Store]) -> tuple[tuple[RunFolder, ...], list[str]]:
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


def _planned(store: Store, command: str | None) -> list[PlannedRequest] | None:
    """The requests that were made of a folder, those of other reports left out; None where it doesn't say."""
    plan = store.plan()
    if plan is None:
        return None
    return [
        request
        for request in plan.requests
        if command is None or all(report_command(cell) == command for cell in request.cells)
    ]


def _unknown_note(without_plan: Sequence[str]) -> str:
    """A sentence on folders that don't say what was asked of them; empty without any."""
    if not without_plan:
        return ""
    have = "has" if len(without_plan) == 1 else "have"
    return f"Whether cells are missing is not known: {', '.join(without_plan)} {have} no plan.json."


# The order in which cells were asked for.


class Names(NamedTuple):
    """Names in the order in which they were asked for."""

    models: Sequence[str] = ()
    methods: Sequence[str] = ()
    subjects: Sequence[tuple[str, str]] = ()
    """`("data", name)` or `("tasks", name)`."""
    regimes: Sequence[str] = ()
    """Of trainings."""


def subject_of(cell: Record | PlannedCell) -> tuple[str, str]:
    """What a cell is about: a task (or group), or data."""
    return ("data", cell.data or "") if cell.task is None else ("tasks", cell.task)


def planned_names(cells: Sequence[PlannedCell]) -> Names | None:
    """Names in a stored plan; None where it asks for nothing."""
    if not cells:
        return None
    return Names(
        [cell.model for cell in cells],
        [cell.pe for cell in cells],
        [*map(subject_of, cells)],
        [*map(_regime, cells)],
    )


def written_names(spec: str) -> Names:
    """Names in a spec.yaml; none where it can't be read."""
    try:
        requests = requests_from_yaml(spec, origin="spec.yaml") if spec else []
    except LongEvalError:
        return Names()
    kinds = ("data", "tasks")
    return Names(
        [name for request in requests for name in _texts(request.get("model"))],
        [name for request in requests for name in _texts(request.get("pe"))],
        [(kind, name) for request in requests for kind in kinds for name in _texts(request.get(kind))],
        [name for request in requests for name in _texts(request.get("regimes"))],
    )


def _texts(value: Any) -> list[str]:
    """A name, names with commas between them, or a list of names."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _regime(cell: Record | PlannedCell) -> str:
    """How a training went: PosGen's regime, or the augmentation of fine-tuning; empty for cells without one."""
    if "augment" in cell.params:
        return f"augmentation {cell.params['augment']}"
    return str(cell.params.get("regime", ""))


def _seed(cell: Record | PlannedCell) -> int:
    seed = cell.params.get("seed")
    return seed if isinstance(seed, int) else 0


class ReadingOrder:
    """Sorts cells as they were asked for: by model, data before tasks, subject, protocol, method, factor and length.

    What nobody asked for by name comes after what was: models and subjects as they were finished, methods in the order
    of their publication. Resonance forms stand below their base. Trainings are sorted by regime (PosGen) or by
    augmentation before their method, and by seed. Cells that are alike in all this stay in the order of their folders.
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
        self._regimes = _places([*(name for one in names for name in one.regimes), *map(_regime, by_date)])

    def key(self, record: Record) -> tuple[object, ...]:
        """What to sort by."""
        base = base_method(record.pe)
        unnamed, name, _ = method_sort_key(base)
        asked = (self._methods[base], 0, "") if base in self._methods else (len(self._methods), unnamed, name)
        setting = (self._regimes[_regime(record)], record.protocol or "", record.backend, record.dtype)
        method = (*asked, method_of(record), record.factor or 0.0, is_resonance(record.pe))
        return (
            self._models[record.model],
            record.task is not None,
            self._subjects[subject_of(record)],
            *setting,
            *method,
            record.length,
            _seed(record),
            record.provenance.date,
        )


def _places(names: Iterable[Any]) -> dict[Any, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


# What was asked for and has no record.


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
    trainings = [cell for cell in missing if _regime(cell)]
    items = [*_trainings(trainings), *_places_named([cell for cell in missing if not _regime(cell)], asked)]
    more = f"; and {len(items) - MAX_NAMED} more such" if len(items) > MAX_NAMED else ""
    return (
        f"Not finished: {len(missing):,} of {len(asked):,} cells {'has' if len(missing) == 1 else 'have'} no record "
        f"yet: {'; '.join(items[:MAX_NAMED])}{more}. The same command goes on where it stopped."
    )


def _places_named(cells: Sequence[PlannedCell], asked: Sequence[PlannedCell]) -> list[str]:
    """`yarn, resonance_yarn at 8k, 16k (passkey, niah_single)` and so on, what is missing alike together."""
    with_model = len({cell.model for cell in cells}) > 1
    with_protocol = len({cell.protocol for cell in asked if cell.protocol is not None}) > 1
    rows: list[tuple[Any, ...]] = []
    for cell in cells:
        protocol = f", {cell.protocol}" if with_protocol and cell.protocol is not None else ""
        rows.append((cell.model, cell.pe, f"{subject_of(cell)[1]}{protocol}", format_length(cell.length)))
    for place in (3, 2, 1):  # lengths, then subjects, then methods
        rows = _together(rows, place)
    return [
        f"{f'{model} ' if with_model else ''}{', '.join(methods)} at {', '.join(lengths)} ({', '.join(subjects)})"
        for model, methods, subjects, lengths in rows
    ]


def _trainings(cells: Sequence[PlannedCell]) -> list[str]:
    """`yarn on cot, trained, seeds 0–4` and so on."""
    rows = [(cell.pe, posgen_rule(cell), _regime(cell), _seed(cell)) for cell in cells]
    return [
        f"{pe} on {rule}, {regime}, {'seed' if len(seeds) == 1 else 'seeds'} {numbers_text(seeds)}"
        for pe, rule, regime, seeds in _together(rows, 3)
    ]


def _together(rows: Iterable[tuple[Any, ...]], place: int) -> list[tuple[Any, ...]]:
    """Makes rows that differ in one place alone one row, which has all their values in that place, each once."""
    values: dict[tuple[Any, ...], dict[Any, None]] = {}
    for row in rows:
        values.setdefault(row[:place] + row[place + 1 :], {})[row[place]] = None
    return [(*others[:place], tuple(found), *others[place:]) for others, found in values.items()]
