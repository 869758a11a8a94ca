"""What a backend is: it holds a model, serves a RoPE table to it, scores tokens, and answers.

A backend is a folder beside this file. Its `__init__.py` registers a `Capabilities`, which says by what the backend
differs from others; nothing else in the package asks for a backend by name. This module and those declarations import
neither torch nor an engine, so that a command line can be checked in no time.

B windows, T tokens, S scored tokens.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from longeval.errors import LongEvalError
from longeval.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from longeval.backends.served import ServedMethod
    from longeval.models.prepare import PreparedModel
    from longeval.request import ModelRequest
    from longeval.rope.base import RopeTable

AnyRequest = TypeVar("AnyRequest", bound="ModelRequest")
"""A request of any study."""


class OutOfMemoryError(Exception):
    """The device had no memory for a pass; a shorter one may still work."""


class BackendError(LongEvalError):
    """The model can't be run at all as asked; told before the first cell, it ends the run."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChoicesRequest:
    """Continuations of one context, each to be scored given that context alone."""

    context_T: npt.NDArray[np.int32]
    """Token ids of the context, BOS included where there is one; at least one."""
    continuations: tuple[npt.NDArray[np.int32], ...]
    """Token ids of each continuation, shape (S,), S ≥ 1; S may differ."""


class ChoiceScore(NamedTuple):
    """What one continuation got."""

    log_likelihood: float
    """Sum over its tokens of their log-probability given all tokens before, nats."""
    greedy: bool
    """Whether each of its tokens is the most probable one at its place."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerateRequest:
    """A prompt to be continued greedily."""

    prompt_T: npt.NDArray[np.int32]
    """Token ids, BOS included where there is one; at least one."""
    max_new_tokens: int
    """Most tokens to generate, at least 1."""
    stop: tuple[str, ...]
    """Texts that end the answer as soon as they appear in it; they are not part of it."""


class Generation(NamedTuple):
    """An answer."""

    text: str
    """Decoded, special tokens left out, cut before the first stop text."""
    num_tokens: int
    """Tokens that were generated, the ending one included."""
    finish: Literal["stop", "eos", "length"]
    """What ended it: a stop text, the model itself, or `max_new_tokens`."""


class Backend(Protocol):
    """A loaded model. One table is served at a time; nothing else is remembered between calls."""

    name: str
    """`hf`, `vllm`, …: the `backend` of a record."""
    dtype: str
    """The precision that the model computes in: `float32`, `bfloat16`, `float16`."""
    device: str
    """Device name for provenance."""

    def serve(self, table: RopeTable, length: int) -> None:
        """Makes the model use `table` at positions 0 … length−1 from now on.

        Raises:
            BackendError: It can't.
        """
        ...

    def rope_digest(self, length: int) -> str | None:
        """SHA-256 of the table that the model holds for positions 0 … length−1 (see `rope.base.table_digest`).

        None where the model runs elsewhere and nobody can look.
        """
        ...

    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """Negative log-likelihoods (nats) of tokens `first_scored` … T−1, each given all tokens before it; shape (S,).

        Args:
            tokens_T: Token ids of one window, BOS included where there is one.
            first_scored: Index of the first scored token, at least 1.

        Raises:
            OutOfMemoryError: The window is too long for the device.
        """
        ...

    def score_batch(
        self, tokens_BT: npt.NDArray[np.int32], first_scored_B: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """What `score` says of each of several windows of equal length, up to rounding.

        Equal lengths need no padding and no mask, and a table that depends on the length is the same for all.

        Args:
            tokens_BT: Token ids, a window a row.
            first_scored_B: Index of the first scored token of each window, at least 1.

        Raises:
            OutOfMemoryError: Together they are too large for the device.
        """
        ...

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """Scores continuations; yields (index of the request, its scores) as they are done, in any order.

        The table that is served must reach the longest context with its longest continuation. Contexts that begin
        alike share that part's key/value cache, which changes nothing but time.

        Raises:
            OutOfMemoryError: While iterating: a request is too long for the device.
        """
        ...

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """Continues prompts greedily; yields (index of the request, its answer) as they are done, in any order.

        Args:
            requests: Prompts; the table that is served must reach each prompt with its `max_new_tokens`.
            tokenizer: transformers' tokenizer of the model, to decode and to know the end tokens.

        Raises:
            OutOfMemoryError: While iterating: a request is too long for the device.
        """
        ...

    def reset_peak_memory(self) -> None:
        """Starts a new measurement for `peak_memory_bytes`."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Peak since the last reset: of the process on a CPU, of the allocator on a GPU; None if unknown."""
        ...

    def close(self) -> None:
        """Lets the model go, with all that was started for it; nothing else may be called afterwards."""
        ...


