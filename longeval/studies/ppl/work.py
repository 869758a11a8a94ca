"""The work of perplexity: cells that the same forward passes serve, the passes, and records from token values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from longeval.backends.base import Backend
from longeval.data.selection import Selection
from longeval.data.sources import Source
from longeval.metrics import derived
from longeval.rope.base import RopeTable
from longeval.run.cell import Cell
from longeval.run.host import Host
from longeval.run.study import Outcome, failed
from longeval.run.window import Window
from longeval.store.nll import NLL
from longeval.store.provenance import provenance
from longeval.studies.ppl.protocols import Protocol
from longeval.studies.ppl.texts import Texts
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A data set as one model sees it."""

    source: Source
    selection: Selection
    min_tokens: int
    """Documents below it were skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PplCell(Cell):
    """One (model, method, length, data, protocol)."""

    windows: tuple[Window, ...]
    """What is scored, in order; empty where no document is long enough."""
    truncated: int
    """Documents of which tokens after the last scored one are left out."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What passes gave for one cell, window by window."""

    nlls: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """Token values of each window, nats."""
    windows: list[Window] = field(default_factory=list)
    """The cell's own windows, in the same order."""


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

    def passes(self) -> list[Window]:
        """The windows to run: for each, every cell's window of the same document and start is a beginning of it."""
        longest: dict[tuple[int, int], Window] = {}
        for cell in self.cells:
            for window in cell.windows:
                key = (window.document, window.start)
                if key not in longest or window.stop > longest[key].stop:
                    longest[key] = window
        return list(longest.values())

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`."""
        size = host.size(self.model)
        return [size.window_flops(window) for window in self.passes()]

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
        backend = host.backend(self.model)
        backend.reset_peak_memory()
        if self.static:  # an engine that starts with the table has the time it takes for itself
            backend.serve(self.table(self.longest), self.longest)
        methods = ",".join(dict.fromkeys(cell.pe.canonical for cell in self.cells))
        lengths = ",".join(dict.fromkeys(format_length(cell.length) for cell in self.cells))
        what = f"{methods} {lengths} · {self.model.name} on {self.corpus.source.name}"
        host.progress.stage(what, len(self.passes()), "window")
        texts = Texts(self.corpus.selection, joined=self.protocol.joined, prefix=self.model.prefix)
        started = time.perf_counter()
        measured = self.measure(host, backend, texts)
        elapsed_s = time.perf_counter() - started
        # All of them before the first is stored: a document that went away fails all its cells.
        yield from [
            outcome(
                cell, backend, texts, measured[cell.id], elapsed_s=elapsed_s, rope_digest=self.digest(cell, backend)
            )
            for cell in self.cells
        ]

    def measure(self, host: Host, backend: Backend, texts: Texts) -> dict[str, Measured]:
        """Runs all passes and hands each cell its part; a static table is served already."""
        measured = {cell.id: Measured() for cell in self.cells}
        wanted: dict[tuple[int, int], list[tuple[PplCell, Window]]] = {}
        for cell in self.cells:
            for window in cell.windows:
                wanted.setdefault((window.document, window.start), []).append((cell, window))
        served = 0
        for window in self.passes():
            if not self.static and served != window.length:
                served = window.length
                backend.serve(self.table(served), served)
            nll_S = backend.score(texts.window(window), window.context)
            for cell, own in wanted[window.document, window.start]:
                assert own.context == window.context and own.num_scored <= window.num_scored
                measured[cell.id].nlls.append(nll_S[: own.num_scored])
                measured[cell.id].windows.append(own)
            cost = host.size(self.model).window_flops(window)
            host.progress.advance(window.length, cost, f"{window.num_scored} scored")
        return measured

    def digest(self, cell: PplCell, backend: Backend) -> str | None:
        """The digest of the table as the model holds it now, at the cell's length."""
        if not self.static:
            backend.serve(self.table(cell.length), cell.length)
        return backend.rope_digest(cell.length)


def outcome(
    cell: PplCell,
    backend: Backend,
    texts: Texts,
    measured: Measured,
    *,
    elapsed_s: float,
    rope_digest: str | None,
) -> Outcome:
    """Records of a cell's metrics from its token values; a value that is not finite makes it a failed one."""
    nll = texts.token_nll(measured.windows, measured.nlls)
    bad = np.flatnonzero(~np.isfinite(nll.nll_S))
    if len(bad):
        window = int(np.searchsorted(nll.offsets_W, bad[0], side="right")) - 1
        reason = (
            f"{len(bad)} of {len(nll.nll_S)} token values are not finite, the first at position "
            f"{nll.positions_S()[bad[0]]} of a window of {nll.documents[nll.document_W[window]]}"
        )
        return failed(cell, reason, backend.device)
    values = derived(NLL, nll, cell.protocol, cell.params)
    if not all(np.isfinite(value.value) for _, value in values):
        assert cell.protocol is not None
        reason = f"the mean of its token values is {nll.mean(cell.protocol):.4g} nats, a perplexity beyond float64"
        return failed(cell, reason, backend.device)
    how = next((value.how for _, value in values if value.how is not None), None)
    common = cell.fields() | {
        "n": len(nll.tokens_W),
        "nll_sum": float(nll.nll_S.sum(dtype=np.float64)),
        "tokens": len(nll.nll_S),
        "documents": texts.num_scored_documents(measured.windows),
        "truncated": cell.truncated,
        "elapsed_s": round(elapsed_s, 3),
        "peak_memory_bytes": backend.peak_memory_bytes(),
        "rope_digest": rope_digest,
        "backend": backend.name,
        "dtype": backend.dtype,
        "provenance": provenance(backend.device),
        "params": cell.params | {"ci": how},
        "status": "ok",
    }
    return Outcome(records=tuple(value.record(metric.name, common) for metric, value in values), found=nll)
