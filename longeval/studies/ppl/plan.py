"""A spec becomes cells with stable ids, and cells become groups that share forward passes.

Everything a request can have wrong is found here, before the first cell: names are looked up, documents are read and
tokenised, tables are built. Weights are not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from longeval.backends.openai.plan import Server, ask_server, check_reads, check_room
from longeval.cache import cache_dir
from longeval.data.selection import select
from longeval.data.sources import Source, open_source
from longeval.data.special import spelt_note
from longeval.data.tokens import tokenise
from longeval.errors import LongEvalError
from longeval.models.prepare import PreparedModel, prepare_all
from longeval.request import PplRequest
from longeval.rope.build import MethodName
from longeval.run.setups import check_backend, check_pin, method_names, setting_notes
from longeval.run.window import Window
from longeval.store.plan import PlannedRequest
from longeval.studies.ppl.cells import Cell, Corpus, Group, build_groups, stride_of
from longeval.studies.ppl.protocols import PROTOCOLS, Protocol, check_stride
from longeval.values import format_length

T = TypeVar("T")


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

    spec: PplRequest
    """With the name of the model that is served, where a server was asked."""
    jobs: tuple[Job, ...]
    notes: tuple[str, ...]
    """What a user should know before it starts."""

    @property
    def cells(self) -> list[Cell]:
        """All cells of all jobs, in the order in which they were asked for."""
        return [cell for job in self.jobs for cell in self.cells_of(job)]

    def cells_of(self, job: Job) -> list[Cell]:
        """A job's cells in the order in which they were asked for."""
        order = {name: index for index, name in enumerate(self.spec.pe)}
        return sorted(job.cells, key=lambda cell: (order[cell.pe.canonical], cell.length))

    def planned(self) -> PlannedRequest:
        """Its cells as the run folder keeps them."""
        cells = tuple(cell.planned() for cell in self.cells)
        return PlannedRequest(command=self.spec.command, digest=self.spec.digest(), cells=cells)


def plan_ppl(spec: PplRequest, *, dry_run: bool = False) -> Plan:
    """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it.

    With `dry_run` no code of models runs.
    """
    check_backend(spec)
    protocol = PROTOCOLS.lookup(spec.protocol)
    if spec.stride is not None and not protocol.strided:
        strided = [name for name, other in PROTOCOLS.items() if other.strided]
        raise LongEvalError(
            f"--stride {spec.stride}: would be ignored under --protocol {spec.protocol}",
            f"Leave it out, or use --protocol {' or '.join(strided)}.",
        )
    names = method_names(spec)
    spec, server = ask_server(spec)
    _check_room(spec, server)
    opened = [_with_flag("--data", partial(open_source, name, text_field=spec.text_field)) for name in spec.data]
    sources = list({source.name: source for source in opened}.values())  # two aliases are one data set
    models = prepare_all(spec, dry_run=dry_run)
    check_pin(spec, names, models)
    check_reads(spec, [model.tokenizer for model in models], scores=True)
    jobs, notes = [], [source.note for source in sources if source.note is not None]
    for model in models:
        _check_prefix(spec, model)
        check_stride(protocol, stride_of(spec), spec.lengths[0], len(model.prefix))
        corpora = [_corpus(source, spec, model) for source in sources]
        _check_lengths(spec, protocol, model, corpora)
        notes += _notes(spec, names, model, corpora)
        for corpus in corpora:
            groups = build_groups(spec, protocol, model, corpus, names)
            jobs.append(Job(model=model, corpus=corpus, protocol=protocol, groups=groups))
    return Plan(spec=spec, jobs=tuple(jobs), notes=tuple(notes))


def _check_room(spec: PplRequest, server: Server | None) -> None:
    """A server generates at least one token after the window that it scores."""
    longest = spec.lengths[-1]
    what = f"a window of {longest} tokens takes {longest + 1} there, since a server generates one at least"
    check_room(server, longest, longest + 1, what)


def _with_flag(flag: str, work: Callable[[], T]) -> T:
    """What `work` returns; a complaint of it that names a file but no flag gets `flag` in front."""
    try:
        return work()
    except LongEvalError as error:
        if error.problem.startswith("--"):
            raise
        raise LongEvalError(f"{flag} {error.problem}", error.remedy) from error


