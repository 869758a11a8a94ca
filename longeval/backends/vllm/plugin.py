"""vLLM's plugin: makes our rope types known in every process that vLLM starts.

vLLM calls `register` (entry point group `vllm.general_plugins`) in the process that asks, in the engine's and in each
worker's, before model files are imported; those import `get_rope` by name, so that replacing it then reaches all of
them. `get_rope` goes on doing what it does for rope types that aren't ours.

It also runs where somebody uses vLLM without longeval being meant at all, and so must never raise: with a vLLM that
is built differently our types stay unknown, and `--backend vllm` says so when it doesn't find its table in the engine.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_PLACE = "vllm.model_executor.layers.rotary_embedding"

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2), which only Linux has."""

LOG_VARIABLE = "LONGEVAL_ENGINE_LOG"
"""Names the log of the engines that longeval itself starts; inherited by all their processes."""


def register() -> None:
    """Puts our `get_rope` in the place of vLLM's; again is harmless."""
    try:
        if os.environ.get(LOG_VARIABLE) and multiprocessing.parent_process() is not None:
            _belong_to_parent(os.environ[LOG_VARIABLE])
        import longeval.hf  # registers our names with transformers as well: a saved model's config may have them

        longeval.hf.register()
        place: Any = importlib.import_module(_PLACE)
        current = place.get_rope
        if not hasattr(current, "longeval_original"):
            place.get_rope = _get_rope(current)
    except Exception as error:
        logger.warning("longeval: its rope types are unknown to this vLLM (%s: %s)", type(error).__name__, error)


def _belong_to_parent(log: str) -> None:
    """An engine's process writes into the log, not over our progress and results, and ends when its parent does."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    parent = multiprocessing.parent_process()
    die_with_parent(None if parent is None else parent.pid)


def die_with_parent(parent: int | None) -> None:
    """Has the system kill this process when its parent ends; does nothing where the system isn't Linux.

    vLLM's processes outlive a parent that is killed, holding all the memory that they were given.

    Args:
        parent: The parent's process id, to notice that it ended before this was asked for; None: not known.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _get_rope(original: Callable[..., Any]) -> Callable[..., Any]:
    """The `get_rope` of vLLM that knows our types."""
    held: dict[tuple[Any, ...], Any] = {}

    def get_rope(
        head_size: int,
        max_position: int,
        is_neox_style: bool = True,
        rope_parameters: dict[str, Any] | None = None,
        dtype: Any = None,
        **others: Any,
    ) -> Any:
        import torch

        from longeval.backends.vllm.rotary import VLLMTableRotaryEmbedding, table_of

        parameters = rope_parameters or {}
        found = table_of(parameters, head_size, max_position)
        if found is None:
            return original(head_size, max_position, is_neox_style, rope_parameters, dtype, **others)
        if others.get("dual_chunk_attention_config") is not None:
            raise ValueError(f"rope_type {parameters['rope_type']}: not with dual chunk attention")
        dtype = dtype or torch.get_default_dtype()
        # One module for all layers that rotate alike, as in vLLM.
        key = (head_size, is_neox_style, dtype, found.length, json.dumps(parameters, sort_keys=True))
        if key not in held:
            held[key] = VLLMTableRotaryEmbedding(head_size, found, is_neox_style=is_neox_style, dtype=dtype)
        return held[key]

    get_rope.longeval_original = original  # type: ignore[attr-defined]  # functions take attributes
    return get_rope
