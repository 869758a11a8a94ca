"""Reads run folders for `longeval posgen table`: PosGen's cells, each once and as asked for, and what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from longeval.errors import LongEvalError
from longeval.report.collect import Collection, RunFolder, but_damaged, damaged_notes, run_folders
from longeval.report.rows import base_method, canonical, is_resonance, method_of, method_sort_key
from longeval.report.unfinished import MAX_NAMED
from longeval.request import PosGenRequest, request_from_mapping, requests_from_yaml
from longeval.store.artefact import artefact_of
from longeval.store.curves import CURVES, Curves
from longeval.store.folder import Store, StoredCell
from longeval.store.records import Record

PREFIX = "posgen_"
"""In front of a rule's name, it is what records call the data."""

_SAME_NAMES = (
    *("modulus", "j", "k", "test_length", "num_train", "num_valid", "num_test"),
    *("layers", "d_model", "d_ff", "heads", "head_dim", "theta", "tied", "attention_scale", "init", "start_token"),
    *("dropout", "frozen_mlp", "epochs", "batch_size", "lr", "weight_decay", "warmup"),
)
"""Settings that requests and records call the same."""


class PosGenCollection(NamedTuple):
    """All PosGen cells of some run folders."""

    collection: Collection
    """The cells in the order in which they were asked for: by task, regime, method, seed."""
    requests: tuple[PosGenRequest, ...]
    """Requests of all folders, each once."""

    def curves(self, cell: str) -> Curves | None:
        """Curves of a cell, or None where it has none."""
        return self.collection.stores[cell].curves(cell)


class Place(NamedTuple):
    """What a cell is about, apart from settings."""

    task: str
    regime: str
    pe: str
    seed: int


def place_of(record: Record) -> Place:
    """Where a record belongs."""
    return Place(
        task=(record.data or "").removeprefix(PREFIX),
        regime=str(record.params["regime"]),
        pe=record.pe,
        seed=int(record.params["seed"]),
    )


def collect_posgen(paths: Sequence[str]) -> PosGenCollection:
    """Reads run folders.

    Args:
        paths: Run folders or fsspec URLs; one named twice is read once.

    Raises:
        LongEvalError: One is no run folder, or none has a whole PosGen cell.
    """
    stores = [Store(path, create=False) for path in dict.fromkeys(path.rstrip("/") or path for path in paths)]
    kept: dict[str, tuple[StoredCell, Store]] = {}
    notes: list[str] = []
    others = 0
    for store in stores:
        for cell in store.cells():
            if artefact_of(cell.records[0]) is not CURVES:
                others += 1
            elif cell.cell in kept:
                note = _keep_one(kept, cell, store)
                notes += [note] if note else []
            else:
                kept[cell.cell] = (cell, store)
    if not kept:
        raise _nothing(paths, others, but_damaged(stores))
    notes += damaged_notes(stores)
    if others:
        count = "1 cell that is" if others == 1 else f"{others:,} cells that are"
        notes.append(f"{count} not PosGen's left out here: `longeval report` shows them.")
    runs, unread = run_folders(stores)
    requests, misunderstood = _requests(runs)
    ordered = sorted(kept, key=_Order(requests, [cell.records[0] for cell, _ in kept.values()], kept).key)
    cells = tuple(kept[cell][0] for cell in ordered)
    missing = missing_note(requests, [cell.records[0] for cell in cells])
    collection = Collection(
        cells=cells,
        runs=runs,
        notes=tuple(filter(None, [missing, *unread, *misunderstood, *notes])),
        older=frozenset(),
        stores={cell: kept[cell][1] for cell in ordered},
    )
    return PosGenCollection(collection=collection, requests=requests)


def _nothing(paths: Sequence[str], others: int, damaged: str) -> LongEvalError:
    """The error for folders without a PosGen cell."""
    named = ", ".join(paths)
    if others:
        return LongEvalError(
            f"{named}: no PosGen cells",
            f"`longeval report {' '.join(paths)}` shows what {'is' if others == 1 else 'are'} there.",
        )
    return LongEvalError(
        f"{named}: no cells{damaged}", "Train first: `longeval run RUN/spec.yaml` computes what is missing."
    )


def _keep_one(kept: dict[str, tuple[StoredCell, Store]], cell: StoredCell, store: Store) -> str:
    """Of a cell found twice, keeps an ok one before a failed one, then the later; a sentence where outcomes differ."""
    other, other_store = kept[cell.cell]
    newer = _rank(cell) > _rank(other)
    if newer:
        kept[cell.cell] = (cell, store)
    if _values(cell) == _values(other):
        return ""
    place = place_of(cell.records[0])
    return (
        f"Cell {cell.cell[:12]} ({place.pe} on {place.task}, {place.regime}, seed {place.seed}) is in "
        f"{other_store.path} and in {store.path} with different outcomes; the one of "
        f"{(store if newer else other_store).path} is shown."
    )


