"""What stored cells hold of cells that are asked for now: the same window or sample is not computed a second time.

A request that grows (more documents, more samples, a longer window that skips short documents) gives cells with other
ids, while most of what they are made of is stored in cells of the request before. Such a cell takes what is there, if
its settings differ in nothing but in what selects its windows or samples (`Cell.selected_by`), and if the model was
given the very same tokens. Everything else is computed from both together, as in a run that computes all of it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from longeval.backends.base import Backend, capabilities
from longeval.plain import canonical_json
from longeval.run.cell import FOR_READERS, Cell, Follows
from longeval.run.overview import count
from longeval.store.folder import Store, StoredCell
from longeval.store.records import OUTCOMES, Record, provenance

if TYPE_CHECKING:
    from longeval.run.study import Plan, Work

_FIELDS = ("model", "factor", "length", "data", "task", "protocol", "backend", "dtype")
"""Fields in which cells must agree, beside method and parameters."""


@runtime_checkable
class InParts(Protocol):
    """Work whose cells consist of windows or samples, each of which means the same in every cell that has it."""

    @property
    def cells(self) -> Sequence[Cell]:
        """See `Work`."""
        ...

    def parts(self, cell: Cell) -> Sequence[str]:
        """For each window or sample of a cell, in order, the digest that `Artefact.parts` has for it.

        Raises:
            OSError: A document went away.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Reused:
    """The windows or samples of a cell that need not be computed."""

    digests: Sequence[str]
    """Of all that the cell has, in order."""
    sources: Mapping[int, StoredCell]
    """Place of a window or sample in the cell → the stored cell that holds it."""

    @property
    def whole(self) -> bool:
        """Whether that is all of them."""
        return len(self.sources) == len(self.digests)

    @property
    def record(self) -> Record:
        """A record of the cell that most is taken from."""
        ((most, _),) = Counter(source.cell for source in self.sources.values()).most_common(1)
        return next(source.records[0] for source in self.sources.values() if source.cell == most)

    @property
    def counts(self) -> dict[str, int]:
        """Id of a stored cell → how many are taken from it."""
        return dict(Counter(source.cell for source in self.sources.values()))

    def load(self, store: Store) -> dict[int, Any]:
        """Place → what the model gave there; without those whose file went away."""
        held = {
            cell: _parts(source, store) for cell, source in {one.cell: one for one in self.sources.values()}.items()
        }
        return {
            place: held[source.cell][self.digests[place]]
            for place, source in self.sources.items()
            if self.digests[place] in held[source.cell]
        }

    def under(self, rope_digest: str | None) -> bool:
        """Whether all of it was computed under this table."""
        return all(source.records[0].rope_digest == rope_digest for source in self.sources.values())


class Reusable(NamedTuple):
    """What a run folder has for work that is to be done."""

    reused: dict[str, Reused]
    """By cell id; cells of which nothing is there are left out."""
    notes: list[str]
    """What a user should know before the start: what is taken, and why some of what is stored is of no use."""


def wholly_taken(records: Sequence[Record]) -> bool:
    """Whether no pass was made for a cell."""
    counts = records[0].provenance.taken_from or {}
    return sum(counts.values()) == records[0].n and bool(counts)


def find_reusable(plan: Plan, work: Sequence[Work], store: Store, *, fresh: bool = False) -> Reusable:
    """Looks for windows or samples of some work of a plan in the cells of a run folder; with `fresh` there are none.

    Cells of a server are left out: nothing proves that the same model still answers there.
    """
    if fresh:
        return Reusable({}, [])
    wanted = [
        (one, cell)
        for one in work
        if isinstance(one, InParts)
        for cell in one.cells
        if not capabilities(cell.backend).remote
    ]
    stored = list(_in_parts(store)) if wanted else []
    if not stored:
        return Reusable({}, [])
    (selected_by,) = {cell.selected_by for _, cell in wanted}
    by_settings = _by_settings(stored, selected_by)
    reused = {}
    for one, cell in wanted:
        if sources := by_settings.get(_settings(cell, selected_by)):
            try:
                digests = one.parts(cell)
            except OSError:  # a document went away: the cell's own passes will say so
                continue
            places = _places(digests, sources, store)
            if places:
                reused[cell.id] = Reused(digests=digests, sources=places)
    notes = []
    if reused:
        taken = sum(len(one.sources) for one in reused.values())
        total = sum(len(one.digests) for one in reused.values())
        notes.append(
            f"{taken:,} of {total:,} {wanted[0][1].part}s of {count(len(reused), 'cell')} are taken from other cells "
            f"that are stored in {store.path}; only what is missing is computed (--fresh computes all)"
        )
    short = [cell for _, cell in wanted if cell.id not in reused or not reused[cell.id].whole]
    return Reusable(reused, notes + (_why_not(plan, short, reused, stored) if short else []))


