"""What the evaluation of a PosGen cell gave, as records and curves, or why there is none."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from longeval.metrics import derived
from longeval.metrics.accuracy import ACCURACY_OOD
from longeval.request import PosGenRequest
from longeval.store.curves import CURVES, Curves
from longeval.store.provenance import provenance
from longeval.store.records import Record
from longeval.studies.posgen.cells import PosGenCell
from longeval.studies.posgen.evaluate import Evaluation
from longeval.studies.posgen.state import History, ValidLoss


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """How the passes of a cell went."""

    elapsed_s: float
    """Wall time of this run's part of the training and of the evaluation, each of all seeds that shared it."""
    peak_memory_bytes: int | None
    rope_digest: str
    """Of the table that was on in evaluation."""
    device: str
    """As records name it."""


class PosGenOutcome(NamedTuple):
    """What is stored of a cell."""

    records: list[Record]
    curves: Curves | None


def posgen_outcome(
    cell: PosGenCell,
    spec: PosGenRequest,
    evaluation: Evaluation,
    history: History,
    valid: tuple[ValidLoss, ...],
    circumstances: Circumstances,
) -> PosGenOutcome:
    """Records and curves of one cell; a loss that is not finite makes it a failed one.

    Args:
        cell: The cell.
        spec: Its request.
        evaluation: Of its seed, generation included.
        history: Of its training, which didn't diverge.
        valid: Its validation losses by epoch.
        circumstances: For the records.
    """
    if (reason := _not_finite(evaluation)) is not None:
        return PosGenOutcome([posgen_failure(cell, spec, reason, circumstances.device)], None)
    assert evaluation.generated_P is not None
    curves = Curves(
        positions=tuple(evaluation.positions_P.tolist()),
        accuracy=tuple(evaluation.accuracy_P.tolist()),
        loss=tuple(evaluation.loss_P.tolist()),
        generated=tuple(evaluation.generated_P.tolist()),
        epochs=tuple(loss.epoch for loss in valid),
        valid_loss_in_distribution=tuple(loss.in_distribution for loss in valid),
        valid_loss_ood=tuple(loss.ood for loss in valid),
    )
    common = _common(cell, spec) | {
        "params": cell.params | {"stacked": history.stacked},
        "n": evaluation.num_sequences,
        "status": "ok",
        "elapsed_s": round(circumstances.elapsed_s, 3),
        "peak_memory_bytes": circumstances.peak_memory_bytes,
        "rope_digest": circumstances.rope_digest,
        "provenance": provenance(circumstances.device),
    }
    records = [value.record(metric.name, common) for metric, value in derived(CURVES, curves, None, cell.params)]
    return PosGenOutcome(records, curves)


def posgen_failure(cell: PosGenCell, spec: PosGenRequest, reason: str, device: str) -> Record:
    """The record of a cell that failed."""
    return Record(
        metric=ACCURACY_OOD.name,
        value=None,
        protocol="teacher_forced",
        status="failed",
        error=reason,
        provenance=provenance(device),
        **_common(cell, spec),
    )


def _not_finite(evaluation: Evaluation) -> str | None:
    """Why a model's accuracies mean nothing, or None."""
    bad = np.flatnonzero(~np.isfinite(evaluation.loss_P))
    if len(bad):
        return f"the loss is {evaluation.loss_P[bad[0]]} at position {evaluation.positions_P[bad[0]]} of the test"
    return None


def _common(cell: PosGenCell, spec: PosGenRequest) -> dict[str, Any]:
    """The fields that a plan knows of a cell's record."""
    return {
        "cell": cell.id,
        "model": spec.model_name,
        "pe": cell.pe.canonical,
        "factor": cell.factor,
        "length": spec.test_length,
        "data": cell.data,
        "task": None,
        "params": cell.params,
        "backend": "posgen",
        "dtype": spec.dtype,
    }