def _rank(cell: StoredCell) -> tuple[bool, str]:
    return cell.status == "ok", cell.records[0].provenance.date


def _values(cell: StoredCell) -> dict[str, float | None]:
    return {record.metric: record.value for record in cell.records} | {cell.status: None}


def _requests(runs: Sequence[RunFolder]) -> tuple[tuple[PosGenRequest, ...], tuple[str, ...]]:
    """PosGen's requests, each once, and a sentence for each spec.yaml that can't be understood."""
    requests: dict[str, PosGenRequest] = {}
    notes = []
    for run in runs:
        origin = f"{run.path}/spec.yaml"
        try:
            found = [
                request_from_mapping(plain, origin=origin) for plain in requests_from_yaml(run.spec, origin=origin)
            ]
        except LongEvalError as error:
            notes.append(f"Whether cells are missing is not known: {error.problem}.")
            continue
        requests |= {repr(request): request for request in found if isinstance(request, PosGenRequest)}
    return tuple(requests.values()), tuple(notes)


class _Order:
    """Sorts cells as they were asked for; what no request names comes last, methods by their publication."""

    def __init__(
        self, requests: Sequence[PosGenRequest], records: Sequence[Record], kept: dict[str, tuple[StoredCell, Store]]
    ) -> None:
        places = [place_of(record) for record in records]
        self._kept = kept
        self._folders = list(dict.fromkeys(store.path for _, store in kept.values()))
        self._tasks = [*(task for r in requests for task in r.tasks), *sorted(place.task for place in places)]
        self._regimes = [*(regime for r in requests for regime in r.regimes), *sorted(p.regime for p in places)]
        bases = sorted({base_method(place.pe) for place in places}, key=method_sort_key)
        self._methods = [*(base_method(name) for r in requests for name in r.pe), *bases]

    def key(self, cell: str) -> tuple[object, ...]:
        """What to sort a cell by."""
        stored, store = self._kept[cell]
        record = stored.records[0]
        place = place_of(record)
        method = (self._methods.index(base_method(place.pe)), method_of(record), record.factor or 0.0)
        where = (self._tasks.index(place.task), self._regimes.index(place.regime))
        folder = self._folders.index(store.path)
        return (*where, *method, is_resonance(place.pe), place.seed, folder, record.provenance.date, cell)


def missing_note(requests: Sequence[PosGenRequest], records: Sequence[Record]) -> str:
    """A sentence that counts and names the cells that were asked for and have no record; empty where there are none."""
    asked: set[tuple[str, Place]] = set()
    missing: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for request in requests:
        setting = _setting(request)
        present = {place_of(record) for record in records if meets(record, request)}
        for place in _places(request):
            if (setting, place) not in asked and place not in present:
                missing[place.task, place.regime, place.pe].append(place.seed)
            asked.add((setting, place))
    total = sum(map(len, missing.values()))
    if not total:
        return ""
    items = [
        f"{pe} on {task}, {regime}, {'seed' if len(seeds) == 1 else 'seeds'} {seeds_text(seeds)}"
        for (task, regime, pe), seeds in missing.items()
    ]
    more = f"; and {len(items) - MAX_NAMED} more such" if len(items) > MAX_NAMED else ""
    return (
        f"Not finished: {total:,} of {len(asked):,} cells {'has' if total == 1 else 'have'} no record yet: "
        f"{'; '.join(items[:MAX_NAMED])}{more}. The same command goes on where it stopped."
    )


def seeds_text(seeds: Sequence[int]) -> str:
    """`0–4`, `1, 3`."""
    ordered = sorted(set(seeds))
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))


def _setting(request: PosGenRequest) -> str:
    """What requests of the same cells have in common."""
    nothing: dict[str, Any] = {"tasks": ("any",), "pe": ("any",), "regimes": ("trained",), "seeds": 1, "first_seed": 0}
    same = request.replaced(**nothing, device="any", stack=None)
    return repr(same)


def _places(request: PosGenRequest) -> Iterator[Place]:
    for task in request.tasks:
        for regime in request.regimes:
            for pe in request.pe:
                for seed in request.seed_values():
                    yield Place(task=task, regime=regime, pe=pe, seed=seed)


def meets(record: Record, request: PosGenRequest) -> bool:
    """Whether a record's settings are those of a request; what it doesn't record counts as met."""
    params = record.params
    asked = {name: getattr(request, name) for name in _SAME_NAMES} | {"train_length": request.length}
    asked["native_length"] = request.native_length
    asked["data_seed"] = params["seed"] if request.data_seed is None else request.data_seed
    given = request.pe_args.get(base_method(record.pe), {})
    method = params.get("method") or {}
    return (
        record.dtype == request.dtype
        and all(params.get(name, value) == value for name, value in asked.items())
        and all(canonical(method.get(name)) == canonical(value) for name, value in given.items())
        and (record.factor is None or math.isclose(record.factor, request.scaling_factor, rel_tol=1e-9))
    )
