"""Reads run folders for `longeval posgen table`: PosGen's cells, each once and as asked for, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, get_args

from longeval.errors import LongEvalError
from longeval.report.collect import Collection, but_damaged, damaged_notes, run_folders
from longeval.report.rows import base_method, is_resonance, method_of, method_sort_key
from longeval.store.curves import CURVES
from longeval.store.folder import Store, StoredCell
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record
from longeval.studies.posgen.data import RULES
from longeval.studies.posgen.request import Regime

PREFIX = "posgen_"
"""In front of a rule's name, it is what records call the data."""

_MAX_NAMED = 6
"""More missing seeds of methods than this are counted and not named."""


class PosGenPlace(NamedTuple):
    """What a cell is about, apart from settings."""

    task: str
    regime: str
    pe: str
    seed: int


def place_of(cell: Record | PlannedCell) -> PosGenPlace:
    """Where a cell belongs."""
    regime, seed = cell.params.get("regime"), cell.params.get("seed")
    task = (cell.data or "").removeprefix(PREFIX)
    return PosGenPlace(task=task, regime=str(regime), pe=cell.pe, seed=seed if isinstance(seed, int) else 0)


def collect_posgen(paths: Sequence[str]) -> Collection:
    """Reads run folders.

    Args:
        paths: Run folders or fsspec URLs; one named twice is read once.

    Returns:
        The cells in the order in which they were asked for: by task, regime, method, seed.

    Raises:
        LongEvalError: One is no run folder, or none has a whole PosGen cell.
    """
    stores = [Store(path, create=False) for path in dict.fromkeys(path.rstrip("/") or path for path in paths)]
    kept: dict[str, tuple[StoredCell, Store]] = {}
    notes: list[str] = []
    others = 0
    for store in stores:
        for cell in store.cells():
            if cell.artefact is not CURVES:
                others += 1
            elif cell.cell in kept:
                notes += _keep_one(kept, cell, store)
            else:
                kept[cell.cell] = (cell, store)
    if not kept:
        raise _nothing(paths, others, but_damaged(stores))
    notes += damaged_notes(stores)
    if others:
        count = "1 cell that is" if others == 1 else f"{others:,} cells that are"
        notes.append(f"{count} not PosGen's left out here: `longeval report` shows them.")
    runs, unread = run_folders(stores)
    requests: list[PlannedRequest] = []
    for store in stores:
        if (plan := store.plan()) is None:
            unread.append(f"Whether cells are missing is not known: {store.path} has no plan.json.")
        else:
            requests += [request for request in plan.requests if request.command == "posgen"]
    planned = list({cell.cell: cell for request in requests for cell in request.cells}.values())
    ids = _in_order(kept, planned)
    return Collection(
        cells=tuple(kept[cell][0] for cell in ids),
        runs=runs,
        notes=(*_missing(planned, kept), *unread, *notes),
        older=frozenset(),
        stores={cell: kept[cell][1] for cell in ids},
        planned=tuple(requests),
    )


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


def _keep_one(kept: dict[str, tuple[StoredCell, Store]], cell: StoredCell, store: Store) -> list[str]:
    """Of a cell found twice, keeps an ok one before a failed one, then the later; a sentence where outcomes differ."""
    other, other_store = kept[cell.cell]
    newer = _rank(cell) > _rank(other)
    if newer:
        kept[cell.cell] = (cell, store)
    if _values(cell) == _values(other):
        return []
    place = place_of(cell.records[0])
    return [
        f"Cell {cell.cell[:12]} ({place.pe} on {place.task}, {place.regime}, seed {place.seed}) is in "
        f"{other_store.path} and in {store.path} with different outcomes; the one of "
        f"{(store if newer else other_store).path} is shown."
    ]


def _rank(cell: StoredCell) -> tuple[bool, str]:
    return cell.status == "ok", cell.records[0].provenance.date


def _values(cell: StoredCell) -> dict[str, float | None]:
    return {record.metric: record.value for record in cell.records} | {cell.status: None}


def _in_order(kept: dict[str, tuple[StoredCell, Store]], planned: Sequence[PlannedCell]) -> list[str]:
    """Ids of cells as they were asked for; what no plan names comes last, methods by their publication."""
    asked = [place_of(cell) for cell in planned]
    found = [place_of(cell.records[0]) for cell, _ in kept.values()]
    tasks = [*(place.task for place in asked), *RULES, *sorted(place.task for place in found)]
    regimes = [*(place.regime for place in asked), *get_args(Regime), *sorted(place.regime for place in found)]
    bases = [base_method(place.pe) for place in asked]
    bases += sorted({base_method(place.pe) for place in found}, key=method_sort_key)
    folders = list(dict.fromkeys(store.path for _, store in kept.values()))

    def key(cell: str) -> tuple[object, ...]:
        stored, store = kept[cell]
        record = stored.records[0]
        place = place_of(record)
        where = tasks.index(place.task), regimes.index(place.regime)
        method = bases.index(base_method(place.pe)), method_of(record), record.factor or 0.0, is_resonance(place.pe)
        return (*where, *method, place.seed, folders.index(store.path), record.provenance.date, cell)

    return sorted(kept, key=key)


def _missing(planned: Sequence[PlannedCell], kept: dict[str, tuple[StoredCell, Store]]) -> list[str]:
    """A sentence that counts and names the cells that were asked for and have no record; none where all have one."""
    missing: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for place in (place_of(cell) for cell in planned if cell.cell not in kept):
        missing[place.task, place.regime, place.pe].append(place.seed)
    total = sum(map(len, missing.values()))
    if not total:
        return []
    items = [
        f"{pe} on {task}, {regime}, {'seed' if len(seeds) == 1 else 'seeds'} {seeds_text(seeds)}"
        for (task, regime, pe), seeds in missing.items()
    ]
    more = f"; and {len(items) - _MAX_NAMED} more such" if len(items) > _MAX_NAMED else ""
    return [
        f"Not finished: {total:,} of {len(planned):,} cells {'has' if total == 1 else 'have'} no record yet: "
        f"{'; '.join(items[:_MAX_NAMED])}{more}. The same command goes on where it stopped."
    ]


def seeds_text(seeds: Sequence[int]) -> str:
    """`0–4`, `1, 3`."""
    ordered = sorted(set(seeds))
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))
