"""A run under way: the one loaded model, and cells stored as soon as they are whole. `ppl` and `tasks` share it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from longeval.backends.base import Backend
from longeval.errors import LongEvalError
from longeval.plain import canonical_json
from longeval.request import HOW_ONLY, ModelRequest, Request, requests_from_yaml, requests_to_yaml
from longeval.rope.base import RopeTable
from longeval.store.folder import Store
from longeval.store.nll import TokenNll
from longeval.store.plan import PlannedRequest
from longeval.store.records import Record
from longeval.store.samples import Sample

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel


class Progress(Protocol):
    """Told how a run gets on."""

    def begin(self, costs: Sequence[float]) -> None:
        """The operations of each pass that is to be made."""
        ...

    def stage(self, what: str, num_passes: int, noun: str) -> None:
        """Passes over `what` start; `noun` is what one pass serves: window, sample."""
        ...

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """A pass over so many tokens is over."""
        ...

    def finished(self, record: Record) -> None:
        """A cell is stored."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run ends with."""

    records: tuple[Record, ...]
    """All records of the plan's cells, in the plan's order, stored before or computed now."""
    computed: int
    """Cells computed now."""
    reused: int
    """Cells that were stored already."""

    @property
    def failed(self) -> int:
        """Cells that failed."""
        return len({record.cell for record in self.records if record.status == "failed"})


Turn = TypeVar("Turn", bound=tuple[Any, ...])


def by_engine(turns: Sequence[Turn], engine: Callable[..., tuple[PreparedModel, RopeTable]]) -> list[Turn]:
    """Brings together what one engine can serve, otherwise in the given order.

    Args:
        turns: Pieces of work.
        engine: (what a turn consists of) → the model and the table that it needs.
    """
    engines: list[tuple[PreparedModel, RopeTable]] = []

    def number(turn: Turn) -> int:
        model, table = engine(*turn)
        for place, (known, held) in enumerate(engines):
            if known is model and held.same_as(table):
                return place
        engines.append((model, table))
        return len(engines) - 1

    return sorted(turns, key=number)


def backend_of(spec: ModelRequest) -> Callable[[PreparedModel], Backend]:
    """What loads a prepared model into the backend that a request names."""
    if spec.backend == "vllm":
        from longeval.backends.vllm.backend import VLLMBackend

        return functools.partial(
            VLLMBackend, length=spec.lengths[-1], args=spec.vllm_args, share_prefixes=spec.command == "tasks"
        )
    if spec.backend == "openai":
        return functools.partial(_server, spec)
    return load_backend


def _server(spec: ModelRequest, model: PreparedModel) -> Backend:
    """The server of a request, which the plan has asked before."""
    from longeval.backends.openai.backend import OpenAIBackend
    from longeval.backends.openai.key import own_key

    assert spec.base_url is not None
    return OpenAIBackend(
        base_url=spec.base_url,
        api_key=own_key(),
        model=spec.served_model,
        tokenizer=model.tokenizer,
    )


def load_backend(model: PreparedModel) -> Backend:
    """Loads a prepared model into the `hf` backend, and makes sure that its frequencies are what its config says."""
    from longeval.backends.hf.backend import HFBackend  # torch and transformers only once there is something to compute

    backend = HFBackend(model.load())
    for length in model.rope.shipped.probes():
        held, planned = backend.shipped.table(length), model.rope.shipped_table(length)
        same = held.inv_freq_F.shape == planned.inv_freq_F.shape and np.allclose(
            held.inv_freq_F, planned.inv_freq_F, rtol=1e-5, atol=0
        )
        if not same or abs(held.attention_factor - planned.attention_factor) > 1e-5:
            raise LongEvalError(
                f"--model {model.name}: its rotary embedding doesn't hold the frequencies that its configuration says",
                "Its RoPE is of a kind that longeval doesn't know; use a model of another family.",
            )
    return backend


def stored_requests(store: Store) -> list[dict[str, Any]]:
    """The requests in the folder's spec.yaml, none where it has no such file.

    Raises:
        LongEvalError: It is damaged, and could not be gone on with.
    """
    text, origin = store.read_text("spec.yaml"), f"{store.path}/spec.yaml"
    requests = [] if text is None else requests_from_yaml(text, origin=origin)
    try:
        canonical_json(requests)
    except (TypeError, ValueError):  # dates, sets, NaN: nothing that longeval wrote
        raise LongEvalError(f"{origin}: holds no requests", "Mend or remove it; cells stay.") from None
    return requests


def remember_request(store: Store, spec: ModelRequest | Request, planned: PlannedRequest) -> None:
    """Writes the request into the folder's spec.yaml and its cells into plan.json.

    It goes after those that are there, or in the place of one that asks for the same.
    """
    store.remember_plan(planned)
    requests = stored_requests(store)
    asked = spec.to_mapping()
    new = [asked if _what(one) == _what(asked) else one for one in requests]
    if asked not in new:
        new.append(asked)
    if canonical_json(new) != canonical_json(requests):
        store.write_text("spec.yaml", requests_to_yaml(new))


def _what(request: Mapping[str, Any]) -> str:
    """What a written request asks for, without how it is to be computed."""
    return canonical_json({name: value for name, value in request.items() if name not in HOW_ONLY})


@dataclass(kw_only=True, slots=True)
class Session:
    """One run under way: the loaded model, and the records so far."""

    store: Store
    progress: Progress
    spec: ModelRequest
    planned: PlannedRequest
    """Its cells, for the folder's plan.json."""
    load: Callable[[PreparedModel], Backend]
    under_way: bool
    """Whether results exist already, so that nothing may end the run any more."""
    records: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    """Of the cells computed now, by cell id."""
    _remembered: bool = False
    _loaded: tuple[PreparedModel, Backend] | None = None

    def backend(self, model: PreparedModel) -> Backend:
        """The loaded model; the one before it is let go first."""
        if self._loaded is None or self._loaded[0] is not model:
            self.close()
            self._loaded = (model, self.load(model))
        return self._loaded[1]

    def close(self) -> None:
        """Lets the loaded model go."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

    def keep(
        self, records: Sequence[Record], *, nll: TokenNll | None = None, samples: Sequence[Sample] | None = None
    ) -> None:
        """Stores a cell; the request goes before the first one."""
        self.remember()
        self.under_way = True
        self.store.save(records, samples if nll is None else nll)
        self.records[records[0].cell] = tuple(records)
        self.progress.finished(records[0])

    def remember(self) -> None:
        """Writes the request and its cells into the run folder; once, unless someone removed it."""
        if not self._remembered or not self.store.is_run_folder():
            remember_request(self.store, self.spec, self.planned)
            self._remembered = True
