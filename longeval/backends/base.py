"""The interface of a backend, which runs a model with our RoPE table: it scores tokens and generates answers.

A backend is a folder beside this file. Its `__init__.py` registers a `Capabilities`, which states how the backend
differs from others; no other code asks for a backend by name. This module and those declarations import neither torch
nor an engine, so that command lines are checked quickly.

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
    """The device has not enough memory for a pass; a shorter one may still work."""


class BackendError(LongEvalError):
    """The model can't be run with these settings at all. Before the first result, it ends the run."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChoicesRequest:
    """Continuations of one context, each of which is scored given only that context."""

    context_T: npt.NDArray[np.int32]
    """Token ids of the context, with a BOS if there is one; at least one."""
    continuations: tuple[npt.NDArray[np.int32], ...]
    """Token ids of each continuation, shape (S,), S ≥ 1; S may differ."""


class ChoiceScore(NamedTuple):
    """The score of one continuation."""

    log_likelihood: float
    """Sum over its tokens of their log-probability given all tokens before, nats."""
    greedy: bool
    """Whether each of its tokens is the most probable one at its position."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerateRequest:
    """A prompt that is continued greedily."""

    prompt_T: npt.NDArray[np.int32]
    """Token ids, with a BOS if there is one; at least one."""
    max_new_tokens: int
    """Most tokens to generate, at least 1."""
    stop: tuple[str, ...]
    """Texts that end the answer as soon as they appear in it; they are not part of it."""


class Generation(NamedTuple):
    """A generated answer."""

    text: str
    """The text without special tokens, cut before the first stop text."""
    num_tokens: int
    """Number of generated tokens, with the end token."""
    finish: Literal["stop", "eos", "length"]
    """Why it ended: a stop text, an end token of the model, or `max_new_tokens`."""


class Backend(Protocol):
    """A loaded model. It serves one table at a time and has no other state between calls."""

    name: str
    """The `backend` of a record: `hf`, `vllm`, …"""
    dtype: str
    """The precision that the model computes in: `float32`, `bfloat16`, `float16`."""
    device: str
    """Device name for provenance."""

    def serve(self, table: RopeTable, length: int) -> None:
        """Makes the model use `table` at positions 0 … length−1 from now on.

        Raises:
            BackendError: The model can't use the table.
        """
        ...

    def rope_digest(self, length: int) -> str | None:
        """SHA-256 of the table that the model holds for positions 0 … length−1 (see `rope.base.table_digest`).

        None if the model runs on a server whose table can't be read.
        """
        ...

    def score(self, tokens_T: npt.NDArray[np.int32], first_scored: int) -> npt.NDArray[np.float32]:
        """Negative log-likelihoods (nats) of tokens `first_scored` … T−1, each given all tokens before it; shape (S,).

        Args:
            tokens_T: Token ids of one window, with a BOS if there is one.
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
        """Scores continuations; yields (index of the request, its scores) as they finish, in any order.

        The served table must be long enough for the longest context with its continuation. Contexts with a common
        prefix may share that part of the key/value cache, which only saves time.

        Raises:
            OutOfMemoryError: While iterating: a request is too long for the device.
        """
        ...

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """Continues prompts greedily; yields (index of the request, its answer) as they finish, in any order.

        Args:
            requests: Prompts. The served table must be long enough for each prompt with its `max_new_tokens`.
            tokenizer: transformers' tokenizer of the model, for decoding and for its end tokens.

        Raises:
            OutOfMemoryError: While iterating: a request is too long for the device.
        """
        ...

    def reset_peak_memory(self) -> None:
        """Starts a new measurement for `peak_memory_bytes`."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Peak memory in bytes since the last reset, of the process (CPU) or the allocator (GPU); None if unknown."""
        ...

    def close(self) -> None:
        """Frees the model and ends everything that was started for it. No other method may be called afterwards."""
        ...


class Server(Protocol):
    """A server that runs the model, for checks while planning."""

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
        """Raises LongEvalError for a window that is too long for the server, if the server states its limit.

        Args:
            length: The window in tokens.
            needed: Tokens of the longest prompt with its generated tokens, at most `length` + 1.
            what: A clause that says what needs this many tokens.
        """
        ...

    def check_reads(self, tokenizers: Sequence[Any], *, scores: bool) -> None:
        """Checks that the server decodes token ids to the text that our tokenizers encoded, if it shows that.

        Args:
            tokenizers: transformers' tokenizers of the request's models.
            scores: Whether log-probabilities of prompts are needed; then a server without them is refused.

        Raises:
            LongEvalError: It serves another model, or doesn't support what is needed.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """The features of a backend, in which it differs from others."""

    load: Callable[[ModelRequest, PreparedModel], Backend]
    """Loads a model of a request. It imports heavy packages (torch, an engine), which must not be imported before."""
    heeds: frozenset[str]
    """Settings that this backend uses, of those that not every backend uses. Other such settings are refused."""
    one_table: bool = False
    """Whether a loaded model can hold only one table, so that another table needs a new start. Then cells with the same
    table run together, and length-dependent methods need `--pin-length`."""
    remote: bool = False
    """Whether somebody else has started the model: its weights, precision and rotation can't be set or seen."""
    windows_at_once: int = 1
    """Windows that it is given at once, where it batches by itself and heeds no `batch_size`."""
    estimates: bool = False
    """Whether time and memory can be estimated from the cost of passes in this process."""
    transformers_attention: bool = False
    """Whether attention is transformers', which `--attn` chooses."""
    devices: Callable[[Any], int] = lambda spec: 1
    """Takes the request; returns the number of GPUs that its engine splits a model over."""
    own_quantised_weights: bool = False
    """Whether it reads quantised weights that transformers can't read."""
    check: Callable[[ModelRequest], None] = lambda spec: None
    """Raises LongEvalError if the backend isn't installed or can't carry out the request."""
    check_config: Callable[[str, Any], None] = lambda name, config: None
    """Takes the model's name and PreTrainedConfig; raises LongEvalError if the backend can't run the model."""
    params: Callable[[ModelRequest, bool], dict[str, Any]] = lambda spec, length_dependent: {}
    """Takes the request and whether the method is length-dependent; returns parameters to add to a cell."""
    connect: Callable[[Any], tuple[Any, Server]] | None = None
    """Asks the server for its model; returns the request with the model's name at the server, and the server. Raises
    LongEvalError if it can't be reached. None if the model runs here."""


BACKENDS: Registry[Capabilities] = Registry("--backend")
"""The registered backends. `capabilities` registers those of this package before it looks one up."""


def capabilities(name: str) -> Capabilities:
    """Returns the capabilities of a backend; raises LongEvalError with suggestions for an unknown name."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:  # each folder beside this file registers its backend when it is imported
            importlib.import_module(f"{__package__}.{module.name}")
    return BACKENDS.lookup(name)


def check_request(spec: ModelRequest) -> None:
    """Raises LongEvalError for an unknown backend, or for settings that it ignores or can't carry out."""
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
