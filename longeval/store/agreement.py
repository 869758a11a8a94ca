"""Whether what is stored of a cell agrees: its records with each other, and with the artefact that they are made from.

Counts must be equal; means may differ in the last digits, since libraries and processors add up in another order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from longeval.plain import canonical_json
from longeval.store.curves import Curves, curves_from_json
from longeval.store.nll import TokenNll, token_nll_from_bytes
from longeval.store.records import Record
from longeval.store.samples import Sample, samples_from_jsonl

POSGEN = "posgen"
"""Backend of PosGen's records."""

_OF_CELL = ("cell", "model", "pe", "factor", "length", "data", "task", "backend", "dtype", "status")
"""Fields that all records of a cell share."""

_JOINED = "stream"
"""The protocol whose windows cross documents."""

_PROTOCOLS = ("prefix", "sliding", "sliding_window_mean", _JOINED)

_CLOSE = 1e-5
"""Relative difference that the order of additions in float32 may make; one wrong value in a thousand makes more."""


def check_records(records: Sequence[Record], cell: str, status: str) -> None:
    """Raises ValueError, saying what, where records aren't those of one cell.

    Args:
        records: All of its file.
        cell: Its id, as the file is named.
        status: The file's own.
    """
    if not records:
        raise ValueError("has no record")
    first = records[0]
    if (first.cell, first.status) != (cell, status):
        raise ValueError("its records are of another cell or status than the file")
    for name in _OF_CELL:
        if any(getattr(record, name) != getattr(first, name) for record in records):
            raise ValueError(f"its records differ in {name}")
    if len({record.metric for record in records}) < len(records):
        raise ValueError("a metric is there twice")
    if artefact_kind(first) == "nll" and any(record.protocol not in _PROTOCOLS for record in records):
        raise ValueError("its protocol is none that there is")


def artefact_kind(record: Record) -> str | None:
    """Folder of the artefact that a cell's records are made from; None for averages of groups, which have none."""
    if record.backend == POSGEN:
        return "curves"
    if record.task is None:
        return "nll"
    return "samples" if record.params.get("members") is None else None


def check_nll(nll: TokenNll, records: Sequence[Record]) -> None:
    """Raises ValueError, saying what, where perplexity's records aren't made from these token values."""
    nll.check()
    protocol = records[0].protocol or ""
    num_documents = len(set(nll.document_W.tolist()))
    for record in records:
        _same(record.n, len(nll.tokens_W), "windows")
        _same(record.tokens, len(nll.nll_S), "tokens")
        _near(record.nll_sum, float(nll.nll_S.sum(dtype="f8")), "nll_sum")
        if protocol != _JOINED:
            _same(record.documents, num_documents, "documents")
        if (record.documents or 0) > len(nll.documents):
            raise ValueError("its record has more documents than there are")
        if len(nll.tokens_W) and int((nll.context_W + nll.tokens_W).max()) > record.length:
            raise ValueError("a window is longer than the cell's length")
        if not len(nll.nll_S):
            raise ValueError("no token is scored")
        if record.metric == "perplexity":
            _near(record.value, math.exp(min(nll.mean(protocol), 709.0)), "perplexity")
        elif record.metric == "bits_per_byte":
            _near(record.value, nll.bits_per_byte(), "bits_per_byte")
        else:
            raise ValueError("its metric is not one of token values")


def check_samples(samples: Sequence[Sample], records: Sequence[Record]) -> None:
    """Raises ValueError, saying what, where a task's records aren't made from these samples."""
    clusters = {sample.cluster for sample in samples}
    for record in records:
        _same(record.documents, None if None in clusters else len(clusters), "documents")
        _same(record.truncated, sum(sample.truncated for sample in samples), "truncated samples")
        scores = [sample.scores[record.metric] for sample in samples if record.metric in sample.scores]
        if scores:
            _same(record.n, len(scores), "samples")
            _near(record.value, math.fsum(scores) / len(scores), record.metric)
        elif not samples or (record.n or 0) > len(samples):  # a metric over all samples together
            raise ValueError(f"its record of {record.metric} has other samples")


def check_curves(curves: Curves, records: Sequence[Record]) -> None:
    """Raises ValueError, saying what, where PosGen's records aren't made from these curves."""
    positions = curves.positions
    if not positions or list(positions) != list(range(positions[0], positions[-1] + 1)):
        raise ValueError("its positions are not in a row")
    if list(curves.epochs) != sorted(set(curves.epochs)):
        raise ValueError("its epochs are not in order")
    if not all(0 <= share <= 1 for share in (*curves.accuracy, *curves.generated)):
        raise ValueError("an accuracy is no share")
    for record in records:
        inside = max(0, record.params["train_length"] - positions[0])
        shares = {
            "accuracy_in_distribution": curves.accuracy[:inside],
            "accuracy_ood": curves.accuracy[inside:],
            "accuracy_generated": curves.generated[inside:],
        }.get(record.metric)
        if shares is not None:
            if not shares:
                raise ValueError(f"no position is of {record.metric}")
            _near(record.value, math.fsum(shares) / len(shares), record.metric)
            if record.n is not None:
                _same(record.tokens, record.n * len(shares), "tokens")


def digest(records: Sequence[Mapping[str, Any]], artefact: bytes) -> str:
    """SHA-256 of what a cell's file and its artefact hold."""
    return hashlib.sha256(canonical_json(records).encode() + artefact).hexdigest()


def check_artefact(kind: str, content: bytes, records: Sequence[Record]) -> None:
    """Raises ValueError, saying what, unless an artefact is whole and its records are made from it."""
    if kind == "nll":
        check_nll(token_nll_from_bytes(content), records)
    elif kind == "samples":
        check_samples(samples_from_jsonl(content), records)
    else:
        check_curves(curves_from_json(content), records)


def agree(kind: str, content: bytes, records: Sequence[Record]) -> bool:
    """Whether an artefact is what its records are made from."""
    try:
        check_artefact(kind, content, records)
    except ValueError:
        return False
    return True


def _same(recorded: int | None, found: int | None, what: str) -> None:
    """Raises ValueError unless a record counts what is there; what it doesn't count is not compared."""
    if recorded is not None and recorded != found:
        raise ValueError(f"its record counts {recorded} {what}, and there are {found}")


def _near(recorded: float | None, found: float | None, what: str) -> None:
    """Raises ValueError unless a record has the value that follows from what is there."""
    if recorded is None:
        return
    if found is None or not math.isclose(recorded, found, rel_tol=_CLOSE, abs_tol=1e-9):
        raise ValueError(f"its record says {what} {recorded:.6g}, which is not what it is made of")
