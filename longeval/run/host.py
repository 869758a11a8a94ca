"""The host gives work what it needs: the loaded model, the run folder, progress, and objects that outlive one work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from longeval.backends.base import Backend, BackendError, capabilities
from longeval.errors import LongEvalError, WriteError
from longeval.request import ModelRequest
from longeval.rope.base import RopeTable
from longeval.store.folder import Store
from longeval.store.records import Record

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel
    from longeval.run.cost import ModelSize
    from longeval.run.reuse import Reused
    from longeval.run.study import Work

Kept = TypeVar("Kept")
OneWork = TypeVar("OneWork")


class Progress(Protocol):
    """Receives the progress of a run."""

    def note(self, text: str) -> None:
        """What a user should know before the first pass."""
        ...

    def begin(self, costs: Sequence[float]) -> None:
        """Called at the start with the operations of each pass of the run."""
        ...

    def stage(self, what: str, num_passes: int, noun: str, *, details: bool = False) -> None:
        """Passes over `what` start; `noun` is what one pass serves: window, sample; pass where it is several.

        With `details` what `advance` says of a pass belongs into the line of progress.
        """
        ...

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """Called after a pass, with its tokens and operations."""
        ...

    def finished(self, record: Record) -> None:
        """Called after a cell is stored."""
        ...

    def of_worker(self, name: str) -> Progress:
        """The progress of one of several workers, which counts in that of the run; only passes are told to it."""
        ...

    def end_worker(self, name: str) -> None:
        """Called when one of several workers has ended."""
        ...

    def seconds_left(self) -> float | None:
        """How much longer the run will take; None while nothing is known."""
        ...


class Silent:
    """A `Progress` and `Tell` that does nothing."""

    def note(self, text: str) -> None:
        """See `Tell` and `Progress`."""

    def preparing(self, what: str, done: int = 0, total: int = 0) -> None:
        """See `Tell`."""

    def begin(self, costs: Sequence[float]) -> None:
        """See `Progress`."""

    def stage(self, what: str, num_passes: int, noun: str, *, details: bool = False) -> None:
        """See `Progress`."""

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """See `Progress`."""

    def finished(self, record: Record) -> None:
        """See `Progress`."""

    def of_worker(self, name: str) -> Silent:
        """See `Progress`."""
        return self

    def end_worker(self, name: str) -> None:
        """See `Progress`."""

    def seconds_left(self) -> None:
        """See `Progress`."""


@dataclass(kw_only=True, slots=True, eq=False)
class Host:
    """The process that carries out work, with at most one loaded model."""

    store: Store
    progress: Progress
    load: Callable[[PreparedModel], Backend]
    """Loads a model."""
    fresh: bool = False
    """Whether stored results are ignored."""
    reused: Mapping[str, Reused] = field(default_factory=dict)
    """What other stored cells hold of those to compute, by cell id (`run.reuse`)."""
    before_write: Callable[[], None] = lambda: None
    """Work calls it before it writes a file other than a cell's into the run folder."""
    clear: Callable[[], None] = lambda: None
    """Removes what `--fresh` must not use, once. Executors call it before other processes write files."""
    claim: Callable[[Work], Work | None] = lambda work: work
    """The part of some work that this process may compute now (`run.leases`). Executors call it before they start."""
    alone: Callable[[str], AbstractContextManager[object]] = lambda what: nullcontext()
    """Keeps other processes out of a block of the same name, such as the training that several works need."""
    num_workers: Callable[[int], None] = lambda number: None
    """Executors with other processes say here how many of them compute."""
    device: str = ""
    """Name of the device in records; empty before anything is loaded."""
    _loaded: tuple[PreparedModel, Backend] | None = None
    _kept: dict[type[Any], Any] = field(default_factory=dict)
    _sizes: dict[str, ModelSize] = field(default_factory=dict)

    def backend(self, model: PreparedModel) -> Backend:
        """The backend of a model. It is loaded if needed, after the model before it was freed.

        Raises:
            BackendError: The model can't be loaded.
        """
        if self._loaded is None or self._loaded[0] is not model:
            self.close()
            try:
                self._loaded = (model, self.load(model))
            except (WriteError, BackendError):
                raise
            except LongEvalError as error:
                raise BackendError(error.problem, error.remedy) from error
            self.device = self._loaded[1].device
        return self._loaded[1]

    def size(self, model: PreparedModel) -> ModelSize:
        """The model's sizes, computed once."""
        from longeval.run.cost import model_size

        if model.name not in self._sizes:
            self._sizes[model.name] = model_size(model)
        return self._sizes[model.name]

    def kept(self, kind: type[Kept]) -> Kept:
        """The run's only instance of a class, in which a study keeps data from one work to the next."""
        if kind not in self._kept:
            self._kept[kind] = kind()
        kept: Kept = self._kept[kind]
        return kept

    def close(self) -> None:
        """Frees the loaded model."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded, self.device = None, ""


def by_engine(work: Sequence[OneWork], engine: Callable[[OneWork], tuple[PreparedModel, RopeTable]]) -> list[OneWork]:
    """Groups work by the model and table that `engine` returns, so that one engine serves it; else keeps the order."""
    engines: list[tuple[PreparedModel, RopeTable]] = []

    def number(one: OneWork) -> int:
        model, table = engine(one)
        for place, (known, held) in enumerate(engines):
            if known is model and held.same_as(table):
                return place
        engines.append((model, table))
        return len(engines) - 1

    return sorted(work, key=number)


def backend_of(spec: ModelRequest) -> Callable[[PreparedModel], Backend]:
    """A function that loads a prepared model into the request's backend; it looks the backend up when called."""
    return lambda model: capabilities(spec.backend).load(spec, model)
