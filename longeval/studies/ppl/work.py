"""The work of perplexity: cells that the same forward passes serve, the passes, and records from token values."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import Backend, capabilities
from longeval.data.documents import Text
from longeval.data.sources import Source
from longeval.data.tokens import Selection
from longeval.metrics import derived
from longeval.rope.base import RopeTable
from longeval.run.cell import Cell, Follows
from longeval.run.cost import Window, memory_bytes
from longeval.run.examples import Found, InputPart, ShownInput, ShownInputs, stored
from longeval.run.host import Host
from longeval.run.overview import count
from longeval.run.reuse import Reused, computed_with
from longeval.run.setups import FOLLOWS_FACTOR
from longeval.run.study import Outcome, failed
from longeval.store.folder import Store
from longeval.store.nll import LARGEST_EXPONENT, NLL, TokenNll, window_digest
from longeval.studies.ppl.protocols import Protocol
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

Scored = dict[int, npt.NDArray[np.float32]]
"""Place of a window in its cell → the values of its scored tokens, nats."""


class Shared(NamedTuple):
    """A window to run, and what it serves."""

    window: Window
    """The longest of the windows below; each of them is a beginning of it."""
    served: list[tuple[PplCell, int]]
    """Cells, each with the place of its window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A data set as one model sees it."""

    source: Source
    selection: Selection
    min_tokens: int
    """Documents below it were skipped."""
    digests: dict[Window, str] = field(default_factory=dict)
    """Those of its windows that were asked for so far (`window_digest`): methods share windows."""
    texts: dict[str, Text] = field(default_factory=dict)
    """Digest of a chosen document → its text, where key tokens are to be found in it or the run folder keeps it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PplCell(Cell):
    """One (model, method, length, data, protocol)."""

    selected_by: ClassVar[tuple[str, ...]] = ("min_tokens", "data_digest", "seed")
    part: ClassVar[str] = "window"
    follows: ClassVar[tuple[Follows, ...]] = (
        Follows(
            setting="min_tokens",
            of="data",
            says="documents of fewer than {new} tokens are skipped now, since that is the longest length; stored cells "
            "scored those of at least {old}, so some of their windows serve nothing here. {flag} {old} keeps their "
            "documents",
        ),
        FOLLOWS_FACTOR,
    )

    windows: tuple[Window, ...]
    """What is scored, in order; empty where no document is long enough."""
    truncated: int
    """Documents of which tokens after the last scored one are left out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PplWork:
    """Cells of one model and data set that the same forward passes serve: equal tables, and nested or equal windows."""

    cells: tuple[PplCell, ...]
    """Ascending in length (all of one length unless the protocol's windows are nested); each has windows."""
    model: PreparedModel
    corpus: DataSet
    protocol: Protocol
    table: Callable[[int], RopeTable]
    """Window length → table."""
    static: bool
    """Whether that is the same table for every window."""
    batch_size: int = 1
    """Most windows that share a pass; all windows of a pass have one length."""

    @property
    def _texts(self) -> Texts:
        """The documents that windows are cut from."""
        return Texts(self.corpus.selection, joined=self.protocol.joined, prefix=self.model.prefix)

    @property
    def longest(self) -> int:
        """The longest length of a cell, tokens."""
        return self.cells[-1].length

    def serves(self, new: PplWork) -> bool:
        """Whether its passes, or longer ones, can serve the one cell of `new` too."""
        same_lengths = self.cells[0].length == new.longest
        if not (new.static and self.static and (new.protocol.nested or same_lengths)):
            return False
        return self.table(new.longest).same_as(new.table(new.longest))

    def passes(self, host: Host | None = None) -> list[list[Window]]:
        """The windows of each pass, which have one length; every cell's window is a beginning of one of them.

        Args:
            host: Knows what stored cells hold, which is not run; None: everything is.
        """
        reused = {} if host is None else host.reused
        shared = self._shared({name: one.sources for name, one in reused.items()})
        return [[one.window for one in together] for together in self._batches(shared)]

    def _shared(self, done: Mapping[str, Container[int]]) -> list[Shared]:
        """The windows to run. `done`: cell id → places of its windows that need not be run."""
        groups: dict[tuple[int, int], list[tuple[PplCell, int]]] = {}
        for cell in self.cells:
            for place, window in enumerate(cell.windows):
                if place not in done.get(cell.id, ()):
                    groups.setdefault((window.document, window.start), []).append((cell, place))
        return [
            Shared(max((cell.windows[place] for cell, place in group), key=lambda one: one.stop), group)
            for group in groups.values()
        ]

    def _batches(self, shared: Sequence[Shared]) -> list[list[Shared]]:
        """The windows of each pass: of one length, `batch_size` of them at the most."""
        passes, waiting = [], dict[int, list[Shared]]()
        for one in shared:
            alike = waiting.setdefault(one.window.length, [])
            alike.append(one)
            if len(alike) == self.batch_size:
                passes.append(waiting.pop(one.window.length))
        return [*passes, *waiting.values()]

    def parts(self, cell: Cell) -> list[str]:
        """See `InParts`."""
        assert isinstance(cell, PplCell)
        texts, known = self._texts, self.corpus.digests
        for window in cell.windows:
            if window not in known:
                known[window] = str(window_digest(texts.window(window), window.context))
        return [known[window] for window in cell.windows]

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`."""
        size = host.size(self.model)
        return [sum(map(size.window_flops, windows)) for windows in self.passes(host)]

    def without(self, ids: Container[str]) -> PplWork | None:
        """See `Work`."""
        cells = tuple(cell for cell in self.cells if cell.id not in ids)
        return dataclasses.replace(self, cells=cells) if cells else None

    def smaller(self) -> PplWork | None:
        """Half as many windows in a pass; where they are alone already, the cells of shorter lengths."""
        most = max(map(len, self.passes()))
        if most > 1:
            return dataclasses.replace(self, batch_size=most // 2)
        return self.without({cell.id for cell in self.cells if cell.length == self.longest})

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        return f"out of memory in a window of {self.longest} tokens: {reason}"

    def memory(self, host: Host) -> int | None:
        """See `Work`."""
        passes = self.passes(host)
        if not passes or not capabilities(self.cells[0].backend).estimates:
            return None
        size = host.size(self.model)
        return max(memory_bytes(self.model, size, one[0].length, batch=len(one)) for one in passes)

    def run(self, host: Host) -> Iterator[Outcome]:
        """Yields the cells that stored ones give wholly, then runs the passes of the others."""
        texts, scored = self._texts, self._taken(host)
        whole = [cell for cell in self.cells if len(scored[cell.id]) == len(cell.windows)]
        for cell in whole:
            how = computed_with(None, host.reused[cell.id], rope_digest=None, elapsed_s=0.0)
            yield self._finished(cell, scored[cell.id], texts, how, _batch_of_donors(host.reused[cell.id]))
        rest = self.without({cell.id for cell in whole})
        if rest is not None:
            yield from rest._compute(host, texts, scored)

    def _compute(self, host: Host, texts: Texts, scored: Mapping[str, Scored]) -> Iterator[Outcome]:
        """Runs passes for the windows of all cells that are missing in `scored`, and says what they mean for each."""
        backend = host.backend(self.model)
        backend.reset_peak_memory()
        if self.static:  # an engine that starts with the table has the time it takes for itself
            backend.serve(self.table(self.longest), self.longest)
        methods = ",".join(dict.fromkeys(cell.pe.canonical for cell in self.cells))
        lengths = ",".join(dict.fromkeys(format_length(cell.length) for cell in self.cells))
        what = f"{methods} {lengths} · {self.model.name} on {self.corpus.source.name}"
        taken = {cell.id for cell in self.cells if scored[cell.id]}
        passes = self._batches(self._shared(scored))
        host.progress.stage(what, len(passes), "window" if max(map(len, passes)) == 1 else "pass")
        started = time.perf_counter()
        self._score(host, backend, texts, passes, scored)
        elapsed_s = time.perf_counter() - started
        batches = dict.fromkeys(taken, 1)
        for together in passes:
            for served in {cell.id for one in together for cell, _ in one.served}:
                batches[served] = max(len(together), batches.get(served, 1))

        def outcome(cell: PplCell) -> Outcome:
            reused = host.reused[cell.id] if cell.id in taken else None
            how = computed_with(backend, reused, rope_digest=self._digest(cell, backend), elapsed_s=elapsed_s)
            batch = max(batches[cell.id], _batch_of_donors(reused))
            return self._finished(cell, scored[cell.id], texts, how, batch)

        # All of them before the first is stored: a document that went away fails all its cells.
        yield from [outcome(cell) for cell in self.cells]

    def _taken(self, host: Host) -> dict[str, Scored]:
        """By cell id, what stored cells hold of its windows, if it was computed under the table that is planned now."""
        taken: dict[str, Scored] = {}
        for cell in self.cells:
            reused = host.reused.get(cell.id)
            proven = reused is not None and reused.under(self.table(cell.length).digest(cell.length))
            taken[cell.id] = reused.load(host.store) if reused is not None and proven else {}
        return taken

    def _score(
        self,
        host: Host,
        backend: Backend,
        texts: Texts,
        passes: Sequence[Sequence[Shared]],
        scored: Mapping[str, Scored],
    ) -> None:
        """Runs the passes and adds each cell's part to `scored`; a static table is served already."""
        served = 0
        for together in passes:
            windows = [one.window for one in together]
            length = windows[0].length
            if not self.static and served != length:
                served = length
                backend.serve(self.table(served), served)
            for one, nll_S in zip(together, _score_together(backend, texts, windows), strict=True):
                for cell, place in one.served:
                    own = cell.windows[place]
                    assert own.context == one.window.context
                    scored[cell.id][place] = nll_S[: own.num_scored]
            cost = sum(map(host.size(self.model).window_flops, windows))
            said = f"{sum(window.num_scored for window in windows)} scored"
            detail = f"{len(windows)} windows, {said}" if len(windows) > 1 else said
            host.progress.advance(len(windows) * length, cost, detail)

    def _finished(self, cell: PplCell, scored: Scored, texts: Texts, how: Mapping[str, Any], batch: int) -> Outcome:
        """The outcome of a cell whose windows are all scored.

        Args:
            cell: The cell.
            scored: The values of all its windows.
            texts: What was scored.
            how: What computed it (`computed_with`).
            batch: The most windows that shared a pass. Records name it, but cells' ids don't: values of windows that
                share a pass are the same but for rounding. Engines that batch by themselves don't say what they do.
        """
        if batch > 1 and "batch_size" in capabilities(cell.backend).heeds:
            cell = dataclasses.replace(cell, params=cell.params | {"batch_size": batch})
        nll = texts.token_nll(cell.windows, scored, [int(digest) for digest in self.parts(cell)])
        return _outcome(cell, nll, texts, how)

    def examples(self, cells: Sequence[PplCell], number: int, store: Store) -> ShownInputs:
        """The first windows of cells that differ in their method alone, with their values as far as they are stored."""
        first, windows = cells[0], cells[0].windows
        found = [stored(cell, store, NLL) for cell in cells]
        return ShownInputs(
            title=(
                f"{first.data} at {format_length(first.length)} · {self.model.name}, {self.protocol.name}: "
                f"{min(number, len(windows))} of {count(len(windows), 'window')}"
            ),
            tokenizer=self.model.tokenizer,
            examples=tuple(self._example(window, self._texts, found) for window in windows[:number]),
        )

    def _example(self, window: Window, texts: Texts, found: Sequence[Found[TokenNll]]) -> ShownInput:
        """One window, split where scoring starts, and what each method gave its tokens."""
        tokens_T = texts.window(window)
        name = "stream" if self.protocol.joined else self.corpus.selection.documents[window.document].name
        return ShownInput(
            title=(
                f"{name}, tokens {window.start:,} to {window.stop - 1:,}: a window of {count(window.length, 'token')}, "
                f"scored from position {window.context:,} on"
            ),
            parts=(
                InputPart(name="context", tokens_T=tokens_T[: window.context]),
                InputPart(name="scored", tokens_T=tokens_T[window.context :]),
            ),
            answers=tuple((one.method, one.tell(lambda nll: _told(nll, window))) for one in found),
        )

    def _digest(self, cell: PplCell, backend: Backend) -> str | None:
        """The digest of the table as the model holds it now, at the cell's length."""
        if not self.static:
            backend.serve(self.table(cell.length), cell.length)
        return backend.rope_digest(cell.length)


def _told(nll: TokenNll, window: Window) -> str:
    """What a cell's token values say of one of its windows."""
    nll_S = nll.of_window(window.document, window.score_start)
    mean = float(nll_S.mean(dtype=np.float64))
    return f"{mean:.4f} nats a token, perplexity {math.exp(min(mean, LARGEST_EXPONENT)):.4g}"


def _score_together(backend: Backend, texts: Texts, windows: Sequence[Window]) -> list[npt.NDArray[np.float32]]:
    """Values of the scored tokens of each of several windows of one length, from one pass."""
    if len(windows) == 1:
        return [backend.score(texts.window(windows[0]), windows[0].context)]
    tokens_BT = np.stack([texts.window(window) for window in windows])
    return backend.score_batch(tokens_BT, [window.context for window in windows])


def _batch_of_donors(reused: Reused | None) -> int:
    """The most windows that shared a pass when what is taken from stored cells was computed."""
    records = [] if reused is None else [source.records[0] for source in reused.sources.values()]
    return max((record.params.get("batch_size", 1) for record in records), default=1)


def _outcome(cell: PplCell, nll: TokenNll, texts: Texts, how: Mapping[str, Any]) -> Outcome:
    """Records of the metrics of a cell's token values; a value that is not finite makes it a failed cell."""
    device = how["provenance"].device
    bad = np.flatnonzero(~np.isfinite(nll.nll_S))
    if len(bad):
        window = int(np.searchsorted(nll.offsets_W, bad[0], side="right")) - 1
        reason = (
            f"{len(bad)} of {len(nll.nll_S)} token values are not finite, the first at position "
            f"{nll.positions_S()[bad[0]]} of a window of {nll.documents[nll.document_W[window]]}"
        )
        return failed(cell, reason, device)
    values = derived(NLL, nll, cell.protocol, cell.params)
    if not all(np.isfinite(value.value) for _, value in values):
        assert cell.protocol is not None
        reason = f"the mean of its token values is {nll.mean(cell.protocol):.4g} nats, a perplexity beyond float64"
        return failed(cell, reason, device)
    drawn = next((value.how for _, value in values if value.how is not None), None)
    common = cell.fields() | {
        "n": len(nll.tokens_W),
        "nll_sum": float(nll.nll_S.sum(dtype=np.float64)),
        "tokens": len(nll.nll_S),
        "documents": texts.num_scored_documents(cell.windows),
        "truncated": cell.truncated,
        "params": cell.params | {"ci": drawn},
        "status": "ok",
        **how,
    }
    return Outcome(records=tuple(value.record(metric.name, common) for metric, value in values), found=nll)


class Texts:
    """Documents of a selection, apart or joined into one stream.

    Args:
        selection: The documents.
        joined: Whether windows count in the joined stream (protocol `stream`).
        prefix: Token ids in front of every window.
    """

    def __init__(self, selection: Selection, *, joined: bool, prefix: Sequence[int]) -> None:
        self._selection = selection
        self._joined = joined
        self._prefix_T = np.array(prefix, dtype=np.int32)
        self._ends = np.cumsum(selection.lengths)
        self._open: tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int64] | None] | None = None

    def window(self, window: Window) -> npt.NDArray[np.int32]:
        """Token ids of a window, prefix included, shape (T,); raises OSError if a document's tokens went away."""
        tokens_T, _ = self._text(window.document)
        part_T = tokens_T[window.start : window.stop]
        assert len(part_T) == window.stop - window.start
        assert window.prefix == len(self._prefix_T)
        return np.concatenate([self._prefix_T, part_T])

    def num_scored_documents(self, windows: Sequence[Window]) -> int:
        """Documents of which at least one token is scored."""
        if not self._joined:
            return len({window.document for window in windows})
        scored = np.zeros(len(self._ends), dtype=bool)
        for window in windows:
            first = int(np.searchsorted(self._ends, window.score_start, side="right"))
            last = int(np.searchsorted(self._ends, window.stop - 1, side="right"))
            scored[first : last + 1] = True
        return int(scored.sum())

    def token_nll(self, windows: Sequence[Window], scored: Scored, digests: Sequence[int]) -> TokenNll:
        """Joins what was scored window by window. `digests`: the `window_digest` of each."""
        return TokenNll(
            nll_S=np.concatenate([scored[place] for place in range(len(windows))]),
            tokens_W=np.array([window.num_scored for window in windows], dtype=np.int32),
            context_W=np.array([window.context for window in windows], dtype=np.int32),
            document_W=np.array([window.document for window in windows], dtype=np.int32),
            start_W=np.array([window.score_start for window in windows], dtype=np.int64),
            bytes_W=np.array([self._num_bytes(window) for window in windows], dtype=np.int64),
            documents=tuple(document.name for document in self._selection.documents),
            windows_W=np.array(digests, dtype=np.uint64),
        )

    def _num_bytes(self, window: Window) -> int:
        """UTF-8 bytes of a window's scored tokens, −1 if the tokenizer can't tell."""
        _, byte_ends_T = self._text(window.document)
        if byte_ends_T is None:
            return -1
        before = int(byte_ends_T[window.score_start - 1]) if window.score_start else 0
        return int(byte_ends_T[window.stop - 1]) - before

    def _text(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64] | None]:
        """Tokens and byte ends of a document, or of the stream; the last one stays open."""
        index = 0 if self._joined else index
        if self._open is None or self._open[0] != index:
            tokens_T, byte_ends_T = self._join() if self._joined else self._selection.documents[index].load()
            self._open = (index, tokens_T, byte_ends_T)
        return self._open[1], self._open[2]

    def _join(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64] | None]:
        """All documents one after the other, without separators."""
        loaded = [document.load() for document in self._selection.documents]
        tokens_T = np.concatenate([tokens_T for tokens_T, _ in loaded])
        byte_ends, total = [], 0
        for _, byte_ends_T in loaded:
            if byte_ends_T is None:
                return tokens_T, None
            if len(byte_ends_T):
                byte_ends.append(byte_ends_T + total)
                total += int(byte_ends_T[-1])
        return tokens_T, np.concatenate(byte_ends)
