"""Two runs compared: which settings differ, and how the same cells differ on the same tokens or samples.

Cells are the same where method, length, data or task, and protocol are. Everything else is a setting that may differ.
Where several cells of a run are the same in this sense (several models, factors or seeds), those are put together that
differ in the fewest settings.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError
from longeval.metrics.perplexity import PERPLEXITY
from longeval.report.collect import Collection, collect, subject_of
from longeval.report.compare import Compared, Found, compare, corrected, count_tested, how_tested
from longeval.report.document import (
    Block,
    Document,
    Paragraph,
    Prose,
    Row,
    Section,
    Table,
    TableCell,
    code,
    prose,
)
from longeval.report.numbers import MISSING, counted, format_factor
from longeval.report.settings import canonical
from longeval.report.tables import DASH, value_cell
from longeval.store.artefact import Artefact
from longeval.store.folder import StoredCell
from longeval.store.nll import NLL
from longeval.store.records import OUTCOMES, Record
from longeval.store.samples import SAMPLES
from longeval.values import format_length

_MODEL = (
    *("model", "weights", "quantization", "adapter", "adapter_name", "tokenizer", "native_length", "own_native_length"),
    *("theta", "head_dim", "shipped_rope", "scale_from", "layers", "bos", "prefix", "parse_special"),
)
_METHOD = ("factor", "pin_length", "rope_digest")
_COMPUTING = ("backend", "dtype", "attn", "batch_size", "base_url", "served_model")
_PROGRAM = ("longeval", "commit", "dirty", "device", "platform")

_GROUPS = ("model", "method", "what was asked", "computation", "program and machine")
"""Groups of settings in their order."""

_SHOWN_OUTCOMES = frozenset({"batch_size", "adapter_name"})
"""Parameters that decide no value, and that a reader of differences wants to know."""

_DIGEST_CHARACTERS = 12
_MAX_CHARACTERS = 40
"""More characters of a value than this are cut off in tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingChange:
    """A setting in which cells differ in the same way."""

    group: str
    name: str
    a: Any
    """Its value in the first run; None where it isn't recorded, which most often means its default."""
    b: Any
    cells: int
    """In how many of the cells that are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellChange:
    """The same cell in two runs."""

    a: Record
    """Of its main metric."""
    b: Record
    tells: str
    """What tells it from other cells of the same method, length and subject (`s=2`, `seed=1`); often empty."""
    compared: Compared

    @property
    def subject(self) -> str:
        """What was read or asked, how it is scored, and the metric."""
        where = f"{self.a.task}" if self.a.task is not None else f"{self.a.data}"
        return f"{where}, {self.a.protocol}" if self.a.protocol and self.a.task is None else where


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDiff:
    """What `longeval diff` finds."""

    runs: tuple[str, str]
    settings: tuple[SettingChange, ...]
    cells: tuple[CellChange, ...]
    only_a: tuple[Record, ...]
    """A record of each cell that only the first run has."""
    only_b: tuple[Record, ...]
    notes: tuple[str, ...]
    """What must be known of the run folders: damaged cells, unfinished requests."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; docs/guide.md describes them."""
        return {
            "runs": list(self.runs),
            "settings": [dataclasses.asdict(change) for change in self.settings],
            "cells": [_cell_json(change) for change in self.cells],
            "only_a": [record.cell for record in self.only_a],
            "only_b": [record.cell for record in self.only_b],
        }


def diff_runs(run_a: str, run_b: str) -> RunDiff:
    """Compares two run folders.

    Args:
        run_a: A run folder or an fsspec URL, or a local folder of run folders.
        run_b: The same of the run that is compared with it.

    Raises:
        LongEvalError: One is no run folder, has no cells, or they have no cell in common.
    """
    found = [collect([run], None) for run in (run_a, run_b)]
    cells = [_Cells(one) for one in found]
    pairs = list(_same_cells(*cells))
    if not pairs:
        holds = [f"{run} has {_methods_text(one)}" for run, one in zip((run_a, run_b), cells, strict=True)]
        raise LongEvalError(
            f"{run_a} and {run_b}: no cell in common (same method, length, data or task, and protocol)",
            f"{'; '.join(holds)}. `longeval report {run_a} {run_b} --pairs A:B` compares different methods.",
        )
    numbers = corrected([compare(a, b, cells[0].artefact(a), cells[1].artefact(b)) for a, b in pairs])
    tells = _tells([a for a, _ in pairs])
    with_pair = [{record.cell for record in side} for side in zip(*pairs, strict=True)]
    notes = [f"{run}: {note}" for run, one in zip((run_a, run_b), found, strict=True) for note in one.notes]
    return RunDiff(
        runs=(run_a, run_b),
        settings=tuple(_setting_changes(pairs)),
        cells=tuple(
            CellChange(a=a, b=b, tells=tells[a.cell], compared=compared)
            for (a, b), compared in zip(pairs, numbers, strict=True)
        ),
        only_a=tuple(record for record in cells[0].main if record.cell not in with_pair[0]),
        only_b=tuple(record for record in cells[1].main if record.cell not in with_pair[1]),
        notes=tuple(notes),
    )


