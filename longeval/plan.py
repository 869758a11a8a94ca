"""A spec becomes cells with stable ids, and cells become groups that share forward passes.

Everything a request can have wrong is found here, before the first cell: names are looked up, documents are read and tokenised,
tables are built. Weights are not loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.cache import cache_dir
from longeval.data.selection import Selection, select
from longeval.data.sources import Source, open_source
from longeval.data.tokens import tokenise
from longeval.errors import LongEvalError
from longeval.evals.perplexity import PROTOCOLS, Protocol, Window, check_stride
from longeval.models.prepare import PreparedModel, prepare
from longeval.records import SCHEMA_VERSION, canonical_json
from longeval.rope.base import METHODS, Geometry, RopeTable
from longeval.rope.build import MethodName, parse_method_name
from longeval.rope.parameters import make_parameters
from longeval.spec import PplSpec, format_length

ID_DIGITS = 16
"""Hex digits of a cell id: 64 bits, no collision to fear among a study's cells."""

BACKENDS = ("hf",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A data set as one model sees it."""

    source: Source
    selection: Selection
    min_tokens: int
    """Documents below it were skipped."""
    docs: int | str
    """At most this many were taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One (model, method, length, data, protocol): the unit of work, storage and resume."""

    id: str
    model: str
    pe: MethodName
    factor: float | None
    """None for methods that don't use it."""
    length: int
    data: str
    protocol: str
    params: dict[str, Any]
    """Everything else that decides the value, as the record shows it."""
    windows: tuple[Window, ...]
    """What is scored, in order; empty where no document is long enough."""
    skipped: int
    """Documents that were looked at and left out because they are too short."""
    truncated: int
    """Documents of which tokens after the last scored one are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells of one model and data set that the same forward passes serve: equal tables, and nested or equal windows."""

    cells: tuple[Cell, ...]
    """Ascending in length (all of one length unless the protocol's windows are nested)."""
    table: Callable[[int], RopeTable]
    """Window length → table."""
    static: bool
    """Whether that is the same table for every window of the group."""

    def passes(self) -> list[Window]:
        """The windows to run: for each, every cell's window of the same document and start is a beginning of it."""
        longest: dict[tuple[int, int], Window] = {}
        for cell in self.cells:
            for window in cell.windows:
                key = (window.document, window.start)
                if key not in longest or window.stop > longest[key].stop:
                    longest[key] = window
        return list(longest.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that one model has to do on one data set."""

    model: PreparedModel
    corpus: Corpus
    protocol: Protocol
    groups: tuple[Group, ...]

    @property
    def cells(self) -> Iterator[Cell]:
        """All cells, group by group."""
        return (cell for group in self.groups for cell in group.cells)

    def passes(self) -> list[Window]:
        """All windows to run, group by group."""
        return [window for group in self.groups for window in group.passes()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked request: what will be computed, in this order."""

    spec: PplSpec
    jobs: tuple[Job, ...]
    notes: tuple[str, ...]
    """What a user should know before it starts."""

    @property
    def cells(self) -> list[Cell]:
        """All cells of all jobs."""
        return [cell for job in self.jobs for cell in job.cells]


def plan_ppl(spec: PplSpec) -> Plan:
    """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it."""
    if spec.backend not in BACKENDS:
        raise LongEvalError(f"--backend {spec.backend}: unknown", f"Known: {', '.join(BACKENDS)}.")
    protocol = PROTOCOLS.lookup(spec.protocol)
    names = [parse_method_name(name) for name in spec.pe]
    _check_pe_args(spec, names)
    sources = [open_source(name, text_field=spec.text_field) for name in spec.data]
    models = [
        prepare(
            name,
            revision=spec.revision,
            native=spec.native,
            bos=spec.bos,
            dtype=spec.dtype,
            device=spec.device,
            device_map=spec.device_map,
            attn=spec.attn,
            trust_remote_code=spec.trust_remote_code,
        )
        for name in spec.model
    ]
    jobs, notes = [], []
    for model in models:
        check_stride(protocol, spec.stride, spec.lengths[0], model.bos)
        corpora = [_corpus(source, spec, model) for source in sources]
        _check_lengths(spec, protocol, model, corpora)
        notes += _notes(spec, model, corpora)
        for corpus in corpora:
            groups = _groups(spec, protocol, model, corpus, names)
            jobs.append(Job(model=model, corpus=corpus, protocol=protocol, groups=groups))
    return Plan(spec=spec, jobs=tuple(jobs), notes=tuple(notes))


def _check_pe_args(spec: PplSpec, names: Sequence[MethodName]) -> None:
    """Parameters of a method that is not asked for would be ignored: an error."""
    asked = {name.base for name in names}
    for base in spec.pe_args:
        METHODS.lookup(base)
        if base not in asked:
            raise LongEvalError(f"--pe-arg {base}.…: {base} is not among --pe {','.join(spec.pe)}", "Remove one.")


def _corpus(source: Source, spec: PplSpec, model: PreparedModel) -> Corpus:
    default_min = spec.lengths[-1] if spec.protocol == "prefix" else 2
    min_tokens = default_min if spec.min_tokens is None else spec.min_tokens
    docs = spec.docs if spec.docs is not None else source.default_docs or "all"
    selection = select(
        source.documents(),
        lambda document: tokenise(document, model.tokenizer, model.tokenizer_digest, cache_dir()),
        min_tokens=min_tokens,
        docs=docs,
    )
    return Corpus(source=source, selection=selection, min_tokens=min_tokens, docs=docs)


def _check_lengths(spec: PplSpec, protocol: Protocol, model: PreparedModel, corpora: Sequence[Corpus]) -> None:
    """Every length needs a document (or a stream) that fills a window, in at least one data set."""
    for length in spec.lengths:
        if any(_fillable(protocol, corpus, length - model.bos) for corpus in corpora):
            continue
        found = "; ".join(_what_is_there(protocol, corpus) for corpus in corpora)
        raise LongEvalError(
            f"--lengths {format_length(length)} ({length} tokens): longer than every document of {found}",
            "Ask for shorter lengths, lower --min-tokens, or use longer --data (such as stdlib).",
        )


def _fillable(protocol: Protocol, corpus: Corpus, payload: int) -> bool:
    lengths = corpus.selection.lengths
    return bool(lengths) and (sum(lengths) if protocol.joined else max(lengths)) >= payload


def _what_is_there(protocol: Protocol, corpus: Corpus) -> str:
    chosen = len(corpus.selection.documents)
    if protocol.joined:
        return f"{corpus.source.name} ({sum(corpus.selection.lengths)} tokens in {chosen} documents)"
    return (
        f"{corpus.source.name} (longest: {corpus.selection.longest_tokens} tokens; "
        f"{chosen} documents of at least {corpus.min_tokens})"
    )


def _notes(spec: PplSpec, model: PreparedModel, corpora: Sequence[Corpus]) -> list[str]:
    notes = list(model.notes)
    for corpus in corpora:
        chosen, skipped = len(corpus.selection.documents), corpus.selection.skipped
        if skipped:
            notes.append(
                f"{corpus.source.name}: {chosen} documents; {skipped} skipped with fewer than {corpus.min_tokens} tokens"
            )
        if corpus.selection.identical:
            notes.append(
                f"{corpus.source.name}: {corpus.selection.identical} of {chosen} documents repeat another one; "
                "intervals over documents come out too narrow"
            )
    return list(dict.fromkeys(notes))


def _factors(spec: PplSpec, native_length: int) -> dict[int, float]:
    """s for every length."""
    if spec.factor == "each":
        return {length: max(1.0, length / native_length) for length in spec.lengths}
    one = max(1.0, spec.lengths[-1] / native_length) if spec.factor is None else spec.factor
    return dict.fromkeys(spec.lengths, one)


def _groups(
    spec: PplSpec, protocol: Protocol, model: PreparedModel, corpus: Corpus, names: Sequence[MethodName]
) -> tuple[Group, ...]:
    """All cells of one model and data set, cells with the same passes together."""
    factors = _factors(spec, model.native_length)
    groups: list[Group] = []
    for name in names:
        for length in spec.lengths:
            geometry = dataclasses.replace(model.geometry, factor=factors[length])
            table = model.tables(name, geometry, spec.pe_args.get(name.base, {}))
            cell = _cell(spec, protocol, model, corpus, name, geometry, length)
            dependent = METHODS[name.base].length_dependent
            # Their tables change with n in one direction only: equal at both ends is equal in between.
            static = not dependent or table(length).same_as(table(2))
            _add(groups, Group(cells=(cell,), table=table, static=static), protocol)
    return tuple(groups)


def _add(groups: list[Group], new: Group, protocol: Protocol) -> None:
    """Puts a one-cell group into the first group that can serve it, or at the end."""
    length = new.cells[0].length
    for index, group in enumerate(groups):
        same_lengths = group.cells[0].length == length
        if not (new.static and group.static and (protocol.nested or same_lengths)):
            continue
        if group.table(length).same_as(new.table(length)):
            cells = sorted((*group.cells, *new.cells), key=lambda cell: cell.length)
            groups[index] = dataclasses.replace(group, cells=tuple(cells))
            return
    groups.append(new)


def _cell(
    spec: PplSpec,
    protocol: Protocol,
    model: PreparedModel,
    corpus: Corpus,
    name: MethodName,
    geometry: Geometry,
    length: int,
) -> Cell:
    method = METHODS[name.base]
    parameters = make_parameters(name.base, spec.pe_args.get(name.base, {}))
    lengths = corpus.selection.lengths
    windows = tuple(protocol.windows(lengths, length, spec.stride, model.bos))
    scored = len({window.document for window in windows})
    too_short = 0 if protocol.joined or not windows else len(lengths) - scored
    factor = geometry.factor if method.uses_factor else None
    params: dict[str, Any] = {
        "native_length": model.native_length,
        "theta": model.geometry.theta,
        "head_dim": model.geometry.head_dim,
        "method": dataclasses.asdict(parameters),
        "shipped_rope": model.shipped_rope,
        "stride": spec.stride if protocol.strided else None,
        "bos": model.bos,
        "min_tokens": corpus.min_tokens,
        "docs": corpus.docs,
        "seed": spec.seed,
        "attn": spec.attn,
        "weights": model.weights_digest,
        "tokenizer": model.tokenizer_digest,
        "data_digest": corpus.selection.digest,
        "data_origin": corpus.source.origin,
    }
    skipped = corpus.selection.skipped + (too_short if windows else len(lengths))
    decides = {
        "kind": "ppl",
        "schema": SCHEMA_VERSION,
        "model": model.name,
        "pe": name.canonical,
        "factor": factor,
        "length": length,
        "data": corpus.source.name,
        "protocol": protocol.name,
        "backend": spec.backend,
        "dtype": model.dtype,
        "skipped": skipped,
        # Where the texts were found and how many were allowed decides nothing once they are chosen.
        **{key: value for key, value in params.items() if key not in ("data_origin", "docs")},
    }
    return Cell(
        id=hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS],
        model=model.name,
        pe=name,
        factor=factor,
        length=length,
        data=corpus.source.name,
        protocol=protocol.name,
        params=params,
        windows=windows,
        skipped=skipped,
        truncated=_truncated(protocol, lengths, windows),
    )


def _truncated(protocol: Protocol, lengths: Sequence[int], windows: Sequence[Window]) -> int:
    """Documents of which tokens after the last scored one are left out."""
    if not windows:
        return 0
    if protocol.joined:
        last = max(window.stop for window in windows)
        return int(np.sum(np.cumsum(lengths) > last))
    ends: dict[int, int] = {}
    for window in windows:
        ends[window.document] = max(window.stop, ends.get(window.document, 0))
    return sum(end < lengths[document] for document, end in ends.items())
