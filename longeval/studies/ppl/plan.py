"""A request becomes cells with stable ids, and cells become work that shares forward passes.

Everything a request can have wrong is found here, before the first cell: names are looked up, documents are read and
tokenised, tables are built. Weights are not loaded.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.backends.base import Server, capabilities, check_request
from longeval.cache import cache_dir
from longeval.data.documents import Text
from longeval.data.sources import Source, open_source
from longeval.data.special import spelt_note
from longeval.data.tokens import TokenisedDocument, select, tokenise
from longeval.errors import LongEvalError
from longeval.metrics.perplexity import PERPLEXITY
from longeval.models.prepare import PreparedModel, prepare_all
from longeval.rope.build import MethodName
from longeval.run.cell import cell_id
from longeval.run.cost import Window, batch_size, memory_bytes, precision, windows_seconds
from longeval.run.examples import ShownInputs
from longeval.run.host import Host, Silent, by_engine
from longeval.run.overview import CellList, Overview, count, format_gib
from longeval.run.setups import (
    Setup,
    ask_server,
    check_pin,
    dtype_of,
    method_names,
    setting_notes,
    setups,
    usable_methods,
)
from longeval.run.study import Outcome, Plan, SkippedWork, Tell, Work
from longeval.store.folder import Store
from longeval.store.plan import PlannedRequest
from longeval.store.records import Record
from longeval.studies.ppl.keys import (
    Evaluated,
    KeyCell,
    KeyPlan,
    LongPplCell,
    asked_long_ppl,
    plan_keys,
    prepare_key_model,
)
from longeval.studies.ppl.long_ppl import outcomes
from longeval.studies.ppl.protocols import PROTOCOLS, Protocol, check_stride
from longeval.studies.ppl.request import PplRequest
from longeval.studies.ppl.texts import Kept, is_kept, keep_texts, kept_notes, room_of
from longeval.studies.ppl.work import DataSet, PplCell, PplWork
from longeval.values import format_duration, format_length

logger = logging.getLogger(__name__)

DEFAULT_STRIDE = 256
"""Tokens between windows where nothing else is asked for, as in YaRN's and LongLoRA's runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PplPlan(Plan):
    """A plan of perplexities."""

    cells: tuple[PplCell, ...]
    models: tuple[PreparedModel, ...]
    long_ppl: tuple[LongPplCell, ...] = ()
    """LongPPL of the cells, derived from what they leave."""
    texts: tuple[Kept, ...] = ()
    """The texts that the run folder keeps."""

    def planned(self) -> PlannedRequest:
        """See `Plan`: LongPPL stands last."""
        asked = Plan.planned(self)
        return dataclasses.replace(asked, cells=(*asked.cells, *(cell.planned() for cell in self.long_ppl)))

    def keep(self, store: Store) -> None:
        """See `Plan`: texts."""
        keep_texts(self.texts, store)

    def derived(self, records: Mapping[str, Sequence[Record]], store: Store) -> Iterator[Outcome]:
        """See `Plan`."""
        return outcomes(self.long_ppl, records, store)

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """See `Plan`."""
        sections: dict[str, list[tuple[str, ...]]] = {}
        for cell in self.cells:
            row = (
                cell.pe.canonical,
                "–" if cell.factor is None else f"{cell.factor:g}",
                format_length(cell.length),
                str(len({window.document for window in cell.windows})),
                str(cell.skipped),
                f"{len(cell.windows):,}",
                _how_much(cell, host, stored),
            )
            what = ": key tokens" if isinstance(cell, KeyCell) else ""
            sections.setdefault(f"{cell.model} on {cell.data}{what}", []).append(row)
        return Overview(
            columns=("method", "s", "length", "documents", "skipped", "windows", "stored"),
            words=frozenset({"method"}),
            sections=tuple(CellList(title=title, rows=tuple(rows)) for title, rows in sections.items()),
            costs=tuple(self._cost(host, model, left) for model in self.models),
        )

    def examples(self, number: int, store: Store) -> Iterator[ShownInputs]:
        """See `Plan`: the first windows of each model, data set and length."""
        works = {cell.id: work for work in self.work if isinstance(work, PplWork) for cell in work.cells}
        alike: dict[tuple[str, str | None, int], list[PplCell]] = {}
        for cell in self.cells:  # methods differ in nothing that decides the windows
            if isinstance(cell, KeyCell):
                continue
            alike.setdefault((cell.model, cell.data, cell.length), []).append(cell)
        for (model, data, length), cells in alike.items():
            if cells[0].id in works:
                yield works[cells[0].id].examples(cells, number, store)
            else:
                logger.info("%s on %s at %s: has no window to show", model, data, format_length(length))

    def _cost(self, host: Host, model: PreparedModel, left: Sequence[Work]) -> str:
        """What is left to do with a model."""
        own = [work for work in left if not isinstance(work, PplWork) or work.model is model]
        cells = [cell for work in own for cell in work.cells if cell.model == model.name]
        passes = [
            one for work in left if isinstance(work, PplWork) and work.model is model for one in work.passes(host)
        ]
        windows = [window for one in passes for window in one]
        chosen = capabilities(self.request.backend)
        most = max(map(len, passes), default=1)
        how = f"{count(len(passes), 'forward pass')}{f' of up to {most} windows' if most > 1 else ''}"
        if "batch_size" not in chosen.heeds:  # an engine decides by itself which windows share a pass
            how = count(len(windows), "window")
        said = (
            f"{model.name} ({precision(self.request, model)}): {count(len(cells), 'cell')} in {how}, "
            f"{sum(window.length for window in windows):,} tokens"
        )
        # What an engine or a server takes, only it knows; without passes no model is loaded.
        if not chosen.estimates or not passes:
            return said
        size = host.size(model)
        memory = max(memory_bytes(model, size, one[0].length, batch=len(one)) for one in passes)
        duration = format_duration(windows_seconds(model, size, windows))
        return f"{said}; estimated {duration} and {format_gib(memory)}"


