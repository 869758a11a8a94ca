"""What a cell's passes gave, as records: values and intervals from token values, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import Backend
from longeval.metrics import derived
from longeval.metrics.perplexity import PERPLEXITY
from longeval.run.window import Window
from longeval.store.nll import NLL, TokenNll
from longeval.store.provenance import provenance
from longeval.store.records import Record, Status
from longeval.studies.ppl.cells import Cell
from longeval.studies.ppl.plan import Job
from longeval.studies.ppl.texts import Texts


@dataclass(kw_only=True, slots=True)
class Measured:
    """What a group's passes gave for one cell, window by window."""

    nlls: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """Token values of each window, nats."""
    windows: list[Window] = field(default_factory=list)
    """The cell's own windows, in the same order."""


class Outcome(NamedTuple):
    """What is stored of a cell."""

    records: list[Record]
    nll: TokenNll | None


def outcome(
    cell: Cell,
    job: Job,
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
        return Outcome([without_value(cell, job, "failed", reason, backend.device)], None)
    values = derived(NLL, nll, cell.protocol, cell.params)
    if not all(np.isfinite(value.value) for _, value in values):
        reason = f"the mean of its token values is {nll.mean(cell.protocol):.4g} nats, a perplexity beyond float64"
        return Outcome([without_value(cell, job, "failed", reason, backend.device)], None)
    common = _common(cell, job)
    measured_fields = {
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
    }
    how = next((value.how for _, value in values if value.how is not None), None)
    common |= measured_fields | {"params": common["params"] | {"ci": how}, "status": "ok"}
    return Outcome([value.record(metric.name, common) for metric, value in values], nll)


def without_value(cell: Cell, job: Job, status: Status, reason: str, device: str) -> Record:
    """The record of a cell that failed or was skipped."""
    return Record(
        metric=PERPLEXITY.name,
        value=None,
        status=status,
        error=reason,
        provenance=provenance(device),
        **_common(cell, job),
    )


def why_skipped(job: Job, cell: Cell) -> str:
    """Why a cell has nothing to score."""
    selection = job.corpus.selection
    if job.protocol.joined:
        return f"the stream has {sum(selection.lengths)} tokens, fewer than {cell.length}"
    return (
        f"no document of {cell.length} tokens among those of at least {job.corpus.min_tokens} "
        f"(longest looked at: {selection.longest_tokens})"
    )


def _common(cell: Cell, job: Job) -> dict[str, Any]:
    """The fields that a plan knows of a cell's record."""
    return {
        "cell": cell.id,
        "model": cell.model,
        "pe": cell.pe.canonical,
        "factor": cell.factor,
        "length": cell.length,
        "data": cell.data,
        "task": None,
        "protocol": cell.protocol,
        "params": cell.params,
        "backend": cell.backend,
        "dtype": cell.dtype,
        "skipped": cell.skipped,
    }