def _by_settings(stored: Iterable[StoredCell], but: Container[str]) -> dict[str, list[StoredCell]]:
    """Stored cells that have the same settings `but` these, what was computed last first."""
    found: dict[str, list[StoredCell]] = defaultdict(list)
    for one in sorted(stored, key=lambda one: one.records[0].provenance.date, reverse=True):
        found[_settings(one.records[0], but)].append(one)
    return found


def _places(digests: Sequence[str], sources: Sequence[StoredCell], store: Store) -> dict[int, StoredCell]:
    """Which of the stored cells holds each window or sample, where one does, all of them under one table."""
    found: dict[int, StoredCell] = {}
    for source in sources:
        if len(found) == len(digests):
            break
        if source.records[0].rope_digest != sources[0].records[0].rope_digest:
            continue
        held = _parts(source, store)
        found |= {place: source for place, one in enumerate(digests) if one in held and place not in found}
    return found


def _in_parts(store: Store) -> Iterator[StoredCell]:
    """Finished cells of a run folder whose windows or samples others can take."""
    for cell in store.cells():
        if cell.status == "ok" and cell.with_artefact and cell.artefact is not None and cell.artefact.parts is not None:
            yield cell


def _parts(source: StoredCell, store: Store) -> Mapping[str, Any]:
    """Digest → what the model gave, of a stored cell."""
    assert source.artefact is not None and source.artefact.parts is not None
    found = store.artefact(source.artefact, source.cell)
    return {} if found is None else source.artefact.parts(found)


def _settings(of: Cell | Record, but: Container[str]) -> str:
    """All that decides what the model gives for a window or sample, as text; `but` these fields and parameters."""
    fields = {name: getattr(of, name) for name in _FIELDS if name not in but}
    pe = of.pe if isinstance(of, Record) else of.pe.canonical
    left_out = {*FOR_READERS, *OUTCOMES}
    params = {name: value for name, value in of.params.items() if name not in left_out and name not in but}
    return canonical_json([fields, pe, params])


def computed_with(
    backend: Backend | None, reused: Reused | None, *, rope_digest: str | None, elapsed_s: float
) -> dict[str, Any]:
    """The fields of a cell's records that say what computed it, when and under which table.

    Args:
        backend: What made the passes; None where all of it was taken from stored cells.
        reused: What was taken from stored cells, if anything.
        rope_digest: Digest of the table that the backend holds.
        elapsed_s: Wall time of the passes.
    """
    counts = None if reused is None else reused.counts
    if backend is not None:
        return {
            "backend": backend.name,
            "dtype": backend.dtype,
            "rope_digest": rope_digest,
            "elapsed_s": round(elapsed_s, 3),
            "peak_memory_bytes": backend.peak_memory_bytes(),
            "provenance": provenance(backend.device, counts),
        }
    assert reused is not None
    own = reused.record
    now = provenance(own.provenance.device)
    return {
        "backend": own.backend,
        "dtype": own.dtype,
        "rope_digest": own.rope_digest,
        "elapsed_s": 0.0,
        "peak_memory_bytes": None,
        # Versions and commit are those of the code that computed the values.
        "provenance": dataclasses.replace(own.provenance, taken_from=counts, command=now.command, date=now.date),
    }


def _why_not(
    plan: Plan, cells: Sequence[Cell], reused: Mapping[str, Reused], stored: Sequence[StoredCell]
) -> list[str]:
    """Why stored cells don't serve, or not wholly: settings that follow from the longest length have changed."""
    follows = [one for one in cells[0].follows if plan.request.is_default(one.setting)]
    but = {*cells[0].selected_by, *(one.setting for one in follows)}
    by_settings = _by_settings(stored, but)
    subjects: dict[tuple[Follows, str, str], dict[str, None]] = defaultdict(dict)
    for cell in cells:
        newest = next((one.records[0] for one in by_settings.get(_settings(cell, but), [])), None)
        counts = reused[cell.id].counts if cell.id in reused else {}
        if newest is None or counts.get(newest.cell) == newest.n:  # it gives all that it has
            continue
        for one in follows:
            old, new = one.value(newest), one.value(cell)
            if old != new:
                subjects[one, old, new][one.subject(cell)] = None
    return [
        f"{', '.join(names)}: {one.says.format(old=old, new=new, flag=plan.request.flag(one.setting))}"
        for (one, old, new), names in subjects.items()
    ]