def _how_much(cell: PplCell, host: Host, stored: Container[str]) -> str:
    """Whether a cell is stored, or how many of its windows are."""
    if cell.id in stored:
        return "yes"
    return f"{len(host.reused[cell.id].sources):,} windows" if cell.id in host.reused else "–"


def plan_ppl(request: PplRequest, tell: Tell | None = None, *, dry_run: bool = False) -> PplPlan:
    """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it.

    Args:
        request: What was asked.
        tell: Told what is being done; None: nobody.
        dry_run: Whether this is only to be shown: no code of models runs.
    """
    tell = tell or Silent()
    check_request(request)
    protocol = PROTOCOLS.lookup(request.protocol)
    if request.stride is not None and not protocol.strided:
        strided = [name for name, other in PROTOCOLS.items() if other.strided]
        raise LongEvalError(
            f"--stride {request.stride}: would be ignored under --protocol {request.protocol}",
            f"Leave it out, or use --protocol {' or '.join(strided)}.",
        )
    asked = asked_long_ppl(request, protocol)
    names = method_names(request.pe, request.pe_args, request.factor)
    request, server = ask_server(request)
    if server is not None:
        longest = request.lengths[-1]
        what = f"a window of {longest} tokens takes {longest + 1} there, since a server generates one at least"
        server.check_room(longest, longest + 1, what)
    with _data_flag():
        opened = []
        for name in request.data:
            tell.preparing(f"reading {name}")
            opened.append(open_source(name, text_field=request.text_field))
    sources = list({source.name: source for source in opened}.values())  # two aliases are one data set
    models = prepare_all(request, capabilities(request.backend), tell.preparing, dry_run=dry_run)
    key_model = None if asked is None else prepare_key_model(request, tell.preparing, dry_run=dry_run)
    request, names, notes = usable_methods(request, names, models)
    check_pin(request, names, models)
    if server is not None:
        server.check_reads([model.tokenizer for model in models], scores=True)
    cells: list[PplCell] = []
    work: list[PplWork] = []
    skipped: list[SkippedWork] = []
    evaluated: list[Evaluated] = []
    notes += [source.note for source in sources if source.note is not None]
    kept: list[Kept] = []
    room = room_of(request, sources)
    for model in models:
        _check_prefix(request, model)
        check_stride(protocol, stride_of(request), request.lengths[0], len(model.prefix))
        corpora = [_corpus(source, request, model, tell, room) for source in sources]
        _check_lengths(request, protocol, model, corpora)
        notes += _notes(request, names, model, corpora, server)
        for corpus in corpora:
            alone = [_alone(request, protocol, model, corpus, setup) for setup in setups(request, model, names)]
            cells += [one.cells[0] for one in alone]
            if is_kept(request, corpus.source):
                kept.append(Kept(model.tokenizer_digest, corpus.selection, corpus.texts, room))
                notes += kept_notes(kept[-1], corpus.source.name)
            evaluated.append(Evaluated(model, corpus, tuple(one.cells[0] for one in alone)))
            work += [_batched(request, one) for one in together([one for one in alone if one.cells[0].windows])]
            skipped += [
                SkippedWork(cells=one.cells, reason=_why_skipped(one)) for one in alone if not one.cells[0].windows
            ]
    keys = KeyPlan([], [], [])
    if asked is not None and key_model is not None:
        keys = plan_keys(request, asked, key_model, evaluated, tell)
        models.append(key_model)
        cells += [one.cells[0] for one in keys.work]
        work = [*(_batched(request, one) for one in keys.work), *work]  # first, so that a killed run keeps them
    if capabilities(request.backend).one_table:
        work = by_engine(work, lambda one: (one.model, one.table(one.longest)))
    return PplPlan(
        request=request,
        cells=tuple(cells),
        work=(*work, *skipped),
        notes=(*notes, *keys.notes),
        models=tuple(models),
        long_ppl=tuple(keys.cells),
        texts=tuple(kept),
    )


