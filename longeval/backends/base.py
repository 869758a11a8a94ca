"""What a backend is: it holds a model, serves a RoPE table to it, scores tokens, and answers.

T tokens, S scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable


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
