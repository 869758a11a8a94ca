"""LongPPL of perplexity cells, derived without a model from their token NLLs and the key tokens of an evaluator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.metrics import derived
from longeval.metrics.long_ppl import LONG_PPL
from longeval.run.study import Outcome
from longeval.store.folder import Store
from longeval.store.keys import KEY_NLL, KEYS, KeyNll, inside, spans_digest
from longeval.store.records import Record, Status
from longeval.studies.ppl.keys import LongPpl, LongPplCell


@dataclass(kw_only=True, slots=True)
class Deriving:
    """Computes LongPPL of cells from what a run folder holds."""

    store: Store
    _spans: dict[tuple[str, LongPpl], list[npt.NDArray[np.int64]] | None] = field(default_factory=dict)
    """Id of the evaluator's cell, and thresholds → spans of its key tokens by document; None where none are stored."""
    _masks: dict[tuple[str, str, LongPpl], npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Id of the evaluator's cell, digest of a document, and thresholds → whether each of its tokens is a key token."""

    def outcome(self, cell: LongPplCell, records: Mapping[str, Sequence[Record]]) -> Outcome:
        """The outcome of a cell. `records`: those of the perplexity cell and of the evaluator's, by cell id."""
        source, of_keys = records[cell.of.id][0], records[cell.keys.id][0]
        about: dict[str, Any] = {
            "key": {
                "model": cell.keys.model,
                "weights": cell.keys.params["weights"],
                **dataclasses.asdict(cell.asked),
                "cell": cell.keys.id,
            },
            "perplexity_cell": cell.of.id,
        }
        base = dataclasses.replace(
            source, cell=cell.id, metric=LONG_PPL.name, params=source.params | about | {"ci": None}
        )
        if source.status != "ok":
            return _without_value(base, source.status, source.error or "")
        if of_keys.status != "ok":
            return _without_value(base, "failed", f"the key tokens failed: {of_keys.error}")
        try:
            nll, spans = self.store.nll(cell.of.id), self._spans_of(cell)
            if nll is None or spans is None:
                return _without_value(base, "failed", "the token values or the key tokens are no longer stored")
            key_W = [self._mask(cell, spans, int(document)) for document in nll.document_W]
        except OSError as error:  # a document went away
            return _without_value(base, "failed", str(error))
        ranges = zip(key_W, nll.start_W.tolist(), nll.tokens_W.tolist(), strict=True)
        key_S = np.concatenate([key_T[start : start + count] for key_T, start, count in ranges])
        found = KeyNll(nll=nll, key_S=key_S)
        about["key"]["spans"] = spans_digest(spans)
        return _outcome(dataclasses.replace(base, params=base.params | about), found)

    def _spans_of(self, cell: LongPplCell) -> list[npt.NDArray[np.int64]] | None:
        """The spans of the key tokens of all documents."""
        place = cell.keys.id, cell.asked
        if place not in self._spans:
            keys = self.store.artefact(KEYS, cell.keys.id)
            self._spans[place] = None if keys is None else keys.spans(cell.asked.alpha, cell.asked.beta)
        return self._spans[place]

    def _mask(self, cell: LongPplCell, spans: Sequence[npt.NDArray[np.int64]], number: int) -> npt.NDArray[np.bool_]:
        """Whether each token of a document of the evaluated model is a key token, shape (T,)."""
        document = cell.corpus.selection.documents[number]
        place = cell.keys.id, document.digest, cell.asked
        if place not in self._masks:
            ends_T = document.byte_ends()
            assert ends_T is not None  # refused by the plan
            nothing = np.zeros((0, 2), dtype=np.int64)
            own = spans[cell.places[document.digest]] if document.digest in cell.places else nothing
            self._masks[place] = inside(own, ends_T)
        return self._masks[place]


def _outcome(base: Record, found: KeyNll) -> Outcome:
    """The outcome of a cell with its mask."""
    without = (base.documents or 0) - found.num_documents
    values = derived(KEY_NLL, found, base.protocol, base.params)
    if not values:
        scored = len(found.nll.nll_S)
        return _without_value(base, "skipped", f"none of the {scored:,} scored tokens is a key token")
    ((_, value),) = values
    if not math.isfinite(value.value):
        return _without_value(base, "failed", f"the mean of its key tokens is {found.mean():.4g} nats, beyond float64")
    record = dataclasses.replace(
        base,
        value=value.value,
        ci_low=value.low,
        ci_high=value.high,
        nll_sum=float(found.nll.nll_S[found.key_S].sum(dtype=np.float64)),
        tokens=found.num_keys,
        documents=found.num_documents,
        params=base.params | {"ci": value.how, "without_keys": without},
    )
    return Outcome(records=(record,), found=found, artefact=KEY_NLL)


def _without_value(base: Record, status: Status, reason: str) -> Outcome:
    """The outcome of a cell that has no LongPPL."""
    gone: dict[str, Any] = {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "nll_sum": None,
        "tokens": None,
        "documents": None,
    }
    return Outcome(records=(dataclasses.replace(base, status=status, error=reason, **gone),), artefact=KEY_NLL)


def outcomes(cells: Sequence[LongPplCell], records: Mapping[str, Sequence[Record]], store: Store) -> Iterator[Outcome]:
    """LongPPL of all cells of a plan, in order."""
    deriving = Deriving(store=store)
    for cell in cells:
        yield deriving.outcome(cell, records)