def stride_of(request: PplRequest) -> int:
    """Tokens between windows, as asked or 256."""
    return DEFAULT_STRIDE if request.stride is None else request.stride


def together(alone: Sequence[PplWork]) -> list[PplWork]:
    """Puts each cell, given as work of its own on one model and data set, to the first work that can serve it."""
    work: list[PplWork] = []
    for new in alone:
        for index, one in enumerate(work):
            if one.serves(new):
                cells = sorted((*one.cells, *new.cells), key=lambda cell: cell.length)
                work[index] = dataclasses.replace(one, cells=tuple(cells))
                break
        else:
            work.append(new)
    return work


def _batched(request: PplRequest, work: PplWork) -> PplWork:
    """The work with the number of windows that share a pass, as asked or as is faster."""
    if request.batch_size is not None:
        return dataclasses.replace(work, batch_size=request.batch_size)
    chosen = capabilities(request.backend)
    most = batch_size(work.model, work.longest) if "batch_size" in chosen.heeds else chosen.windows_at_once
    return dataclasses.replace(work, batch_size=most)


def _alone(request: PplRequest, protocol: Protocol, model: PreparedModel, corpus: DataSet, setup: Setup) -> PplWork:
    """The work of one cell: one method and length on one data set."""
    selection, lengths = corpus.selection, corpus.selection.lengths
    windows = tuple(protocol.windows(lengths, setup.length, stride_of(request), len(model.prefix)))
    scored = len({window.document for window in windows})
    too_short = 0 if protocol.joined and windows else len(lengths) - scored
    params = setup.params | {
        "stride": stride_of(request) if protocol.strided else None,
        "min_tokens": corpus.min_tokens,
        "data_digest": selection.digest,
        "data_origin": corpus.source.origin,
        **({"without_text": selection.without_text} if selection.without_text else {}),
    }
    fields: dict[str, Any] = {
        "model": model.name,
        "factor": setup.factor,
        "length": setup.length,
        "data": corpus.source.name,
        "protocol": protocol.name,
        "backend": request.backend,
        "dtype": dtype_of(request, model),
        "skipped": selection.skipped + too_short,
    }
    cell = PplCell(
        id=cell_id("ppl", fields | {"pe": setup.pe.canonical}, params),
        pe=setup.pe,
        params=params,
        windows=windows,
        truncated=_truncated(protocol, lengths, windows),
        metric=PERPLEXITY.name,
        **fields,
    )
    return PplWork(cells=(cell,), model=model, corpus=corpus, protocol=protocol, table=setup.table, static=setup.static)


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


def _why_skipped(work: PplWork) -> str:
    """Why a cell has nothing to score."""
    selection = work.corpus.selection
    if work.protocol.joined:
        return f"the stream has {sum(selection.lengths)} tokens, fewer than {work.longest}"
    return (
        f"no document of {work.longest} tokens among those of at least {work.corpus.min_tokens} "
        f"(longest looked at: {selection.longest_tokens})"
    )


@contextmanager
def _data_flag() -> Iterator[None]:
    """A complaint that names a file but no flag gets `--data` in front."""
    try:
        yield
    except LongEvalError as error:
        if error.problem.startswith("--"):
            raise
        raise LongEvalError(f"--data {error.problem}", error.remedy) from error


def _check_prefix(request: PplRequest, model: PreparedModel) -> None:
    """A window must have room for a token behind the prefix."""
    if request.lengths[0] > len(model.prefix):
        return
    raise LongEvalError(
        f"--lengths {request.lengths[0]}: has no room for a token behind the {len(model.prefix)} that the tokenizer of "
        f"{model.name} puts in front of a text",
        f"Ask for {len(model.prefix) + 1} or more, or leave them out with --no-bos.",
    )


