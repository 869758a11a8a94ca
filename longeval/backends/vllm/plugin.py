"""Our plugin for vLLM. It registers our rope types in every process that vLLM starts.

vLLM calls `register` (entry point group `vllm.general_plugins`) in the calling process, in the engine's and in each
worker's, before it imports model files. These import `get_rope` by name, so replacing it before reaches all of them.
For rope types that aren't ours, the original `get_rope` is called.

The plugin also runs when vLLM is used without longeval, so it must never raise. If another version of vLLM is built
differently, our types stay unknown, and `--backend vllm` reports that its table isn't in the engine.
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
"""Environment variable with the log file of engines that longeval starts; all their processes inherit it."""


def register() -> None:
    """Replaces vLLM's `get_rope` by ours. It may be called repeatedly."""
    try:
        if os.environ.get(LOG_VARIABLE) and multiprocessing.parent_process() is not None:
            _belong_to_parent(os.environ[LOG_VARIABLE])
        import longeval.hf  # registers our types with transformers too, because a saved model's config may have them

        longeval.hf.register()
        place: Any = importlib.import_module(_PLACE)
        current = place.get_rope
        if not hasattr(current, "longeval_original"):
            place.get_rope = _get_rope(current)
    except Exception as error:
        logger.warning("longeval: its rope types are unknown to this vLLM (%s: %s)", type(error).__name__, error)


def _belong_to_parent(log: str) -> None:
    """Redirects the output of an engine's process into the log, and makes it end when its parent ends."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    parent = multiprocessing.parent_process()
    die_with_parent(None if parent is None else parent.pid)


def die_with_parent(parent: int | None) -> None:
    """Makes Linux kill this process when its parent ends; does nothing on other systems.

    Otherwise vLLM's processes outlive a killed parent and keep their memory. `parent` is its process id, if known, to
    notice that it has already ended.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _get_rope(original: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a `get_rope` that handles our types and calls the original for others."""
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
            raise ValueError(f"rope_type {parameters['rope_type']}: doesn't support dual chunk attention")
        dtype = dtype or torch.get_default_dtype()
        # Layers with the same settings share one module, as in vLLM.
        key = (head_size, is_neox_style, dtype, found.length, json.dumps(parameters, sort_keys=True))
        if key not in held:
            held[key] = VLLMTableRotaryEmbedding(head_size, found, is_neox_style=is_neox_style, dtype=dtype)
        return held[key]

    get_rope.longeval_original = original  # type: ignore[attr-defined]  # functions take attributes
    return get_rope
