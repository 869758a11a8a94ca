"""The work of perplexity: cells that the same forward passes serve, the passes, and records from token values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from longeval.backends.base import Backend
from longeval.data.sources import Source
from longeval.data.tokens import Selection
from longeval.metrics import derived
from longeval.rope.base import RopeTable
from longeval.run.cell import Cell, Follows
from longeval.run.cost import Window
from longeval.run.host import Host
from longeval.run.reuse import computed_with
from longeval.run.setups import FOLLOWS_FACTOR
from longeval.run.study import Outcome, failed
from longeval.store.nll import NLL, TokenNll, window_digest
from longeval.studies.ppl.protocols import Protocol
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

Scored = dict[int, npt.NDArray[np.float32]]
"""Place of a window in its cell → the values of its scored tokens, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A data set as one model sees it."""

    source: Source
    selection: Selection
    min_tokens: int
    """Documents below it were skipped."""
    digests: dict[Window, str] = field(default_factory=dict)
    """Those of its windows that were asked for so far (`window_digest`): methods share windows."""


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

    def passes(self, host: Host | None = None) -> list[Window]:
        """The windows to run: for each, every cell's window of the same document and start is a beginning of it.

        Args:
            host: Knows what stored cells hold, which is not run; None: everything is.
        """
        reused = {} if host is None else host.reused
        return [longest for longest, _ in self._shared({name: one.sources for name, one in reused.items()})]

    def _shared(self, done: Mapping[str, Container[int]]) -> list[tuple[Window, list[tuple[PplCell, int]]]]:
        """The windows to run, each with the cells that it serves and the places of their windows.

        Args:
            done: Cell id → places of its windows that need not be run.
        """
        groups: dict[tuple[int, int], list[tuple[PplCell, int]]] = {}
        for cell in self.cells:
            for place, window in enumerate(cell.windows):
                if place not in done.get(cell.id, ()):
                    groups.setdefault((window.document, window.start), []).append((cell, place))
        return [
            (max((cell.windows[place] for cell, place in group), key=lambda one: one.stop), group)
            for group in groups.values()
        ]

    def parts(self, cell: Cell) -> list[str]:
        """See `InParts`."""
        assert isinstance(cell, PplCell)
        texts, known = self._texts(), self.corpus.digests
        for window in cell.windows:
            if window not in known:
                known[window] = str(window_digest(texts.window(window), window.context))
        return [known[window] for window in cell.windows]

    def _texts(self) -> Texts:
        return Texts(self.corpus.selection, joined=self.protocol.joined, prefix=self.model.prefix)

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`."""
        size = host.size(self.model)
        return [size.window_flops(window) for window in self.passes(host)]

    def without(self, ids: Container[str]) -> PplWork | None:
        """See `Work`."""
        cells = tuple(cell for cell in self.cells if cell.id not in ids)
        return dataclasses.replace(self, cells=cells) if cells else None

    def smaller(self) -> PplWork | None:
        """The cells of shorter lengths."""
        return self.without({cell.id for cell in self.cells if cell.length == self.longest})

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        return f"out of memory in a window of {self.longest} tokens: {reason}"

    def run(self, host: Host) -> Iterator[Outcome]:
        """Runs the passes, and says what they mean for each cell."""
        texts, backend = self._texts(), None
        scored = {cell.id: host.reused[cell.id].load(host.store) for cell in self.cells if cell.id in host.reused}
        if self._shared(scored):
            backend = host.backend(self.model)
            backend.reset_peak_memory()
            if self.static:  # an engine that starts with the table has the time it takes for itself
                backend.serve(self.table(self.longest), self.longest)
            scored = {cell.id: self._proven(cell, scored.get(cell.id, {}), host, backend) for cell in self.cells}
        methods = ",".join(dict.fromkeys(cell.pe.canonical for cell in self.cells))
        lengths = ",".join(dict.fromkeys(format_length(cell.length) for cell in self.cells))
        what = f"{methods} {lengths} · {self.model.name} on {self.corpus.source.name}"
        taken = {name: len(values) for name, values in scored.items()}
        started = time.perf_counter()
        if backend is not None:
            host.progress.stage(what, len(self._shared(scored)), "window")
            self._score(host, backend, texts, scored)
        elapsed_s = time.perf_counter() - started

        def outcome(cell: PplCell) -> Outcome:
            reused = host.reused[cell.id] if taken[cell.id] else None
            needed = None if taken[cell.id] == len(cell.windows) else backend
            digest = None if needed is None else self._digest(cell, needed)
            how = computed_with(needed, reused, rope_digest=digest, elapsed_s=elapsed_s)
            return _outcome(cell, scored[cell.id], texts, how)

        # All of them before the first is stored: a document that went away fails all its cells.
        yield from [outcome(cell) for cell in self.cells]

    def _proven(self, cell: PplCell, values: Scored, host: Host, backend: Backend) -> Scored:
        """What stored cells hold of a cell, if it was computed under the table that the model holds now."""
        needs_passes = 0 < len(values) < len(cell.windows)
        if needs_passes and not host.reused[cell.id].under(self._digest(cell, backend)):
            return {}
        return values

    def _score(self, host: Host, backend: Backend, texts: Texts, scored: dict[str, Scored]) -> None:
        """Runs all passes that are left and adds each cell's part to `scored`; a static table is served already."""
        served = 0
        for window, served_cells in self._shared(scored):
            if not self.static and served != window.length:
                served = window.length
                backend.serve(self.table(served), served)
            nll_S = backend.score(texts.window(window), window.context)
            for cell, place in served_cells:
                own = cell.windows[place]
                assert own.context == window.context
                scored[cell.id][place] = nll_S[: own.num_scored]
            cost = host.size(self.model).window_flops(window)
            host.progress.advance(window.length, cost, f"{window.num_scored} scored")

    def _digest(self, cell: PplCell, backend: Backend) -> str | None:
        """The digest of the table as the model holds it now, at the cell's length."""
        if not self.static:
            backend.serve(self.table(cell.length), cell.length)
        return backend.rope_digest(cell.length)


def _outcome(cell: PplCell, scored: Scored, texts: Texts, how: Mapping[str, Any]) -> Outcome:
    """Records of a cell's metrics from its token values; a value that is not finite makes it a failed one.

    Args:
        cell: The cell.
        scored: The values of all its windows.
        texts: What was scored.
        how: What computed it (`computed_with`).
    """
    nll, device = texts.token_nll(cell.windows, scored), how["provenance"].device
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

    def token_nll(self, windows: Sequence[Window], scored: Scored) -> TokenNll:
        """Joins what was scored window by window."""
        digests = [window_digest(self.window(window), window.context) for window in windows]
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