def _corpus(source: Source, request: PplRequest, model: PreparedModel, tell: Tell, room: int) -> DataSet:
    """A data set's documents, tokenised for a model. `room`: most bytes of their text that are kept."""
    default_min = request.lengths[-1] if request.protocol == "prefix" else 2
    min_tokens = default_min if request.min_tokens is None else request.min_tokens
    docs = request.docs if request.docs is not None else source.default_docs or "all"
    looked_at = itertools.count(1)
    room = room if is_kept(request, source) else 0
    texts: dict[str, Text] = {}

    def tokenised(document: Text) -> TokenisedDocument:
        nonlocal room
        tell.preparing(f"{source.name}: tokenising documents for {model.name}", next(looked_at))
        found = tokenise(
            document, model.tokenizer, model.tokenizer_digest, cache_dir(), parse_special=request.parse_special
        )
        if found.num_tokens >= min_tokens and (request.key_model is not None or room > 0):
            texts[found.digest] = document
            room -= len(document.text)
        return found

    with _data_flag():
        selection = select(source.documents(), tokenised, min_tokens=min_tokens, docs=docs)
    for document in selection.documents:
        if model.unembedded:
            model.check_embedded([document.tokens()], f"--data {source.name}: {document.name}")
    return DataSet(source=source, selection=selection, min_tokens=min_tokens, texts=texts)


def _check_lengths(request: PplRequest, protocol: Protocol, model: PreparedModel, corpora: Sequence[DataSet]) -> None:
    """Every length needs a document (or a stream) that fills a window, in at least one data set."""
    length, prefix = request.lengths[-1], len(model.prefix)
    if any(max(_texts(protocol, corpus), default=0) >= length - prefix for corpus in corpora):
        return
    found = "; ".join(_what_is_there(protocol, corpus) for corpus in corpora)
    raise LongEvalError(
        f"--lengths {format_length(length)} ({length} tokens): longer than every document of {found}",
        _how_to_fill(request, protocol, corpora, length - prefix, prefix),
    )


def _texts(protocol: Protocol, corpus: DataSet) -> Sequence[int]:
    """The tokens of each text that windows are cut from: of the documents, or of all of them joined."""
    return [sum(corpus.selection.lengths)] if protocol.joined else corpus.selection.lengths


def _what_is_there(protocol: Protocol, corpus: DataSet) -> str:
    """A data set and its longest text."""
    chosen = len(corpus.selection.documents)
    if protocol.joined:
        return f"{corpus.source.name} ({sum(corpus.selection.lengths)} tokens in {chosen} documents)"
    return (
        f"{corpus.source.name} (longest: {corpus.selection.longest_tokens} tokens; "
        f"{chosen} documents of at least {corpus.min_tokens})"
    )


def _how_to_fill(request: PplRequest, protocol: Protocol, corpora: Sequence[DataSet], payload: int, prefix: int) -> str:
    """The remedy where no text has `payload` tokens: only what would help with the documents that are there."""
    ways = []
    selections = [corpus.selection for corpus in corpora]
    most = max(sum(one.lengths) if protocol.joined else one.longest_tokens for one in selections)
    if not protocol.joined and most >= payload:  # it is there, and skipped
        ways.append(f"--min-tokens of {payload} or less")
    elif most >= 2:
        too_high = not protocol.joined and request.min_tokens is not None and request.min_tokens > most
        both = f" with --min-tokens of {most} or less" if too_high else ""
        ways.append(f"shorter lengths, --lengths of {most + prefix} or less{both}")
    if protocol.joined and any(one.skipped for one in selections):
        ways.append("lower --min-tokens")
    if any(len(one.selection.documents) == (request.docs or one.source.default_docs) for one in corpora):
        ways.append("more --docs")
    return f"Ask for {', or '.join([*ways, 'longer --data'])}."


def _notes(
    request: PplRequest,
    names: Sequence[MethodName],
    model: PreparedModel,
    corpora: Sequence[DataSet],
    server: Server | None,
) -> list[str]:
    """What a user should know of a model and of its documents before anything starts."""
    notes = [*model.notes, *setting_notes(request, names, model, server)]
    for corpus in corpora:
        chosen, skipped = len(corpus.selection.documents), corpus.selection.skipped
        if skipped:
            without = corpus.selection.without_text
            told = f", {without} of them without text (null or missing)" if without else ""
            notes.append(
                f"{corpus.source.name}: {chosen} documents; {skipped} of fewer than {corpus.min_tokens} tokens skipped"
                f"{told}"
            )
        if corpus.selection.spelt:
            notes.append(
                spelt_note(corpus.source.name, model.name, corpus.selection.spelt, parsed=request.parse_special)
            )
        if corpus.selection.identical:
            notes.append(
                f"{corpus.source.name}: {corpus.selection.identical} of {chosen} documents repeat another one; "
                "intervals over documents come out too narrow"
            )
    return list(dict.fromkeys(notes))
