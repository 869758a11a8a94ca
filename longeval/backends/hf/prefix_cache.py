"""One key/value cache that goes from prompt to prompt and computes anew only what differs from the one before.

Going back to what two prompts share is exact: layers that see everything drop what comes after; layers that forget
(sliding windows, linear attention) go back to a copy that was made there on the way, and where there is none the prompt
is computed from its start. Results differ from those without sharing by rounding alone.

Shapes: B batch (1), T tokens of a prompt, R new ones, Q tokens of all branches, H hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import DynamicCache

from longeval.backends.hf import cache_layers
from longeval.backends.hf.parts import ModelParts
from longeval.backends.prompt_order import common_prefix

CHUNK = 2048
"""Tokens of one pass where attention needs a mask of new × all tokens."""
MASK_ELEMENTS = 2**27
"""Of one such mask, at most: passes get shorter, but not below MIN_CHUNK."""
MIN_CHUNK = 256

Tokens = npt.NDArray[np.int32]


class _Copy(NamedTuple):
    """The layers that forget, as they were when the cache held `length` tokens."""

    length: int
    layers: list[Any]
    """By layer; None for those that need no copy."""


class PrefixCache:
    """Holds the keys and values of one prompt at a time. See the module.

    Args:
        parts: The model.
    """

    def __init__(self, parts: ModelParts) -> None:
        self._parts = parts
        self._config = parts.model.config
        self._cache = DynamicCache()
        self._cache.layers = cache_layers.new_layers(self._config)
        self._prompt_T: Tokens = np.empty(0, dtype=np.int32)
        self._length = 0
        self._copies: list[_Copy] = []
        self._forgets = not all(type(layer) is cache_layers.BufferLayer for layer in self._cache.layers)
        self._windows = [window for layer in self._cache.layers if (window := cache_layers.window_of(layer))]
        self.takes_branches = cache_layers.takes_branches(self._config, self._cache.layers)
        """Whether `branch` takes several continuations in one pass."""

    @property
    def length(self) -> int:
        """Tokens that are held."""
        return self._length

    def hold(self, prompt_T: Tokens, *, room: int, returns: Sequence[int] = ()) -> Any:
        """Makes the cache hold exactly `prompt_T`; returns what the decoder gave in the pass of its last token.

        Args:
            prompt_T: At least one token.
            room: Tokens that the cache will hold before the next call, the prompt included.
            returns: Lengths ≤ T that later prompts go back to (`PromptOrder.returns`).
        """
        # The last token always runs: its hidden state is what this is for.
        shared = min(common_prefix(self._prompt_T, prompt_T), len(prompt_T) - 1, self._length)
        rest = len(prompt_T) - shared
        if shared < rest and rest > CHUNK and not self._masked(0, len(prompt_T)):
            shared = 0  # one pass without a mask takes less time and memory than many with one
        self._go_back(shared)
        self._prompt_T = prompt_T
        for layer in self._cache.layers:
            if type(layer) is cache_layers.BufferLayer:
                layer.room = room
        stops = [length for length in returns if length > self._length] if self._forgets else []
        last: deque[Any] = deque(maxlen=1)
        for end in sorted({*stops, len(prompt_T)}):
            last.extend(self.extend(prompt_T[self._length : end]))
            if end in stops:
                self._copies.append(self._copy())
        return last.pop()

    def extend(self, tokens_R: Tokens) -> Iterator[Any]:
        """Appends tokens, in passes whose masks stay small; yields what the decoder gave for each pass."""
        done = 0
        while done < len(tokens_R):
            rest = len(tokens_R) - done
            chunk = min(CHUNK, max(MIN_CHUNK, MASK_ELEMENTS // (self._length + CHUNK)))
            size = min(rest, chunk) if self._masked(self._length, rest) else rest
            ids_R = torch.from_numpy(tokens_R[done : done + size].astype(np.int64)).to(self._parts.device)
            yield self._run(ids_R, torch.arange(self._length, self._length + size, device=ids_R.device))
            done += size

    def _masked(self, start: int, size: int) -> bool:
        """Whether transformers makes a mask (or eager attention a matrix) of `size` × all tokens for one pass."""
        implementation = self._config._attn_implementation
        if implementation != "sdpa":
            return not str(implementation).startswith("flash_attention")
        return size > 1 and (start > 0 or any(size >= window for window in self._windows))

    def _run(self, ids_R: torch.Tensor, positions_R: torch.Tensor, **kwargs: Any) -> Any:
        decoded = self._parts.decoder(
            input_ids=ids_R[None],
            position_ids=positions_R[None],
            past_key_values=self._cache,
            use_cache=True,
            **kwargs,
        )
        self._length += len(ids_R)
        return decoded

    def branch(self, continuations: Sequence[Tokens]) -> tuple[Any, torch.Tensor]:
        """Runs continuations, each after what is held and without the others; afterwards all is as before.

        Several at once only where `takes_branches` says so; their tokens together should stay below `branch_budget`.

        Returns:
            What the decoder gave, and the hidden states (Q, H) of the continuations' tokens, one after another.
        """
        before = self._copy()
        tokens_Q = np.concatenate(continuations)
        if len(continuations) == 1:
            passes = list(self.extend(tokens_Q))
        else:
            assert self.takes_branches
            branches = cache_layers.Branches.of(
                [len(tokens_S) for tokens_S in continuations], self._length, self._parts.device
            )
            ids_Q = torch.from_numpy(tokens_Q.astype(np.int64)).to(self._parts.device)
            masks = branches.masks(self._config, self._cache.layers, self._parts.model.dtype)
            passes = [self._run(ids_Q, branches.position_Q, attention_mask=masks)]
        self._restore(before)
        return passes[-1], torch.cat([decoded.last_hidden_state[0] for decoded in passes])

    def branch_budget(self) -> int:
        """Tokens that all branches of one pass may have together, for their mask to stay small."""
        return min(CHUNK, max(MIN_CHUNK, MASK_ELEMENTS // (self._length + CHUNK)))

    def _copy(self) -> _Copy:
        return _Copy(self._length, [cache_layers.copied(layer) for layer in self._cache.layers])

    def _restore(self, copy: _Copy) -> None:
        """Goes back to a copy, which can be gone back to again."""
        for number, (layer, twin) in enumerate(zip(self._cache.layers, copy.layers, strict=True)):
            if twin is None:
                layer.keep(copy.length)
            else:
                self._cache.layers[number] = cache_layers.copied(twin)
        self._length = copy.length

    def _go_back(self, length: int) -> None:
        """Goes back to `length` tokens, or to the longest beginning below that which can be had exactly."""
        self._copies = [copy for copy in self._copies if copy.length <= length]
        if length == self._length:
            return
        if all(cache_layers.can_keep(layer, length) for layer in self._cache.layers):
            for layer in self._cache.layers:
                cache_layers.keep(layer, length)
            self._length = length
        elif self._copies:
            self._restore(self._copies[-1])
        else:
            self._restore(_Copy(0, [cache_layers.copied(layer) for layer in cache_layers.new_layers(self._config)]))

    def release(self) -> None:
        """Lets go of everything."""
        self._cache.layers = []
        self._copies = []
