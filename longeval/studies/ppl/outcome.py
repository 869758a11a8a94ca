"""What a cell's passes gave, as records: values and intervals from token values, or why there are none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import Backend
from longeval.run.window import Window
from longeval.stats.bootstrap import interval
from longeval.stats.units import bits_per_byte, mean_nll, resampling_units
from longeval.store.nll import TokenNll
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
    perplexity = float(np.exp(mean_nll(nll, cell.protocol)))
    if not np.isfinite(perplexity):
        reason = f"the mean of its token values is {mean_nll(nll, cell.protocol):.4g} nats, a perplexity beyond float64"
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
    spread = interval(resampling_units(nll, cell.protocol), seed=cell.params["seed"])
    drawn = {} if spread is None else dataclasses.asdict(spread)
    params = common["params"] | {"ci": {key: drawn[key] for key in drawn if key not in ("low", "high")} or None}
    common |= measured_fields | {"params": params, "status": "ok"}
    low, high = (None, None) if spread is None else (spread.low, spread.high)
    records = [Record(metric="perplexity", value=perplexity, ci_low=low, ci_high=high, **common)]
    bits = bits_per_byte(nll)
    if bits is not None:
        records.append(Record(metric="bits_per_byte", value=bits, **common))
    return Outcome(records, nll)


def without_value(cell: Cell, job: Job, status: Status, reason: str, device: str) -> Record:
    """The record of a cell that failed or was skipped."""
    return Record(
        metric="perplexity",
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