class _Cells:
    """The cells of a run by their main records, older versions left out."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._kinds: dict[str, Artefact[Any] | None] = {cell.cell: cell.artefact for cell in collection.cells}
        self.main = [_main(cell) for cell in collection.cells if cell.cell not in collection.older]

    def artefact(self, record: Record) -> Found:
        """What a cell left, if it is token NLLs or samples."""
        kind = self._kinds[record.cell]
        if kind is NLL:
            return self._collection.nll(record.cell)
        return self._collection.samples(record.cell) if kind is SAMPLES else None

    def key(self, record: Record) -> tuple[object, ...]:
        """What makes a cell the same in two runs."""
        kind = self._kinds[record.cell]
        members = canonical(record.params.get("members"))
        regime = (record.params.get("regime"), record.params.get("augment"))
        return kind and kind.folder, subject_of(record), record.protocol, record.pe, record.length, members, regime


def _main(cell: StoredCell) -> Record:
    """The record of a cell's main metric."""
    primary = [record for record in cell.records if record.params.get("primary")]
    named = [record for record in cell.records if record.metric == PERPLEXITY.name]
    return (primary or named or list(cell.records))[0]


def _same_cells(cells_a: _Cells, cells_b: _Cells) -> Iterator[tuple[Record, Record]]:
    """The cells that both have, in the order of the first run."""
    by_key: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in cells_b.main:
        by_key[cells_b.key(record)].append(record)
    own: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in cells_a.main:
        own[cells_a.key(record)].append(record)
    for key, several in own.items():
        yield from _closest(several, by_key.get(key, []))