def _check_prefix(spec: PplRequest, model: PreparedModel) -> None:
    """A window must have room for a token behind the prefix."""
    if spec.lengths[0] > len(model.prefix):
        return
    raise LongEvalError(
        f"--lengths {spec.lengths[0]}: has no room for a token behind the {len(model.prefix)} that the tokenizer of "
        f"{model.name} puts in front of a text",
        f"Ask for {len(model.prefix) + 1} or more, or leave them out with --no-bos.",
    )


def _corpus(source: Source, spec: PplRequest, model: PreparedModel) -> Corpus:
    default_min = spec.lengths[-1] if spec.protocol == "prefix" else 2
    min_tokens = default_min if spec.min_tokens is None else spec.min_tokens
    docs = spec.docs if spec.docs is not None else source.default_docs or "all"
    selection = _with_flag(
        "--data",
        lambda: select(
            source.documents(),
            lambda document: tokenise(
                document, model.tokenizer, model.tokenizer_digest, cache_dir(), parse_special=spec.parse_special
            ),
            min_tokens=min_tokens,
            docs=docs,
        ),
    )
    for document in selection.documents:
        if model.unembedded:
            model.check_embedded([document.tokens()], f"--data {source.name}: {document.name}")
    return Corpus(source=source, selection=selection, min_tokens=min_tokens)


def _check_lengths(spec: PplRequest, protocol: Protocol, model: PreparedModel, corpora: Sequence[Corpus]) -> None:
    """Every length needs a document (or a stream) that fills a window, in at least one data set."""
    for length in reversed(spec.lengths):
        if any(_fillable(protocol, corpus, length - len(model.prefix)) for corpus in corpora):
            continue
        found = "; ".join(_what_is_there(protocol, corpus) for corpus in corpora)
        raise LongEvalError(
            f"--lengths {format_length(length)} ({length} tokens): longer than every document of {found}",
            _how_to_fill(spec, protocol, corpora, length, len(model.prefix)),
        )


def _how_to_fill(spec: PplRequest, protocol: Protocol, corpora: Sequence[Corpus], length: int, prefix: int) -> str:
    """The remedy: only what would help with the documents that are there; `prefix` is in tokens."""
    chosen = [corpus.selection for corpus in corpora]
    ways = []
    if protocol.joined:
        most = max(sum(selection.lengths) for selection in chosen)
    else:
        most = max(selection.longest_tokens for selection in chosen)
    if not protocol.joined and most >= length - prefix:  # it is there, and skipped
        ways.append(f"lower --min-tokens to {length - prefix}")
    else:
        if most >= 2:
            too_high = not protocol.joined and spec.min_tokens is not None and spec.min_tokens > most
            both = f" and --min-tokens of {most} or less" if too_high else ""
            ways.append(f"ask for shorter lengths, --lengths of {most + prefix} or less{both}")
        if protocol.joined and any(selection.skipped for selection in chosen):
            ways.append("lower --min-tokens")
    if any(len(one.selection.documents) == (spec.docs or one.source.default_docs) for one in corpora):
        ways.append("give more --docs")
    ways.append("use longer --data" + ("" if "stdlib" in spec.data else " (such as stdlib)"))
    remedy = ", or ".join(ways)
    return f"{remedy[0].upper()}{remedy[1:]}."


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


def _notes(spec: PplRequest, names: Sequence[MethodName], model: PreparedModel, corpora: Sequence[Corpus]) -> list[str]:
    notes = list(model.notes)
    notes += setting_notes(spec, names, model)
    for corpus in corpora:
        chosen, skipped = len(corpus.selection.documents), corpus.selection.skipped
        if skipped:
            notes.append(
                f"{corpus.source.name}: {chosen} documents; {skipped} of fewer than {corpus.min_tokens} tokens skipped"
            )
        if corpus.selection.spelt:
            notes.append(spelt_note(corpus.source.name, model.name, corpus.selection.spelt, parsed=spec.parse_special))
        if corpus.selection.identical:
            notes.append(
                f"{corpus.source.name}: {corpus.selection.identical} of {chosen} documents repeat another one; "
                "intervals over documents come out too narrow"
            )
    return list(dict.fromkeys(notes))