class Server(Protocol):
    """A server that runs the model elsewhere, as a plan sees it: it was asked once, and can be asked more."""

    def proves(self, asked: ServedMethod, table: RopeTable) -> bool:
        """Whether the server says that it computes with a method, and its engine holds the table; False: not known.

        Args:
            asked: The method of the request.
            table: Its table at the longest length.

        Raises:
            LongEvalError: It computes with another one.
        """
        ...

    def check_room(self, length: int, needed: int, what: str) -> None:
        """Refuses a window that the server has no room for, where it says how much it has.

        Args:
            length: The window in tokens.
            needed: Tokens of the longest prompt with what is generated, at most `length` and one more.
            what: A clause that says what takes so many.

        Raises:
            LongEvalError: It doesn't fit.
        """
        ...

    def check_reads(self, tokenizers: Sequence[Any], *, scores: bool) -> None:
        """Makes sure that the server reads token ids as our tokenizers write them, where it shows that.

        Args:
            tokenizers: transformers' tokenizers of the request's models.
            scores: Whether log-probabilities of prompts are needed; a server without them is refused then.

        Raises:
            LongEvalError: It serves another model, or doesn't understand what is to be asked.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a backend can do, and by what it differs from others."""

    load: Callable[[ModelRequest, PreparedModel], Backend]
    """Loads a model of a request. What is heavy (torch, an engine) is imported here, not before."""
    heeds: frozenset[str]
    """Settings of a request that this backend heeds, of those that not every backend does. Another backend's are
    refused instead of ignored."""
    one_table: bool = False
    """Whether a loaded model holds one table, so that each further one takes a new start: cells of one table run
    together, and methods with another table at every length need `--pin-length`."""
    remote: bool = False
    """Whether somebody else has started the model: its weights, precision and rotation can't be set or seen."""
    windows_at_once: int = 1
    """Windows that it is given at once, where it batches by itself and heeds no `batch_size`."""
    estimates: bool = False
    """Whether time and memory can be told before the start, by the cost of passes in this process."""
    transformers_attention: bool = False
    """Whether attention is transformers', which `--attn` chooses."""
    own_quantised_weights: bool = False
    """Whether it reads quantised weights that transformers doesn't know."""
    check: Callable[[ModelRequest], None] = lambda spec: None
    """Raises LongEvalError where the backend isn't installed, or can't do what the request says."""
    check_config: Callable[[str, Any], None] = lambda name, config: None
    """(the model's name, its transformers configuration): raises LongEvalError for a model that it can't run."""
    params: Callable[[ModelRequest, bool], dict[str, Any]] = lambda spec, length_dependent: {}
    """(request, whether the method depends on length) → what the backend adds to the parameters of a cell."""
    connect: Callable[[Any], tuple[Any, Server]] | None = None
    """Asks the server where the model runs: request → (the request with the model's name there, the server);
    LongEvalError if it can't be had. None where the model runs here."""


BACKENDS: Registry[Capabilities] = Registry("--backend")
"""What is registered so far; `capabilities` registers the backends of this package before it looks one up."""


def capabilities(name: str) -> Capabilities:
    """Returns what the backend called `name` can do; raises LongEvalError with suggestions if there is none."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:  # each folder beside this file registers its backend when it is imported
            importlib.import_module(f"{__package__}.{module.name}")
    return BACKENDS.lookup(name)


def check_request(spec: ModelRequest) -> None:
    """Raises LongEvalError for an unknown backend, or settings that it would ignore or can't do."""
    chosen = capabilities(spec.backend)
    not_heeded = {setting for backend in BACKENDS.values() for setting in backend.heeds} - chosen.heeds
    for setting in sorted(not_heeded & type(spec).model_fields.keys()):  # some belong to one study
        if not spec.is_default(setting):
            heeding = [name for name, backend in BACKENDS.items() if setting in backend.heeds]
            raise LongEvalError(
                f"{spec.flag(setting)}: would be ignored with --backend {spec.backend}",
                f"It belongs to --backend {' and '.join(heeding)}; leave it out.",
            )
    chosen.check(spec)
