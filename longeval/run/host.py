"""What a run gives to its work: the loaded model, the run folder, progress, and what a study keeps between works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

Kept = TypeVar("Kept")
OneWork = TypeVar("OneWork")


class Progress(Protocol):
    """Hears how a run gets on."""

    def note(self, text: str) -> None:
        """What a user should know before the first pass."""
        ...

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


class Silent:
    """A `Progress`, and a `Tell` while planning, that says nothing."""

    def note(self, text: str) -> None:
        """See `Tell` and `Progress`."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """See `Tell`."""

    def begin(self, costs: Sequence[float]) -> None:
        """See `Progress`."""

    def stage(self, what: str, num_passes: int, noun: str) -> None:
        """See `Progress`."""

    def advance(self, tokens: int, cost: float, detail: str) -> None:
        """See `Progress`."""

    def finished(self, record: Record) -> None:
        """See `Progress`."""


@dataclass(kw_only=True, slots=True, eq=False)
class Host:
    """Where work runs: one process with at most one loaded model."""

    store: Store
    progress: Progress
    load: Callable[[PreparedModel], Backend]
    """Brings a model's weights."""
    fresh: bool = False
    """Whether stored results are passed over."""
    reused: Mapping[str, Reused] = field(default_factory=dict)
    """What other stored cells hold of those to compute, by cell id (`run.reuse`)."""
    before_write: Callable[[], None] = lambda: None
    """To be called before a file other than a cell's is written into the run folder."""
    device: str = ""
    """What computes, as records name it; empty before anything is loaded."""
    _loaded: tuple[PreparedModel, Backend] | None = None
    _kept: dict[type[Any], Any] = field(default_factory=dict)
    _sizes: dict[str, ModelSize] = field(default_factory=dict)

    def backend(self, model: PreparedModel) -> Backend:
        """The loaded model; the one before it is let go first. BackendError where it can't be loaded."""
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
        """The model's sizes, found out once."""
        from longeval.run.cost import model_size

        if model.name not in self._sizes:
            self._sizes[model.name] = model_size(model)
        return self._sizes[model.name]

    def kept(self, kind: type[Kept]) -> Kept:
        """The run's one instance of a class: what a study keeps from one work to the next."""
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
    """Sorts work so that what one engine with one table can serve is together; otherwise the order stays.

    `engine` gives the model and the table that a piece of work needs.
    """
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
    """What loads a prepared model into the backend that a request names; nothing is looked up before it is called."""
    return lambda model: capabilities(spec.backend).load(spec, model)
