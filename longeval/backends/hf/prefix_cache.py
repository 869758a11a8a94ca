"""One key/value cache that goes from prompt to prompt and computes anew only what differs from the one before.

Going back to what two prompts share is exact; results differ from those without sharing by rounding alone.
transformers' `DynamicCache` copies a layer's keys and values with every token, and its sliding-window layers forget
what falls out of the window (transformers 5.19, `cache_utils.py`). Here layers that see the whole context live in
buffers that are written in place, and going back is a shorter view of the buffer. Layers that forget (sliding windows,
linear attention) are copied at lengths that a later prompt returns to; where there is no copy, the prompt is computed
from its start.

Several continuations of one prompt can go through the layers in one pass, side by side in one sequence (`_Branches`),
so that the prompt's keys and values are there once. Each token sees the prompt and its own branch up to itself; its
position is the one that it has in its own continuation.

Shapes: B batch (1), T tokens of a prompt, R new ones, N heads, D features of a head, H hidden size; Q tokens of all
branches, K keys (those of the prompt that a layer holds, then Q).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from longeval.backends.answering import common_prefix
from longeval.backends.hf.parts import ModelParts

CHUNK = 2048
"""Tokens of one pass where attention needs a mask of new × all tokens."""
MASK_ELEMENTS = 2**27
"""Largest such mask: passes get shorter, but not below MIN_CHUNK."""
MIN_CHUNK = 256

_MASKED_ATTENTION = ("eager", "sdpa")
"""Implementations that take any mask (1, 1, Q, K) that is added to the logits of attention."""

Tokens = npt.NDArray[np.int32]


class PrefixCache:
    """Holds the keys and values of one prompt at a time. See the module.

    Args:
        parts: The model.
    """

    def __init__(self, parts: ModelParts) -> None:
        self._parts = parts
        self._config = parts.model.config
        self._cache = DynamicCache()
        self._cache.layers = _new_layers(self._config)
        self._prompt_T: Tokens = np.empty(0, dtype=np.int32)
        self._length = 0
        """Tokens that are held."""
        self._copies: list[_Copy] = []
        self._forgets = not all(type(layer) is BufferLayer for layer in self._cache.layers)
        self._windows = [window for layer in self._cache.layers if (window := _window_of(layer))]
        self.takes_branches = _takes_branches(self._config, self._cache.layers)
        """Whether `branch` takes several continuations in one pass."""

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
            if type(layer) is BufferLayer:
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
            size = min(rest, self.branch_budget()) if self._masked(self._length, rest) else rest
            ids_R = torch.from_numpy(tokens_R[done : done + size].astype(np.int64)).to(self._parts.device)
            yield self._run(ids_R, torch.arange(self._length, self._length + size, device=ids_R.device))
            done += size

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
            branches = _Branches.of([len(tokens_S) for tokens_S in continuations], self._length, self._parts.device)
            ids_Q = torch.from_numpy(tokens_Q.astype(np.int64)).to(self._parts.device)
            masks = branches.masks(self._config, self._windows, self._parts.model.dtype)
            passes = [self._run(ids_Q, branches.position_Q, attention_mask=masks)]
        self._restore(before)
        return passes[-1], torch.cat([decoded.last_hidden_state[0] for decoded in passes])

    def branch_budget(self) -> int:
        """Tokens that one pass may have, all branches together, for its mask to stay small."""
        return min(CHUNK, max(MIN_CHUNK, MASK_ELEMENTS // (self._length + CHUNK)))

    def release(self) -> None:
        """Lets go of everything."""
        self._cache.layers = []
        self._copies = []

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

    def _copy(self) -> _Copy:
        return _Copy(self._length, [_copied(layer) for layer in self._cache.layers])

    def _restore(self, copy: _Copy) -> None:
        """Goes back to a copy, which can be gone back to again."""
        for number, (layer, twin) in enumerate(zip(self._cache.layers, copy.layers, strict=True)):
            if twin is None:
                layer.keep(copy.length)
            else:
                self._cache.layers[number] = _copied(twin)
        self._length = copy.length

    def _go_back(self, length: int) -> None:
        """Goes back to `length` tokens, or to the longest beginning below that which can be had exactly."""
        self._copies = [copy for copy in self._copies if copy.length <= length]
        if length == self._length:
            return
        if all(_can_keep(layer) for layer in self._cache.layers):
            for layer in self._cache.layers:
                _keep(layer, length)
            self._length = length
        elif self._copies:
            self._restore(self._copies[-1])
        else:
            self._restore(_Copy(0, [_copied(layer) for layer in _new_layers(self._config)]))


class _Copy(NamedTuple):
    """The layers that forget, as they were when the cache held `length` tokens."""

    length: int
    layers: list[Any]
    """By layer; None for those that need no copy."""


class BufferLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values (B, N, T, D) of a layer that sees the whole context, as views of buffers with room to grow."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 0
        """Tokens that a buffer made from now on holds at least."""
        self._buffers: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        self.keys = self._append(0, key_states, start)
        self.values = self._append(1, value_states, start)
        return self.keys, self.values

    def _append(self, which: int, new_BNTD: torch.Tensor, start: int) -> torch.Tensor:
        end = start + new_BNTD.shape[-2]
        buffer = self._buffers[which]
        if buffer is None or buffer.shape[-2] < end:
            larger = new_BNTD.new_empty(*new_BNTD.shape[:-2], max(end, self.room), new_BNTD.shape[-1])
            if buffer is not None:
                larger[..., :start, :] = buffer[..., :start, :]
            self._buffers[which] = buffer = larger
        buffer[..., start:end, :] = new_BNTD
        return buffer[..., :end, :]

    def keep(self, length: int) -> None:
        """Goes back to the first `length` tokens."""
        if self.is_initialized and length < self.get_seq_length():
            self.keys, self.values = self.keys[..., :length, :], self.values[..., :length, :]


def _new_layers(config: Any) -> list[Any]:
    """The layers of an empty cache for a model, one per layer that keeps something."""
    text_config = type(config.get_text_config())
    # A window in the file of a model whose family has none isn't used by it.
    has_windows = any(
        hasattr(text_config, field) for field in ("sliding_window", "attention_chunk_size", "layer_types")
    )
    whole = (DynamicLayer,) if has_windows else (DynamicLayer, DynamicSlidingWindowLayer)
    layers = DynamicCache(config=config).layers
    return [BufferLayer() if type(layer) in whole else layer for layer in layers]


def _window_of(layer: Any) -> int | None:
    """Tokens that a layer with a sliding window sees, the present one included; None for a layer without."""
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None


def _can_keep(layer: Any) -> bool:
    """Whether a layer can go back to any number of its first tokens by dropping the others."""
    if type(layer) is BufferLayer:
        return True
    # A sliding layer that has not reached its window has forgotten nothing.
    return type(layer) is DynamicSlidingWindowLayer and layer.cumulative_length < layer.sliding_window


def _keep(layer: Any, length: int) -> None:
    """Makes a layer that can (`_can_keep`) go back to its first `length` tokens."""
    if type(layer) is BufferLayer:
        layer.keep(length)
    elif layer.cumulative_length > length:
        layer.crop(length - layer.cumulative_length)


def _copied(layer: Any) -> Any:
    """A copy of a layer that later updates of the layer leave alone; None for one that needs none (BufferLayer)."""
    if type(layer) is BufferLayer:
        return None
    if type(layer) is DynamicSlidingWindowLayer:
        return copy.copy(layer)  # its tensors are replaced, never written to
    if isinstance(layer, LinearAttentionLayer):  # and, in hybrids, keys and values, which are replaced as well
        twin = copy.copy(layer)
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                states = {key: state.clone() if torch.is_tensor(state) else state for key, state in value.items()}
                setattr(twin, name, states)
        return twin
    return copy.deepcopy(layer)


def _takes_branches(config: Any, layers: Sequence[Any]) -> bool:
    """Whether all masks of a model can be made here: full attention, and sliding windows of one size."""
    kinds = _kinds(config)
    windows = [_window_of(layer) for layer in layers]
    return (
        config._attn_implementation in _MASKED_ATTENTION
        and all(type(layer) in (BufferLayer, DynamicSlidingWindowLayer) for layer in layers)
        and kinds <= {"full_attention", "sliding_attention"}
        and len(set(windows) - {None} if kinds else set(windows)) <= 1
    )


def _kinds(config: Any) -> set[str]:
    """Types of layers, where masks go by them."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Branches:
    """Continuations of a prompt of `start` tokens."""

    start: int
    branch_Q: torch.Tensor
    """Which branch each token belongs to."""
    position_Q: torch.Tensor
    """Its position, counted from the prompt's first token."""

    @classmethod
    def of(cls, lengths: Sequence[int], start: int, device: torch.device) -> _Branches:
        """Branches of given lengths."""
        offsets = [torch.arange(length, device=device) for length in lengths]
        return cls(
            start=start,
            branch_Q=torch.cat([torch.full_like(part, number) for number, part in enumerate(offsets)]),
            position_Q=start + torch.cat(offsets),
        )

    def masks(self, config: Any, windows: Sequence[int], dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
        """The decoder's `attention_mask`: one, or one per type of layer.

        In the form that transformers' `create_masks_for_generate` gives, which every decoder that `generate` serves
        takes: by type if the configuration has `layer_types`, else one for all.
        """
        window = windows[0] if windows else None
        if kinds := _kinds(config):
            return {kind: self._mask(window if kind == "sliding_attention" else None, dtype) for kind in kinds}
        return self._mask(window, dtype)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the logits of attention, (1, 1, Q, K): 0, or the lowest number where nothing is seen.

        Args:
            window: Tokens that are seen, the present one included, and of the prompt no more than that is held; None
                for a layer that sees and holds everything.
            dtype: The model's.
        """
        held = self.start if window is None else min(self.start, window - 1)
        device = self.branch_Q.device
        position_K = torch.cat([torch.arange(self.start - held, self.start, device=device), self.position_Q])
        branch_K = torch.cat([torch.full((held,), -1, device=device), self.branch_Q])
        seen_QK = (branch_K == self.branch_Q[:, None]) | (branch_K == -1)
        seen_QK &= position_K <= self.position_Q[:, None]
        if window is not None:
            seen_QK &= position_K > self.position_Q[:, None] - window
        mask_QK = torch.zeros(seen_QK.shape, dtype=dtype, device=device)
        return mask_QK.masked_fill_(~seen_QK, torch.finfo(dtype).min)[None, None]