def _closest(several_a: Sequence[Record], several_b: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Puts those together that differ in the fewest settings, each once, in the order of a."""
    if len(several_a) == len(several_b) == 1:
        return [(several_a[0], several_b[0])]
    settings_a, settings_b = ([_settings(record) for record in several] for several in (several_a, several_b))
    places = itertools.product(range(len(several_a)), range(len(several_b)))
    taken: dict[int, int] = {}
    for a, b in sorted(places, key=lambda pair: len(_differing(settings_a[pair[0]], settings_b[pair[1]]))):
        if a not in taken and b not in taken.values():
            taken[a] = b
    return [(several_a[a], several_b[b]) for a, b in sorted(taken.items())]


# Settings.

_Settings = dict[tuple[str, str], Any]
"""(group, name) → value."""


def _settings(record: Record) -> _Settings:
    """Everything that may explain why a cell of another run has another value; what isn't set is left out."""
    params = {name: value for name, value in record.params.items() if name not in OUTCOMES - _SHOWN_OUTCOMES}
    method: dict[str, Any] = params.pop("method", None) or {}
    params.pop("members", None)
    flat = params | {f"{record.pe}.{name}": value for name, value in method.items()}
    flat |= {name: getattr(record, name) for name in ("model", "factor", "backend", "dtype", "rope_digest")}
    settings = {(_group(name, record.pe), name): value for name, value in flat.items()}
    made = record.provenance
    about = {"commit": made.commit, "dirty": made.dirty, "device": made.device, "platform": made.platform}
    settings |= {(_GROUPS[-1], name): value for name, value in (made.versions | about).items()}
    return {place: value for place, value in settings.items() if value is not None}


def _group(name: str, pe: str) -> str:
    if name in _MODEL:
        return _GROUPS[0]
    if name in _METHOD or name.startswith(f"{pe}."):
        return _GROUPS[1]
    return _GROUPS[3] if name in _COMPUTING or name.startswith(("vllm", "tensor_parallel")) else _GROUPS[2]


def _differing(a: _Settings, b: _Settings) -> list[tuple[str, str]]:
    return [place for place in dict.fromkeys([*a, *b]) if canonical(a.get(place)) != canonical(b.get(place))]


def _setting_changes(pairs: Sequence[tuple[Record, Record]]) -> Iterator[SettingChange]:
    """Differences of settings, by group and name, each way in which they differ with the number of its cells."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    values: dict[tuple[str, str, str, str], tuple[Any, Any]] = {}
    for record_a, record_b in pairs:
        a, b = _settings(record_a), _settings(record_b)
        for place in _differing(a, b):
            key = (*place, canonical(a.get(place)), canonical(b.get(place)))
            counts[key] += 1
            values[key] = a.get(place), b.get(place)
    known = [*_MODEL, *_METHOD, *_COMPUTING, *_PROGRAM]

    def order(key: tuple[str, str, str, str]) -> tuple[int, int, str]:
        group, name, *_ = key
        return _GROUPS.index(group), known.index(name) if name in known else len(known), name

    for key in sorted(counts, key=order):
        yield SettingChange(group=key[0], name=key[1], a=values[key][0], b=values[key][1], cells=counts[key])


def _tells(records: Sequence[Record]) -> dict[str, str]:
    """Cell id → in what it differs from others of the same method, length and subject; empty for the only one."""
    same: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        same[record.data, record.task, record.protocol, record.pe, record.length].append(record)
    found = {}
    for several in same.values():
        settings = [_settings(record) for record in several]
        names = dict.fromkeys(place for one in settings for place in one)
        differing = [place for place in names if len({canonical(one.get(place)) for one in settings}) > 1]
        legible = [place for place in differing if place[0] != _GROUPS[-1] and not _is_digest(settings[0].get(place))]
        for record, one in zip(several, settings, strict=True):
            parts = [f"{'s' if place[1] == 'factor' else place[1]}={_short(one.get(place))}" for place in legible[:3]]
            found[record.cell] = ", ".join(parts)
    return found


def _is_digest(value: Any) -> bool:
    text = str(value).removeprefix("sha256:")
    return len(text) >= 16 and set(text) <= set("0123456789abcdef")


def _short(value: Any) -> str:
    """A value for a table."""
    if value is None:
        return MISSING
    if _is_digest(value):
        return f"{str(value).removeprefix('sha256:')[:_DIGEST_CHARACTERS]}…"
    text = value if isinstance(value, str) else format_factor(value) if isinstance(value, float) else canonical(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _methods_text(cells: _Cells) -> str:
    """`none, yarn at 512, 1k of stdlib`."""
    methods = dict.fromkeys(record.pe for record in cells.main)
    lengths = sorted({record.length for record in cells.main})
    subjects = dict.fromkeys(subject_of(record)[1] for record in cells.main)
    return f"{', '.join(methods)} at {', '.join(map(format_length, lengths))} of {', '.join(subjects)}"


# What is shown.


def diff_document(diff: RunDiff, command: str) -> Document:
    """The comparison as a document of one section for settings and one for values."""
    blocks: list[Block] = [settings_table(diff)] if diff.settings else [Paragraph(text="No setting differs.")]
    values: list[Block] = [*value_tables(diff), Paragraph(text=counts_text(diff))]
    sections = (
        Section(title="Settings that differ", blocks=tuple(blocks)),
        Section(title="The same cells side by side", blocks=tuple(values)),
    )
    title = f"{diff.runs[0]} and {diff.runs[1]} compared"
    summary = prose("A is `{}`, B is `{}`. Made by `{}`.", *diff.runs, command)
    return Document(
        title=title, preface="", summary=summary, files=(), folder="", notes=diff.notes, sections=sections, records=()
    )


def settings_table(diff: RunDiff) -> Table:
    """Settings by group; a setting with very many different values has one line."""
    rows: list[Row] = []
    for group, changes in itertools.groupby(diff.settings, key=lambda change: change.group):
        rows.append(_row(group, "", "", "", is_heading=True))
        for name, same_name in itertools.groupby(changes, key=lambda change: change.name):
            rows += _setting_rows(name, list(same_name), len(diff.cells))
    return Table(columns=("setting", "A", "B", "cells"), rows=tuple(rows), left=3, title="Settings that differ")


_MAX_WAYS = 3
"""More ways than this in which a setting differs are only counted."""


def _setting_rows(name: str, changes: Sequence[SettingChange], num_cells: int) -> Iterator[Row]:
    total = sum(change.cells for change in changes)
    if len(changes) > _MAX_WAYS:
        yield _row(name, "different values", "different values", f"{total} of {num_cells}")
        return
    for change in changes:
        where = "all" if change.cells == num_cells else f"{change.cells} of {num_cells}"
        yield _row(name, _short(change.a), _short(change.b), where)


def _row(*texts: Prose, is_heading: bool = False) -> Row:
    return Row(cells=tuple(TableCell(text=text) for text in texts), is_heading=is_heading)


def value_tables(diff: RunDiff) -> Iterator[Table]:
    """One table for each data set or task."""
    num_tested = count_tested(change.compared for change in diff.cells)
    by_subject: dict[tuple[str, str], list[CellChange]] = defaultdict(list)
    for change in diff.cells:
        by_subject[change.subject, change.a.metric].append(change)
    for (subject, metric), changes in by_subject.items():
        yield _value_table(f"{subject}: {metric}", changes, num_tested)


def _value_table(title: str, changes: Sequence[CellChange], num_tested: int) -> Table:
    kinds = {change.compared.kind for change in changes}
    is_score = "sample" in kinds
    said = how_compared(num_tested, is_score=is_score) if kinds - {None} else ""
    last = "differ" if is_score else "largest"
    compared_on = "samples" if is_score else "tokens"
    return Table(
        columns=("method, length", "A", "B", "difference", compared_on, last),
        rows=tuple(_value_row(change) for change in changes),
        title=title,
        caption=f"{title}. {said}".rstrip(),
        notes=tuple(_value_notes(changes, is_score=is_score)),
    )


def how_compared(num_tested: int, *, is_score: bool) -> str:
    """How to read the differences; as `how_tested`."""
    difference = "score of B minus that of A" if is_score else "of B relative to A"
    text = f"Difference: {difference}, on what both scored, with the 95% interval."
    return f"{text} {how_tested(num_tested, is_score=is_score)}" if num_tested else text


def _value_row(change: CellChange) -> Row:
    compared = change.compared
    name = f"{change.a.pe} ({change.tells})" if change.tells else change.a.pe
    values = [value_cell(record, with_interval=False) for record in (change.a, change.b)]
    return Row(
        cells=(
            TableCell(text=code(name), note=format_length(change.a.length)),
            *values,
            _difference_cell(change),
            _shared_cell(compared),
            TableCell(text=_last_text(compared)),
        )
    )


def _difference_cell(change: CellChange) -> TableCell:
    compared = change.compared
    if compared.why_not:
        return dataclasses.replace(DASH, mark="†")
    text, interval = compared.shown()
    note = f"({said})" if (said := compared.p_text()) and not compared.is_identical else ""
    return TableCell(text=text, interval=interval, note=note, is_strong=compared.is_clear)


def _shared_cell(compared: Compared) -> TableCell:
    """The number of tokens or samples that were compared, with a mark where one of the two has more."""
    if compared.why_not:
        return DASH
    return TableCell(text=f"{compared.shared:,}", mark="‡" if compared.only_a or compared.only_b else "")


def _last_text(compared: Compared) -> str:
    if compared.why_not:
        return MISSING
    if compared.kind == "sample":
        return f"{compared.num_different:,}"
    if compared.is_identical:
        return "identical"
    return f"{compared.largest or 0.0:.2g}"


def _value_notes(changes: Sequence[CellChange], *, is_score: bool) -> Iterator[Prose]:
    reasons: dict[str, list[str]] = defaultdict(list)
    partly: list[str] = []
    for change in changes:
        where, compared = f"{change.a.pe} {format_length(change.a.length)}", change.compared
        if compared.why_not:
            reasons[compared.why_not].append(where)
        elif compared.only_a or compared.only_b:
            partly.append(f"{where} ({compared.only_a:,} and {compared.only_b:,})")
    if is_score:
        yield "differ: samples whose scores differ"
    elif len(changes) > sum(map(len, reasons.values())):
        yield "largest: largest absolute difference of a token's negative log-likelihood, nats"
    for why, places in reasons.items():
        yield f"† not paired, {why}: {', '.join(places)}"
    if partly:
        yield f"‡ left out of the difference, since only A or only B has them: {', '.join(partly)}"


def counts_text(diff: RunDiff) -> str:
    """How many cells both runs have, and which only one of them has."""
    identical = sum(change.compared.is_identical for change in diff.cells)
    also = f" ({identical:,} whose token values are identical)" if identical else ""
    parts = [f"{counted(len(diff.cells), 'cell')} in both{also}"]
    for name, only in (("A", diff.only_a), ("B", diff.only_b)):
        named = f" ({_names(only)})" if only else ""
        parts.append(f"{len(only):,} only in {name}{named}")
    return f"{'; '.join(parts)}."


def _names(records: Iterable[Record]) -> str:
    """`yarn 512, 1k; ntk 512`."""
    lengths: dict[str, list[str]] = defaultdict(list)
    for record in records:
        name = f"{record.pe} on {subject_of(record)[1]}"
        lengths[name] = list(dict.fromkeys([*lengths[name], format_length(record.length)]))
    return "; ".join(f"{name} {', '.join(found)}" for name, found in lengths.items())


def _cell_json(change: CellChange) -> dict[str, Any]:
    a, b, compared = change.a, change.b, change.compared
    names = ("pe", "length", "data", "task", "protocol", "metric")
    return {
        **{name: getattr(a, name) for name in names},
        "cell_a": a.cell,
        "cell_b": b.cell,
        "status_a": a.status,
        "status_b": b.status,
        "value_a": a.value,
        "value_b": b.value,
        **dataclasses.asdict(compared),
        "identical": compared.is_identical,
    }
